"""The page that shows records as they are trained: every token a box, loss in colour, the rendered text beside it, in one file that opens anywhere.

It refuses to mask (what is trained is what is shown, so the file is its owner's alone), to be anything but text, and to overwrite other files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tuner.durable import write_text
from tuner.errors import refuse
from tuner.report.html import _digest, _environment, _part
from tuner.safe_text import visible
from tuner.template.formats import TOKENIZER
from tuner.template.preview import Choice, Shown, ShownToken, preview_counts, shown_row
from tuner.template.tokens import Encoder, Row

View = dict[str, Any]

MOST_TOKENS = 60_000  # on one page, about 7 MB; the first record is shown whatever its length
MARK = b'<meta name="generator" content="tuner preview">'
LOSS_ON = {
    "completion": "all the assistant says after the last user turn",
    "last_turn": "the assistant's last message",
    "all_assistant": "every assistant turn",
    "everything": "every token, prompts too",
}
KINDS = {"context": "", "loss": "l", "cut": "c", "outside": "o"}


@dataclass(frozen=True)
class PreviewPage:
    """The page, and how many of the chosen records it left out for their size."""

    html: str
    left_out: int


def preview_page(name: str, encoder: Encoder, chosen: Sequence[tuple[Choice, Row]], sizes: dict[str, int]) -> PreviewPage:
    """The page of the recipe called `name`. `sizes` are the records of every split."""
    style, script = _part("report.css") + _part("preview.css"), _part("preview.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    fitting = _fitting([len(row.input_ids) for _, row in chosen])
    rows = [row for _, row in chosen[:fitting]]
    records = [_record(choice, shown_row(row, encoder)) for choice, row in chosen[:fitting]]
    html = (
        _environment()
        .get_template("preview.html.j2")
        .render(
            name=name,
            records=records,
            sizes=sizes,
            left_out=len(chosen) - fitting,
            tokens=sum(len(row.input_ids) for row in rows),
            loss_tokens=sum(row.completion_tokens for row in rows),
            longest=max((len(row.input_ids) for row in rows), default=0),
            cut_rows=sum(row.cut_tokens > 0 for row in rows),
            merged_rows=sum(row.merged for row in rows),
            setting=_setting(encoder),
            has=_has(records),
            style=Markup(style),
            script=Markup(script),
            policy=policy,
        )
    )
    return PreviewPage(html, len(chosen) - fitting)


def write_private(path: Path, text: str) -> None:
    """Write the page so that only its owner may read it (mode 0600), from the first byte on."""
    mask = os.umask(0o077)
    try:
        write_text(path, text)
    finally:
        os.umask(mask)


def refuse_other_file(path: Path | None, option: str) -> None:
    """Raises Refusal where `path` holds something that is no earlier page of this kind: nothing else is ever overwritten."""
    if path is None or not path.exists():
        return
    found = "no regular file"
    if path.is_file():
        try:
            with open(path, "rb") as file:
                start = file.read(2048)
        except OSError as error:
            refuse(path, option, error.strerror or type(error).__name__, "a new file, or an earlier page of tuner preview", "choose another name")
        if not start or MARK in start:
            return
        found = "a file that is no earlier page of tuner preview"
    refuse(path, option, found, "a new file, or an earlier page of tuner preview", "choose another name")


def _fitting(sizes: Sequence[int]) -> int:
    """How many rows from the beginning fit."""
    total = 0
    for place, size in enumerate(sizes):
        total += size
        if total > MOST_TOKENS and place:
            return place
    return len(sizes)


def _setting(encoder: Encoder) -> View:
    spec, own = encoder.spec, encoder.template.own_system
    return {
        "base": encoder.name,
        "format": spec.format,
        "is_own_format": spec.format == TOKENIZER,
        "digest": encoder.template.digest,
        "system": spec.system,
        "own_system": own if spec.system is None else None,
        "loss_on": spec.loss_on,
        "loss_words": LOSS_ON[spec.loss_on],
        "max_tokens": spec.max_tokens,
        "truncate": spec.truncate,
        "content_tokens": spec.content_tokens,
        "new_tokens": spec.new_tokens,
        "kwargs": spec.chat_template_kwargs,
        "stops": [encoder.token_text(i) for i in sorted(encoder.stop_ids)],
    }


def _has(records: Sequence[View]) -> dict[str, bool]:
    """What of the legend occurs on this page."""
    parts = {kind for record in records for kind, _, _ in record["parts"]}
    return {"cut": "c" in parts, "outside": "o" in parts, "spelt": any("x" in t["kind"].split() for r in records for t in r["tokens"])}


def _record(choice: Choice, shown: Shown) -> View:
    row, text = shown.row, shown.text
    return {
        "where": row.record.where,
        "split": row.record.split,
        "id": row.record.id,
        "why": choice.why,
        "counts": preview_counts(row),
        "tokens": [_token(token, text, share) for token, share in zip(shown.tokens, _shares(shown.tokens), strict=True)],
        "parts": [(KINDS[kind], special, _pieces(part, keep="\n")) for kind, special, part in shown.parts],
    }


def _shares(tokens: Sequence[ShownToken]) -> list[str]:
    """For every token that is a part of a character, which part (1/3); empty for all others."""
    shares: list[str] = []
    for (_, is_part), run in groupby(tokens, key=lambda t: (t.end, "\ufffd" in t.raw)):
        size = len(list(run))
        shares += [f"{n}/{size}" if is_part and size > 1 else "" for n in range(1, size + 1)]
    return shares


def _token(token: ShownToken, text: str, share: str) -> View:
    """`share`: no token shows a character that is spread over several, so each of them shows that character and which part it is."""
    kind = " ".join(word for word, holds in (("l", token.loss), ("s", token.special), ("x", token.spelt)) if holds)
    return {
        "id": token.id,
        "start": token.start,
        "end": token.end,
        "kind": kind,
        "pieces": [*_pieces(text[token.start : token.end]), (f" {share}", True)] if share else _pieces(token.raw),
        "share": share,
        "breaks": token.raw.count("\n") if token.raw.endswith("\n") else 0,
    }


def _pieces(text: str, keep: str = "") -> list[tuple[str, bool]]:
    """The text cut where visible characters (and those of `keep`) and hidden ones meet, the hidden ones written as escapes; True for those."""
    runs = groupby(text, key=lambda char: char not in keep and visible(char) != char)
    return [(visible("".join(run)) if hidden else "".join(run), hidden) for hidden, run in runs]
