"""The training room: finished rows and a loaded base in, trained adapter weights and a log out."""
