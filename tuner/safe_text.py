"""The one way data reaches a terminal or a log line: control, bidi and invisible characters become visible.

It refuses to pass on any byte that could move a cursor, forge a line, or hide text. HTML is escaped by the report's templates.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: object, limit: int | None = None) -> str:
    """`text` on one line with every control, format, surrogate and private character written as an escape.

    With `limit`, at most that many characters, the cut marked by an ellipsis.
    """
    whole = str(text)
    cut = whole if limit is None or len(whole) <= limit else whole[: max(limit - 1, 0)]
    out = "".join(_shown(c) for c in cut)
    return out if cut is whole else out + "…"


def _shown(char: str) -> str:
    if char == "\n":
        return "\\n"
    if char == "\t":
        return "\\t"
    if unicodedata.category(char) in _HIDDEN:
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


def quoted(text: object, limit: int = 80) -> str:
    """`text` in single quotes, visible and cut to `limit`: how a found value is shown in a refusal."""
    return f"'{visible(text, limit)}'"
