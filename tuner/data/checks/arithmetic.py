"""Equations between plain numbers written in text (`3 x $1,200 = $3,600`), and whether they hold.

It computes with exact fractions and its own parser; what it cannot read for certain (units, variables, dates) it leaves alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

_PLAIN_SYMBOLS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "\u00a0": " ", "$": None, "€": None, "£": None, "¥": None})
_SYMBOLS = r"0-9 .,+\-*/^()%$€£¥xX×·÷−–\u00a0"
_RUN = re.compile(rf"(?<![{_SYMBOLS}=])[{_SYMBOLS}]*+(?:=[{_SYMBOLS}]*+)+")  # tried once a run, possessive: linear in the text
_ANNOTATION = re.compile(r"<<([^<>=]{1,200})=([^<>=]{1,60})>>")
_TWO_NUMBERS = re.compile(r"\$?([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([-+*/x]) ?\$?([0-9]{1,12}(?:\.[0-9]{1,6})?)")
_ONE_NUMBER = re.compile(r"\$?([0-9]{1,12}(?:\.[0-9]{1,6})?)")
_BREAK = re.compile(r"(?:,(?! [0-9]{3}\b)|(?<=[^ ])\.) |  +")  # where prose ends and an equation may begin
_TIMES = re.compile(r"(?<=[0-9)%])( ?)[xX]\1(?=[$€£¥(]*[0-9.])")
_TOKEN = re.compile(r" *(?:([0-9][0-9.,]*|\.[0-9]+)|(\*\*|[-+*/^()%]))")
_NUMBER = re.compile(  # 1,000 and India's 1,00,000
    r"(?!0[0-9])[0-9]{1,40}(?:\.[0-9]{1,40})?|\.[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{2,3}){0,12},[0-9]{3}(?:\.[0-9]{1,40})?"
)
_DECIMAL_COMMA = re.compile(
    r"(?!0)[0-9]{1,3}(?:\.[0-9]{3}){1,12}(?:,[0-9]{1,40})?|(?!0[0-9])[0-9]{1,40}(?:,[0-9]{1,40})?"
)  # 1.000,50 as half of Europe writes it
_TOUCHING = re.compile(r"[\w\]}\\°²³_^:!'\"√|&<>#]$")
_CHANGES_MEANING = re.compile(
    r"\b(?:of|times|plus|minus|by|over|log|sqrt|root|mod|sin|cos|tan|ln|step|problem|question|day|part|chapter|example|exercise|base|than|to|and)$",
    re.IGNORECASE,
)
_OTHER_NOTATION = re.compile(r"[^\W\d_](?![^\W_])| ?(?:\(?(?:mod|base|in (?:binary|hex|base|octal))|[!²³/^\\_:]|r(?:emainder)? ?[0-9])", re.IGNORECASE)
_TIGHT_FRACTION = re.compile(r"(?<=[ (])([0-9]+/[0-9]+)(?=$|[ )])")  # `28 / 1/5` divides by a fifth
_UNIT = re.compile(r"[ -]?(?:[^\W\d_]|°|¢)")
_CONVERSIONS = frozenset(Fraction(n) for n in (3, 4, 7, 8, 10, 12, 16, 24, 30, 36, 52, 60, 100, 365, 1000, 1440, 1760, 2000, 3600, 5280, 86400, 10**6, 10**9))
_LONGEST, _DEEPEST, _LARGEST_POWER = 200, 12, 64

Exact: TypeAlias = int | Fraction


class Equation(NamedTuple):
    """The two sides as they stand in the text, and what the left one comes to."""

    left: str
    right: str
    value: Fraction


class _Reading(NamedTuple):
    """`20%` is a fifth, the number twenty (`8/10 x 100 = 80%`), or a fifth of what precedes it (`50 + 20% = 60`)."""

    percent: Literal["share", "number", "of_it"] = "share"
    decimal_comma: bool = False
    tight_fractions: bool = False


_USUAL = _Reading()


class _Unreadable(Exception):
    """Not an expression of plain numbers."""


def wrong_equations(text: str) -> Iterator[Equation]:
    """Equations of `text` that hold under no reading: neither rounded or cut to the shown digits, nor in per cent, nor as a known unit."""
    seen: set[tuple[str, str]] = set()
    for left, right, behind in _pairs(text):
        if left and right and (left, right) not in seen:
            seen.add((left, right))
            yield from _wrong(left, right, behind)


def _pairs(text: str) -> Iterator[tuple[str, str, str]]:
    """Both sides of every equals sign between numbers, and the words behind: first GSM8K's `<<48/2=24>>`, then the plain ones."""
    if "<<" in text:
        for left, right in _ANNOTATION.findall(text):
            yield left, right, ""
        text = _ANNOTATION.sub(" ", text)
    for run in _RUN.finditer(text):
        sides = run[0].split("=")
        before = text[max(run.start() - 12, 0) : run.start()]
        for left, right in itertools.pairwise(sides[:-1]):
            yield _closing_part(left, before), _opening_part(right), ""
            before = ""
        yield _closing_part(sides[-2], before), _opening_part(sides[-1]), text[run.end() : run.end() + 16]


