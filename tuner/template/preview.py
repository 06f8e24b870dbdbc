"""Records as the model will see them: every token with its place in the rendered text, which of them carry loss, specials visible, counts.

It refuses a record that is not among those kept, and to show a token that is not the one that is trained.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

from rich.text import Text

from tuner.catalog import suggestion
from tuner.data.record import Record
from tuner.errors import Collector, refuse
from tuner.safe_text import quoted, visible
from tuner.template.masks import Span
from tuner.template.tokens import IGNORED, Encoder, Row

FIRST = 2  # records shown where nothing is asked for
_PLACE = re.compile(r"(?s)(.+):([0-9]{1,12})")
_ID = re.compile(r"[0-9a-f]{12}")

Kind = Literal["context", "loss", "cut", "outside"]


# --- which records ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: records by FILE:LINE or id, and how many of the longest, at random, and from the beginning of a split."""

    records: Sequence[str] = ()
    longest: int = 0
    random: int = 0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A record and why it is shown."""

    record: Record
    why: str


def chosen(wanted: Wanted, split: Sequence[Record], tokens: Sequence[int], every: Iterable[Record], folder: Path, seed: int) -> list[Choice]:
    """The wanted records, none twice. `tokens` are the row lengths of `split`; named records are looked for in `every` split.

    Files of records are named as seen from `folder`. Raises Refusal with every name that no kept record has.
    """
    picked = [Choice(record, "asked for") for record in _named(wanted.records, every, folder)] if wanted.records else []
    by_length = sorted(range(len(split)), key=lambda i: (-tokens[i], i))[: wanted.longest]
    picked += [Choice(split[i], f"longest, number {rank}") for rank, i in enumerate(by_length, start=1)]
    drawn = random.Random(seed).sample(range(len(split)), min(wanted.random, len(split)))
    picked += [Choice(split[i], "at random") for i in sorted(drawn)]
    picked += [Choice(record, "from the beginning") for record in split[: wanted.first]]
    once: dict[tuple[str, str], Choice] = {}
    for choice in picked:
        once.setdefault((choice.record.split, choice.record.where), choice)
    return list(once.values())


def _named(words: Sequence[str], every: Iterable[Record], folder: Path) -> list[Record]:
    records = list(every)
    by_place: dict[tuple[Path, int], Record] = {}
    paths = {file: (folder / file).resolve() for file in {r.file for r in records}}
    for record in records:
        by_place.setdefault((paths[record.file], record.line), record)
    by_id = {r.id: r for r in reversed(records)} if any(_ID.fullmatch(w) for w in words) else {}
    collector = Collector()
    found: list[Record] = []
    for word in words:
        place = _PLACE.fullmatch(word)
        near = [((base / place[1]).resolve(), int(place[2])) for base in (folder, Path())] if place else []
        hit = next((by_place[p] for p in near if p in by_place), by_id.get(word))
        if hit is not None:
            found.append(hit)
            continue
        collector.add("command line", "--record", quoted(word), "FILE:LINE of a record that is kept, or the 12 hex digits that findings name one by",
                      _instead(place, near, by_place, paths))  # fmt: skip
    collector.raise_if_any()
    return found


def _instead(place: re.Match[str] | None, near: list[tuple[Path, int]], by_place: Mapping[tuple[Path, int], Record], paths: Mapping[str, Path]) -> str:
    """The smallest change that names a record."""
    if place is None:
        return "copy record_id from `tuner check RECIPE --findings FILE`; a record whose words were changed has another one"
    lines = {line: record for (path, line), record in by_place.items() if path in {p for p, _ in near}}
    if not lines:
        return suggestion(place[1], paths)
    nearest = lines[min(lines, key=lambda line: (abs(line - int(place[2])), line))]
    return f"write {nearest.where}, the nearest one; `tuner check` says why line {place[2]} is not kept"


# --- what the model sees ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token of a row. `start` and `end` are characters of the rendered text; tokens that share one character share them.

    `raw` is its text as it is. `spelt`: it spells a part of a control text that stands in the record, and is plain text.
    """

    id: int
    raw: str
    loss: bool
    special: bool
    spelt: bool
    start: int
    end: int

    @property
    def text(self) -> str:
        """Its text with control characters visible."""
        return visible(self.raw)


@dataclass(frozen=True, slots=True)
class Shown:
    """A row with the text it was made of. `parts` are the whole rendered text, cut where its kind changes; True for special tokens.

    Kinds: `cut` was taken from the beginning of the prompt, `outside` is in no row (what a template writes after the last stop token).
    """

    row: Row
    tokens: Sequence[ShownToken]
    parts: Sequence[tuple[Kind, bool, str]]

    @property
    def text(self) -> str:
        """The whole rendered text, control texts of the record as they stand in it."""
        return "".join(part for _, _, part in self.parts)


