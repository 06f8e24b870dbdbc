"""JSON from somebody else's hand: read once, within bounds, with one meaning.

It refuses what parsers disagree on or break at: repeated keys, NaN and infinity, numbers too long, deep nesting, half surrogate pairs, other encodings.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

DEEPEST = 32
LONGEST_NUMBER = 64  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """Bytes that are not JSON as `parse` takes it; the message says why."""


def parse(data: bytes, most_bytes: int) -> Any:
    """The value of UTF-8 JSON. Raises Malformed."""
    if len(data) > most_bytes:
        raise Malformed(f"{len(data):,} bytes, more than {most_bytes:,}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"no UTF-8 at byte {error.start}") from None
    _refuse_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_fraction)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from None


def _refuse_depth(text: str) -> None:
    """Once over the text: a string without its end runs to the end of the text, where it is no JSON anyway."""
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', text, re.DOTALL):
        sign = token[0][0]
        if sign == '"':
            continue
        depth += 1 if sign in "[{" else -1
        if depth > DEEPEST:
            raise Malformed(f"nesting deeper than {DEEPEST}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Malformed(f"the key {key[:80]!r} twice")
        if _SURROGATE.search(key) or (isinstance(value, str) and _SURROGATE.search(value)):
            raise Malformed("half of a surrogate pair")
        found[key] = value
    return found


def _constant(name: str) -> NoReturn:
    raise Malformed(f"{name}, which is no number")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise Malformed(f"a number of {len(digits):,} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits) if len(digits) <= LONGEST_NUMBER else math.inf
    if not math.isfinite(value):
        raise Malformed(f"the number {digits[:20]}…, which is too large or too long")
    return value
