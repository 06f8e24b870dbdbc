"""`python -m tuner`, so that `accelerate launch -m tuner run recipe.yaml` works."""

from tuner.cli import main

if __name__ == "__main__":
    main()
