"""report.html: one file that opens anywhere, with its style, script and pictures inside and no way to the network.

It refuses to let data be anything but text: every value is made visible, escaped, and kept to text nodes and quoted attributes;
a Content-Security-Policy allows the one style and the one script by their digests and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tuner.report import numbers
from tuner.report.sections import view
from tuner.safe_text import visible

HERE = Path(__file__).parent
LINE = 240  # characters of a name, a place, a found value
BLOCK = 20_000  # characters of a recipe or a system prompt


def html(report: dict[str, Any]) -> str:
    """The page of one report, from the content of report.json alone."""
    style, script = _part("report.css"), _part("report.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    return _environment().get_template("report.html.j2").render(**view(report), style=Markup(style), script=Markup(script), policy=policy)


def _part(name: str) -> str:
    return "\n" + (HERE / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    """The source expression that allows exactly this inline content (CSP Level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


@functools.cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"line": line, "block": block, "short": short_digest, "moment": moment} | {
        f.__name__: f
        for f in (
            numbers.value,
            numbers.signed,
            numbers.interval,
            numbers.signed_interval,
            numbers.p_value,
            numbers.count,
            numbers.seconds,
            numbers.quantity,
            numbers.signed_quantity,
        )
    }
    return made


def shown(value: object) -> object:
    """What every expression of the template passes through: text with its hidden characters visible, line ends kept."""
    if isinstance(value, Markup):
        return value
    return "\n".join(visible(part) for part in str(value).split("\n"))


def line(value: object, limit: int = LINE) -> str:
    """`value` on one line, cut to `limit` characters."""
    return visible(_cut(str(value), limit))


def block(value: object, limit: int = BLOCK) -> str:
    """`value` with its line ends, cut to `limit` characters; an empty one says so."""
    text = str(value)
    return _cut(text, limit) if text.strip() else f"(nothing: {len(text)} characters)"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… (cut: the first {limit:,} of {len(text):,} characters)"


def short_digest(digest: object) -> str:
    """The first twelve hexadecimal digits, as the model card shows them."""
    return line(str(digest).removeprefix("sha256:")[:12])


def moment(stamp: object) -> str:
    """An ISO 8601 time as people write it, to the minute; one that is not in UTC stays as it is."""
    text = str(stamp)
    return line(f"{text[:10]} {text[11:16]} UTC" if text.endswith("+00:00") and text[10:11] == "T" else text)
