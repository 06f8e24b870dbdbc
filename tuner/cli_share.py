"""The commands that send a version away and bring one in: push, pull.

They refuse to send a secret, to make public what was not asked to be, and to keep what differs from its manifest.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli_words import Name, Store, store_folder
from tuner.telling import out, shown_path

Repository = Annotated[str, typer.Argument(help="hub:ORG/REPO", show_default=False)]
Source = Annotated[str, typer.Argument(help="hub:ORG/REPO, or hub:ORG/REPO@BRANCH, TAG or COMMIT", show_default=False)]


def push(
    name: Name, to: Repository, store: Store = None,
    public: Annotated[bool, typer.Option("--public", help="a new repository is public, and a public one will do; default: private")] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="the branch to commit to")] = "main",
    answers: Annotated[bool, typer.Option("--answers", help="also send the answers of the evaluation: they hold texts of your data")] = False,
    allow_personal: Annotated[bool, typer.Option("--allow-personal", help="send what looks like personal data or a home folder; never a secret")] = False,
) -> None:  # fmt: skip
    """Send a version to a repository of models on the Hugging Face Hub: one commit, its card as README.md, a tag NAME-N. Looks for secrets first."""
    import huggingface_hub  # noqa: F401  # before anything of ours tells it to stay offline: naming a repository is the opt-in

    from tuner.artifact import hub
    from tuner.artifact.store import find

    version = find(store_folder(store or "adapters"), name)
    done = hub.push(version, to, public=public, revision=revision, answers=answers, allow_personal=allow_personal)
    seen = "private" if done.private else "public"
    out.print(
        f"pushed {version.label} to hub:{done.repo} ({seen}), {len(done.files)} files in commit {done.commit[:12]}, tag {done.tag}",
        markup=False,
        soft_wrap=True,
    )


def pull(
    source: Source, store: Store = None,
    as_name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="bring it in under this name; its number stays")] = None,
) -> None:  # fmt: skip
    """Bring a pushed version into the store, under its own name and number, every file checked against its manifest first."""
    import huggingface_hub  # noqa: F401  # as in push

    from tuner.artifact import hub

    version, is_new = hub.pull(source, store_folder(store or "adapters"), as_name=as_name)
    words = "pulled" if is_new else "already there, the same:"
    out.print(f"{words} {version.label}  {shown_path(version.folder)}", markup=False, soft_wrap=True)


COMMANDS = (push, pull)
