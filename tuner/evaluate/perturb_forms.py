"""The same structured input in another order or form: JSON objects, `name[value]` lists, `key: value` lines, Markdown and CSV tables.

Values move as they are written, so numbers, names and codes survive. Text that has no such structure is put into an envelope instead.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["json", "brackets", "lines", "markdown", "csv"]

_BRACKET = r"[A-Za-z][\w ]{0,40}\[[^\[\]]*\]"
_BRACKETS = re.compile(rf"\s*{_BRACKET}(?:\s*,\s*{_BRACKET})+\s*")
_BRACKET_FIELD = re.compile(r"([A-Za-z][\w ]{0,40})\[([^\[\]]*)\]")
_LINE = re.compile(r"^(?P<mark>[ \t]*(?:[-*•][ \t]+)?)(?P<key>[^\W\d_][\w \-/()]{0,40}):[ \t]+(?P<value>\S.*)$")
_RULE = re.compile(r"^\s*\|?\s*:?-{3,}:?\s*(?:\|\s*:?-{3,}:?\s*)*\|?\s*$")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_DECODER = json.JSONDecoder()
_LONGEST = 20_000  # characters of a question in which structure is looked for


@dataclass(frozen=True, slots=True)
class Form:
    """A structured part of a question: `rows` of values under `keys`, with the text before and after. JSON values are raw JSON.

    A JSON object, a bracket list and lines have one row.
    """

    kind: Kind
    keys: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    before: str = ""
    after: str = ""
    sign: str = ""  # the lines' bullet, the CSV's separator


def find_form(text: str) -> Form | None:
    """The structured input a question consists of or holds; None for prose."""
    if len(text) > _LONGEST:
        return None
    for reader in (_brackets, _json, _markdown, _csv, _lines):
        form = reader(text)
        if form is not None and len(form.keys) > 1 and len(set(form.keys)) == len(form.keys):
            return form
    return None


def _brackets(text: str) -> Form | None:
    if not _BRACKETS.fullmatch(text):
        return None
    pairs = _BRACKET_FIELD.findall(text)
    return Form("brackets", tuple(k.strip() for k, _ in pairs), (tuple(v for _, v in pairs),))


def _json(text: str) -> Form | None:
    """The first JSON object of the text, each value as it is written."""
    start = text.find("{")
    if start < 0:
        return None
    pairs, at = [], start + 1
    try:
        while True:
            key, at = _DECODER.raw_decode(text, _blank(text, at))
            at = _blank(text, at)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                return None
            begin = _blank(text, at + 1)
            _, at = _DECODER.raw_decode(text, begin)
            pairs.append((key, text[begin:at]))
            at = _blank(text, at)
            if text[at : at + 1] != ",":
                break
            at += 1
    except (ValueError, RecursionError):
        return None
    if text[at : at + 1] != "}":
        return None
    return Form("json", tuple(k for k, _ in pairs), (tuple(v for _, v in pairs),), text[:start], text[at + 1 :])


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\t", "\r"):
        at += 1
    return at


def _lines(text: str) -> Form | None:
    """The longest run of lines `key: value`, at least two."""
    lines = text.split("\n")
    found = [_LINE.match(line) for line in lines]
    best = (0, 0)
    start = 0
    for i in range(len(lines) + 1):
        if i == len(lines) or found[i] is None:
            best = max(best, (i - start, -start))
            start = i + 1
    size, start = best[0], -best[1]
    run = [m for m in found[start : start + size] if m is not None]
    if size < 2 or len({m["mark"] for m in run}) > 1:
        return None
    before = "".join(f"{line}\n" for line in lines[:start])
    after = "".join(f"\n{line}" for line in lines[start + size :])
    return Form("lines", tuple(m["key"] for m in run), (tuple(m["value"] for m in run),), before, after, run[0]["mark"])


def _markdown(text: str) -> Form | None:
    lines = text.split("\n")
    rule = next((i for i, line in enumerate(lines) if i and "|" in lines[i - 1] and _RULE.match(line)), None)
    if rule is None:
        return None
    stop = rule + 1
    while stop < len(lines) and "|" in lines[stop]:
        stop += 1
    keys = _cells(lines[rule - 1])
    rows = [_cells(line) for line in lines[rule + 1 : stop]]
    if not rows or any(len(r) != len(keys) for r in rows):
        return None
    return Form("markdown", keys, tuple(rows), "".join(f"{x}\n" for x in lines[: rule - 1]), "".join(f"\n{x}" for x in lines[stop:]))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(c.strip() for c in line.strip().removeprefix("|").removesuffix("|").split("|"))


def _csv(text: str) -> Form | None:
    """The whole text as a table without quotes: a header of words, at least one row, every line with as many cells."""
    lines = text.strip("\n").split("\n")
    if len(lines) < 2 or '"' in text:
        return None
    for sign, least in (("\t", 1), (";", 1), (",", 2)):
        table = [tuple(line.split(sign)) for line in lines]
        header = table[0]
        if len(header) > least and all(len(r) == len(header) for r in table) and all(k.strip() and not k[:1].isspace() and len(k) < 40 for k in header):
            return Form("csv", header, tuple(table[1:]), sign=sign)
    return None


# --- writing -------------------------------------------------------------------------------------------------------


def _words(key: str) -> str:
    """`familyFriendly` and `family_friendly` as `family friendly`."""
    return _CAMEL.sub(" ", key).replace("_", " ").strip().lower() if not key.isupper() else key


def _plain(form: Form) -> Form:
    """The same with values as text instead of raw JSON; numbers, lists and objects stay as written."""
    return form if form.kind != "json" else replace(form, rows=tuple(tuple(_text_of(v) for v in row) for row in form.rows))


def _text_of(raw: str) -> str:
    value = json.loads(raw)
    return value if isinstance(value, str) and value.strip() and "\n" not in value and "|" not in value else raw


def _as_json(form: Form) -> str:
    def of(row: tuple[str, ...]) -> str:
        values = row if form.kind == "json" else [json.dumps(v, ensure_ascii=False) for v in row]
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in zip(form.keys, values, strict=True)) + "}"

    return of(form.rows[0]) if len(form.rows) == 1 else "[" + ",\n ".join(of(r) for r in form.rows) + "]"


def _as_brackets(form: Form) -> str:
    return ", ".join(f"{k}[{v}]" for k, v in zip(form.keys, _plain(form).rows[0], strict=True))


def _as_lines(form: Form) -> str:
    mark = form.sign if form.kind == "lines" else ""
    return "\n\n".join("\n".join(f"{mark}{k}: {v}" for k, v in zip(form.keys, row, strict=True)) for row in _plain(form).rows)


def _as_markdown(form: Form) -> str:
    table = [form.keys, tuple("---" for _ in form.keys), *_plain(form).rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _as_csv(form: Form) -> str:
    sign = form.sign if form.kind == "csv" else ","
    return "\n".join(sign.join(row) for row in (form.keys, *_plain(form).rows))


def _as_prose(form: Form) -> str:
    """`What is known: name is X; near is Y.`, one sentence a row."""
    rows = ["; ".join(f"{_words(k)} is {v.strip()}" for k, v in zip(form.keys, row, strict=True)) + "." for row in _plain(form).rows]
    return " ".join(("What is known: " if i == 0 else "Also known: ") + row for i, row in enumerate(rows))


_WRITERS: dict[Kind, Callable[[Form], str]] = {"json": _as_json, "brackets": _as_brackets, "lines": _as_lines, "markdown": _as_markdown, "csv": _as_csv}


def written(form: Form) -> str:
    """The question again, its structure as it now is."""
    return form.before + _WRITERS[form.kind](form) + form.after


def field_order(text: str, rng: random.Random, severity: int) -> str | None:
    """1: two neighbouring fields (columns of a table) change places; 2: the later half comes first; 3: all in reverse. None for prose."""
    form = find_form(text)
    if form is None:
        return None
    count = len(form.keys)
    order = list(range(count))
    at = rng.randrange(count - 1)
    if severity == 1:
        order[at], order[at + 1] = order[at + 1], order[at]
    else:
        order = order[count // 2 :] + order[: count // 2] if severity == 2 else order[::-1]
    moved = replace(form, keys=_ordered(form.keys, order), rows=tuple(_ordered(r, order) for r in form.rows))
    return written(moved)


def _ordered(values: Sequence[str], order: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[i] for i in order)


def surface(text: str, _rng: random.Random, severity: int) -> str | None:
    """Structured input: 1 as lines (lines as a bracket list), 2 as JSON, 3 as prose; a JSON object 2 as prose, 3 as a Markdown table. Prose: 1 in quotes,
    2 as a forwarded message, 3 as a field of a JSON object.
    """
    form = find_form(text)
    if form is None:
        return _enveloped(text, severity)
    heavier = (_as_prose, _as_markdown) if form.kind == "json" else (_as_json, _as_prose)
    write = (_as_brackets if form.kind == "lines" else _as_lines, *heavier)[severity - 1]
    new = write(form)
    return form.before + new + form.after


def _enveloped(text: str, severity: int) -> str:
    """No greeting, no thanks, no name: nothing that a label could be about."""
    body = text.strip()
    if severity == 1:
        return f'Message: "{body}"'
    if severity == 2:
        return "---------- Forwarded message ----------\nSubject: (none)\nContent-Type: text/plain\n\n" + "\n".join(f"> {line}" for line in body.split("\n"))
    fields = {"type": "message", "channel": "web form", "format": "plain text", "status": "received", "attachments": [], "text": body}
    return json.dumps(fields, ensure_ascii=False, indent=2)