def _closing_part(side: str, before: str) -> str:
    """The expression that `side` ends in; empty where it holds no operator, or the words `before` it change what it means."""
    pieces = _BREAK.split(side.rstrip(" *"))
    part = pieces[-1].strip()
    if len(pieces) == 1 and before:
        bullet = before.endswith("\n") and part[:2] in ("- ", "* ", "– ")
        if bullet:
            part = part[2:]
        elif _TOUCHING.search(before) if not side[:1].isspace() else _CHANGES_MEANING.search(before):
            return ""
    elif not before and part[:2] in ("- ", "* ", "– "):
        part = part[2:]
    return part.lstrip("*") if part[:2] == "**" or (part[:1] == "*" and part[1:2] != " ") else part


def _opening_part(side: str) -> str:
    return _BREAK.split(side.strip(" *"))[0].strip().rstrip(",.")


def _wrong(left: str, right: str, behind: str) -> Iterator[Equation]:
    """The equation, if both sides can be read and no reading makes them equal."""
    two, one = _TWO_NUMBERS.fullmatch(left), _ONE_NUMBER.fullmatch(right)
    if two and one and _agree_at_a_glance(float(two[1]), two[2], float(two[3]), float(one[1])):
        return
    if len(left) > _LONGEST or len(right) > _LONGEST or _OTHER_NOTATION.match(behind):
        return
    left_side, right_side = _balanced(_in_plain_symbols(left)), _balanced(_in_plain_symbols(right))
    if not any(c in "+-*/^" for c in left_side[1:]) or _is_range(left_side):
        return
    try:
        if not any(_agree(left_side, right_side, reading, bool(_UNIT.match(behind))) for reading in _readings(left_side + right_side)):
            yield Equation(left, right, Fraction(_value(left_side, _USUAL)))
    except (_Unreadable, ZeroDivisionError):
        return


def _agree_at_a_glance(a: float, sign: str, b: float, shown: float) -> bool:
    """The common case in binary floating point; where it says no, the exact reading decides."""
    if sign == "+":
        return a + b == shown
    if sign == "-":
        return a - b == shown
    return a * b == shown if sign in "*x" else b != 0 and a / b == shown


def _in_plain_symbols(side: str) -> str:
    return _TIMES.sub("*", side).translate(_PLAIN_SYMBOLS).strip()


def _balanced(side: str) -> str:
    """`side` without the brackets of the prose around it: `(5 + 3` of `(5 + 3 = 8)`."""
    surplus = side.count("(") - side.count(")")
    while surplus > 0 and side.startswith("("):
        side, surplus = side[1:], surplus - 1
    while surplus < 0 and side.endswith(")"):
        side, surplus = side[:-1], surplus + 1
    return side.strip()


def _is_range(side: str) -> bool:
    """`1990-1995` and `weeks 1-2` count, they do not subtract."""
    first, _, second = side.partition("-")
    return first.isdecimal() and second.isdecimal() and len(second) < 10 and int(first[:10]) < int(second)


def _readings(sides: str) -> Iterator[_Reading]:
    yield _USUAL
    if "%" in sides:
        yield _Reading(percent="number")
        yield _Reading(percent="of_it")
    if "," in sides or "." in sides:
        yield _Reading(decimal_comma=True)
    if sides.count("/") > 1:
        yield _Reading(tight_fractions=True)


def _agree(left: str, right: str, reading: _Reading, has_unit: bool) -> bool:
    try:
        wanted, shown = _value(left, reading), _value(right, reading)
    except _Unreadable:
        if reading is _USUAL:
            raise
        return False
    if wanted == shown or _near(Fraction(wanted), Fraction(shown), Fraction(_last_place(right, reading))):
        return True
    if has_unit and wanted and shown and (Fraction(wanted, shown) in _CONVERSIONS or Fraction(shown, wanted) in _CONVERSIONS):
        return True
    number = _TOKEN.match(right)  # `11 - 3 = 8 - 3 = 5` runs on: sloppy, not wrong
    return bool(number and number[1] and number.end() < len(right) and _value(number[1], reading) == wanted)