def shown_row(row: Row, encoder: Encoder) -> Shown:
    """The row's tokens, in order and each once, with their places in the rendered text."""
    text, ids, places, spelt = _placed(row, encoder)
    begin = next((n for n in range(len(row.input_ids) + 1) if ids[:n] + ids[n + row.cut_tokens :] == row.input_ids), None)
    if begin is None:
        refuse(row.record.where, "", "tokens that differ from those of the row", "the row's own tokens",
               "this is a fault of tuner, not of your data: please report it with `tuner version`")  # fmt: skip
    cut = slice(begin, begin + row.cut_tokens)
    kinds: list[Kind] = ["context" if label == IGNORED else "loss" for label in row.labels]
    kinds[begin:begin] = ["cut"] * row.cut_tokens
    special = encoder.control_ids | encoder.stop_ids
    told = [ShownToken(i, _raw(encoder, i), kind == "loss", i in special, is_spelt, *place)
            for i, kind, place, is_spelt in zip(ids, kinds, places, spelt, strict=True)]  # fmt: skip
    parts = _parts(text, places, [(kind, token.special) for kind, token in zip(kinds, told, strict=True)])
    del told[cut]
    return Shown(row, told, parts)


def shown_tokens(row: Row, encoder: Encoder) -> list[ShownToken]:
    """One entry a token, in order."""
    return list(shown_row(row, encoder).tokens)


def _raw(encoder: Encoder, token: int) -> str:
    return str(encoder.tokenizer.decode([token], skip_special_tokens=False) or encoder.tokenizer.id_to_token(token) or f"<{token}>")


def _placed(row: Row, encoder: Encoder) -> tuple[str, list[int], list[Span], list[bool]]:
    """The rendered text, and of every token, also those cut from the row: its id, its place, whether it spells out a control text."""
    messages, stand_ins = encoder._shielded(encoder.template.with_system(row.record.messages))
    whole = encoder.template.render(messages, generation_prompt=False)
    edges = [0, len(whole)]
    if row.merged:  # the answer was encoded apart from its prompt
        edges.insert(1, len(encoder.template.render(messages[:-1], generation_prompt=True)))
    ids: list[int] = []
    places: list[Span] = []
    for start, end in pairwise(edges):
        more, at = encoder._encode_with_places(whole[start:end], stand_ins)
        ids += more
        places += [(a + start, b + start) for a, b in at]
    size = len(row.input_ids) + row.cut_tokens
    ids, places = ids[:size], places[:size]
    spelt = [b > a and whole[a] in stand_ins for a, b in places]
    moved = [0]
    for char in whole:
        moved.append(moved[-1] + len(stand_ins.get(char, char)))
    text = "".join(stand_ins.get(char, char) for char in whole)
    return text, ids, _without_gaps(text, [(moved[a], moved[b]) for a, b in places], [_raw(encoder, i) for i in ids]), spelt


def _without_gaps(text: str, places: list[Span], raws: list[str]) -> list[Span]:
    """Places that hold the blanks of their tokens: some tokenizers report them trimmed, or swallow the blanks after a control token."""
    out = list(places)
    for i in range(1, len(out)):
        (before, end), (start, stop) = out[i - 1], out[i]
        if end < start and not text[end:start].strip():
            if raws[i][:1].isspace():
                out[i] = (end, stop)
            else:
                out[i - 1] = (before, start)
    return out


def _parts(text: str, places: Sequence[Span], kinds: Sequence[tuple[Kind, bool]]) -> list[tuple[Kind, bool, str]]:
    of: list[tuple[Kind, bool]] = [("outside", False)] * len(text)
    for (start, end), kind in zip(places, kinds, strict=True):
        of[start:end] = [kind] * (end - start)
    runs = groupby(zip(of, text, strict=True), key=lambda pair: pair[0])
    return [(*kind, "".join(char for _, char in run)) for kind, run in runs]


# --- for the terminal ------------------------------------------------------------------------------------------------


def preview_text(row: Row, encoder: Encoder) -> Text:
    """Loss tokens on green, special tokens in yellow, everything else dim. Line breaks show as \\n and break."""
    text = Text()
    for token in shown_row(row, encoder).tokens:
        style = ("bold black on green" if token.loss else "dim") if not token.special else ("bold black on yellow" if token.loss else "yellow")
        text.append(token.text, style=style)
        if token.raw.endswith("\n"):
            text.append("\n")
    return text


def preview_counts(row: Row) -> str:
    """How many tokens, and what was done to them."""
    total = len(row.input_ids)
    said = f"{total} tokens: {row.prompt_tokens} prompt, {total - row.prompt_tokens} completion, {row.completion_tokens} carry loss"
    if row.cut_tokens:
        said += f"; {row.cut_tokens} more were cut from the beginning of the prompt"
    if row.merged:
        said += "; the tokenizer joins the end of the prompt with the beginning of the answer: the prompt that is served decides where it starts"
    return said