def _last_place(side: str, reading: _Reading) -> Exact:
    """What one unit in the last shown place is worth; zero for an expression, which has to be equal."""
    if side.isdecimal():
        return 1
    number = side.lstrip("-").removesuffix("%").strip()
    if not (_DECIMAL_COMMA if reading.decimal_comma else _NUMBER).fullmatch(number):
        return Fraction(0)
    places = len(number.partition("," if reading.decimal_comma else ".")[2])
    return Fraction(1, 10**places) / (100 if side.endswith("%") and reading.percent != "number" else 1)


def _near(wanted: Fraction, shown: Fraction, place: Fraction) -> bool:
    """Equal, rounded or cut to the shown place; whole numbers may be rounded up, as one counts buses. 1e-13: printed binary fractions."""
    gap = abs(wanted - shown)
    if gap * 10**13 <= abs(wanted) or gap * 2 <= place:
        return True
    return gap < place and (place >= 1 or abs(shown) < abs(wanted))


def _value(side: str, reading: _Reading) -> Exact:
    """What `side` comes to. Raises _Unreadable for anything that is not numbers, brackets and + - * / ^ %."""
    reader = _Reader(_TIGHT_FRACTION.sub(r"(\1)", side) if reading.tight_fractions else side, reading)
    value = reader.sum(0)
    if reader.at < len(reader.tokens):
        raise _Unreadable(side)
    return value


class _Reader:
    """Recursive descent over the tokens of one side; powers are small and brackets shallow, so no text can make it run long."""

    def __init__(self, side: str, reading: _Reading) -> None:
        self.reading = reading
        self.tokens = _tokens(side)
        self.at = 0

    def next_is(self, *signs: str) -> str:
        """Steps over the next token if it is one of `signs`, and returns it; empty otherwise."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if token in signs:
            self.at += 1
            return token
        return ""

    def sum(self, depth: int) -> Exact:
        negative = self.next_is("-")
        total = self.product(depth)
        total = -total if negative else total
        while sign := self.next_is("+", "-"):
            start = self.at
            term = self.product(depth)
            if self.reading.percent == "of_it" and self.at - start == 2 and self.tokens[self.at - 1] == "%":
                term *= total
            total = total + term if sign == "+" else total - term
        return total

    def product(self, depth: int) -> Exact:
        value = self.power(depth)
        while sign := self.next_is("*", "/"):
            factor = self.power(depth)
            value = value * factor if sign == "*" else Fraction(value, factor)
        return value

    def power(self, depth: int) -> Exact:
        base = self.number(depth)
        if not self.next_is("^", "**"):
            return base
        exponent = self.power(depth + 1)
        if exponent.denominator != 1 or not -_LARGEST_POWER <= exponent <= _LARGEST_POWER or base.numerator.bit_length() + base.denominator.bit_length() > 256:
            raise _Unreadable
        return Fraction(base) ** int(exponent)

    def number(self, depth: int) -> Exact:
        if depth > _DEEPEST or self.at >= len(self.tokens):
            raise _Unreadable
        if self.next_is("("):
            value = self.sum(depth + 1)
            if not self.next_is(")"):
                raise _Unreadable
        else:
            value = _number(self.tokens[self.at], self.reading.decimal_comma)
            self.at += 1
        if self.next_is("%") and self.reading.percent != "number":
            value = Fraction(value, 100)
        return value


def _tokens(side: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(side):
        match = _TOKEN.match(side, at)
        if not match or (match[1] and tokens and tokens[-1][-1] in "0123456789.,%)"):  # `1 1/2`, `3 (4)`: not for this reader
            raise _Unreadable
        if match[2] == "(" and tokens and tokens[-1][-1] in "0123456789.,%)":
            raise _Unreadable
        if match[2] == "-" and not tokens and side[match.end() : match.end() + 1] == " ":  # what it is taken from stands outside
            raise _Unreadable
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


def _number(token: str, decimal_comma: bool) -> Exact:
    if token.isdecimal() and len(token) < 40 and (token[0] != "0" or token == "0"):
        return int(token)
    token = token.rstrip(".,")
    if not (_DECIMAL_COMMA if decimal_comma else _NUMBER).fullmatch(token):
        raise _Unreadable
    return Fraction(token.replace(".", "").replace(",", ".") if decimal_comma else token.replace(",", ""))
