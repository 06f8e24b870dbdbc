"""Personal data and secrets in a text: a pattern proposes, then a check digit, a structure or a word nearby must agree.

It refuses to show what it finds: every view of a value is a mask from which the value cannot be rebuilt.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import phonenumbers

from tuner.catalog import choose
from tuner.safe_text import quoted

Group = Literal["personal", "secret"]
Span = tuple[int, int]
Spans = Callable[[str], Iterable[Span]]

WINDOW = 40  # characters before a number in which a word may say what it is
AFTER = 16  # characters behind it
EVERY = "all"

# No number of any kind stands in a text without five digits this close together; most texts end here.
_DIGITS = re.compile("[0-9](?:[A-Za-z \u00a0()./+-]{0,2}[0-9]){4}")
_LEFT = r"(?<![\w.+-])"
_RIGHT = r"(?![\w-]|[.,]\d)"
# "order no. 4155552671": the word directly before says that the digits number a thing, not a person.
_NUMBERED = re.compile(
    r"(?i)\b(?:orders?|invoice|ticket|tracking|parcel|shipment|part|sku|serial|ref(?:erence)?|isbn|issn|doi|ean|upc|asin|version|build|model|items?|product"
    r"|case|claim|policy|patent|commit|hash|transaction|booking|confirmation|(?<!\w[ -])id|uuid|timestamp|seed|flight)"
    r"[\"'*`]*\s*(?:no|nr|num|number|id|code)?s?[\"'*`]*\s*(?:is|was|of)?[\s:=.#\"'*`(]*$"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """Characters `start` to `end` of the text are personal data or a secret of this kind."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Kind:
    """`marks`: the kind is looked for only where one of these stands in the lower-cased text; without any, where digits do.

    `same` is the form in which two spellings of one value are equal; `shown` is its mask.
    """

    what: str
    group: Group
    spans: Spans
    marks: tuple[str, ...] = ()
    same: Callable[[str], str] = str
    shown: Callable[[str], str] = str


def find(text: str) -> list[Hit]:
    """All hits in order; where two overlap the longer one stays, of equally long ones the kind that comes first in KINDS."""
    hits = [Hit(name, start, end) for name in _plausible(text) for start, end in KINDS[name].spans(text)]
    return hits if len(hits) < 2 else _apart(text, hits)


def masked(text: str, hit: Hit) -> str:
    """The hit as it may be shown anywhere: 'j…@…', '4…1 (16 digits)', 'sk-…(51 characters)'."""
    return KINDS[hit.kind].shown(text[hit.start : hit.end])


def hide(text: str) -> str:
    """The text with every hit replaced by its mask, for printing an example."""
    return _replaced(text, find(text), lambda hit: masked(text, hit))


def masked_quote(text: object, limit: int = 80) -> str:
    """Text of a record as a finding quotes it: personal data masked before it is cut, control characters visible, in single quotes."""
    return quoted(hide(str(text)), limit)


class Redactor:
    """Replaces values by typed placeholders: one value, one placeholder, across every text it is given, numbered by first sight.

    `kinds` are names of KINDS, `personal`, `secret` or `all`. Raises Refusal for a name that is none of these.
    """

    def __init__(self, kinds: Iterable[str], where: object = "recipe"):
        self.kinds = frozenset(name for kind in kinds for name in choose(_CHOICES, kind, where, "data.redact"))
        self._numbers: dict[str, dict[str, int]] = {}

    def redact(self, text: str) -> tuple[str, Counter[str]]:
        """The text without values of the chosen kinds, and how many of each were replaced.

        It looks again until nothing is found: a value taken out brings the words around it nearer to the next one,
        and text that was redacted once must stay as it is when redacted again.
        """
        counts: Counter[str] = Counter()
        while hits := [hit for hit in find(text) if hit.kind in self.kinds]:
            counts.update(hit.kind for hit in hits)
            text = _replaced(text, hits, partial(self._placeholder, text))
        return text, counts

    def _placeholder(self, text: str, hit: Hit) -> str:
        numbers = self._numbers.setdefault(hit.kind, {})
        number = numbers.setdefault(KINDS[hit.kind].same(text[hit.start : hit.end]), len(numbers) + 1)
        return f"[{hit.kind.upper()}_{number}]"


def _plausible(text: str) -> Iterator[str]:
    """Names of the kinds that may be in the text at all; nearly always none."""
    lower = text.lower()
    for name, marks in _MARKED:
        for mark in marks:
            if mark in lower:
                yield name
                break
    if _DIGITS.search(text):
        yield from _NUMERIC


def _apart(text: str, hits: list[Hit]) -> list[Hit]:
    taken = bytearray(len(text))
    kept = [hit for hit in sorted(hits, key=lambda hit: (hit.start - hit.end, _ORDER[hit.kind], hit.start)) if _take(taken, hit.start, hit.end)]
    return sorted(kept, key=lambda hit: hit.start)


def _take(taken: bytearray, start: int, end: int) -> bool:
    """Mark the characters as taken, unless one of them is."""
    if any(taken[start:end]):
        return False
    taken[start:end] = b"\1" * (end - start)
    return True


def _replaced(text: str, hits: Iterable[Hit], by: Callable[[Hit], str]) -> str:
    parts, at = [], 0
    for hit in hits:
        parts += [text[at : hit.start], by(hit)]
        at = hit.end
    return "".join([*parts, text[at:]])


# --- what stands around a number -------------------------------------------------------------------------------------


def _said(words: re.Pattern[str], text: str, start: int, end: int) -> bool:
    """One of the words is near, and none nearer before says that a thing is being numbered."""
    before = text[max(0, start - WINDOW) : start]
    last = max((word.end() for word in words.finditer(before)), default=-1)
    numbered = _NUMBERED.search(before)
    return (last >= 0 or words.search(text[end : end + AFTER]) is not None) and (numbered is None or numbered.start() < last)


def _unnumbered(text: str, start: int) -> bool:
    return not _NUMBERED.search(text[max(0, start - WINDOW) : start])


def _digits(value: str) -> str:
    return "".join(c for c in value if "0" <= c <= "9")


def _compact(value: str) -> str:
    return "".join(c for c in value if c.isalnum()).upper()


# --- check digits ----------------------------------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B: every second digit from the right doubled, digit sums add up to a multiple of ten."""
    doubled = (int(c) if i % 2 == 0 else (2 * int(c) - 9 if c > "4" else 2 * int(c)) for i, c in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0


def mod_97(iban: str) -> bool:
    """ISO 7064 MOD 97-10 as ISO 13616 uses it: the first four characters go last, letters count from A = 10."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def mod_11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10, the hybrid system of the German Steuer-ID."""
    product = 10
    for c in digits[:-1]:
        product = ((int(c) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def verhoeff(digits: str) -> bool:
    """Verhoeff, Error Detecting Decimal Codes (1969): multiplication in the dihedral group D5, a permutation for each place."""
    check = 0
    for place, c in enumerate(reversed(digits)):
        check = _D5[check][_PERMUTED[place % 8][int(c)]]
    return check == 0


def weighted(digits: str, weights: Iterable[int]) -> int:
    return sum(int(c) * w for c, w in zip(digits, weights, strict=True))


_D5_ROWS = "0123456789 1234067895 2340178956 3401289567 4012395678 5987604321 6598710432 7659821043 8765932104 9876543210"
_PERMUTED_ROWS = "0123456789 1576283094 5803796142 8916043527 9453126870 4286573901 2793806415 7046913258"
_D5 = [[int(c) for c in row] for row in _D5_ROWS.split()]
_PERMUTED = [[int(c) for c in row] for row in _PERMUTED_ROWS.split()]


# --- numbers with a check digit of their own -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Number:
    """A pattern, a test of its digits and letters alone, and when the text around must say what it is.

    `words` say what it is. They are needed unless `shape`, the spelling that gives the kind away, matches the whole candidate.
    """

    pattern: re.Pattern[str]
    holds: Callable[[str], bool]
    words: re.Pattern[str]
    shape: re.Pattern[str] | None = None

    def __call__(self, text: str) -> Iterator[Span]:
        for match in self.pattern.finditer(text):
            start, end = match.span()
            if self.holds(_compact(match[0])) and self._placed(text, start, end):
                yield start, end

    def _placed(self, text: str, start: int, end: int) -> bool:
        if _said(self.words, text, start, end):
            return True
        return self.shape is not None and self.shape.fullmatch(text, start, end) is not None and _unnumbered(text, start)


def _number(pattern: str, holds: Callable[[str], bool], words: str, shape: str | None = None) -> _Number:
    return _Number(re.compile(_LEFT + pattern + _RIGHT, re.ASCII), holds, re.compile(rf"(?i)\b(?:{words})"), re.compile(shape) if shape else None)


_IIN = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_IBAN_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 "
    "GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
    "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)  # SWIFT IBAN registry, release 98


def _iban_body(length: int) -> re.Pattern[str]:
    """What follows the first four characters: one run, or groups of four."""
    fours, rest = divmod(length - 4, 4)
    grouped = rf"(?:[ -][A-Z0-9]{{4}}){{{fours}}}" + (rf"[ -][A-Z0-9]{{{rest}}}" if rest else "")
    return re.compile(rf"(?i:[A-Z0-9]{{{length - 4}}}|{grouped})(?![A-Za-z0-9])")


_IBAN_HEAD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9]{3})")
_IBAN_BODY = {country[:2]: _iban_body(int(country[2:])) for country in _IBAN_LENGTHS.split()}


def _ibans(text: str) -> Iterator[Span]:
    for head in _IBAN_HEAD.finditer(text):
        body = _IBAN_BODY.get(head[0][:2].upper())
        match = body.match(text, head.end()) if body else None
        if match and mod_97(_compact(head[0] + match[0])):
            yield head.start(), match.end()


def _card(digits: str) -> bool:
    return len(set(digits)) > 1 and _IIN.fullmatch(digits) is not None and luhn(digits)


_G = "[ \u00a0.-]"  # what may stand between groups of digits
_cards = _number(
    rf"(?:[0-9]{{14,19}}|[0-9]{{4}}({_G})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{3}})?|[0-9]{{4}}({_G})[0-9]{{6}}\2[0-9]{{4,5}})",
    _card,
    words="card|visa|mastercard|amex|american express|credit|debit|payment|pay|karte|carte|tarjeta",
    shape=r".*[^0-9].*|[3-6][0-9]{14,15}",
)


def _us_ssn(digits: str) -> bool:
    """SSA: no area 000, 666 or 9xx, no group 00, no serial 0000; nor the numbers printed so often that they are nobody's."""
    return not (digits[:3] in {"000", "666"} or digits[0] == "9" or digits[3:5] == "00" or digits[5:] == "0000") and digits not in _NOBODYS_SSN


_NOBODYS_SSN = {"078051120", "219099999", "457555462", "123456789", *(str(d) * 9 for d in range(10))}
_us_ssns = _number(r"[0-9]{3}([ -]?)[0-9]{2}\1[0-9]{4}", _us_ssn, words=r"ssns?\b|social security|soc\.? sec", shape=".*-.*")


def _uk_nino(value: str) -> bool:
    return value[:2] not in {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"}


_uk_ninos = _number(
    r"(?i:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]( ?)[0-9]{2}\1[0-9]{2}\1[0-9]{2}\1[A-D])",
    _uk_nino,
    words="nino?|national insurance|insurance n",
    shape="[A-Z0-9 ]*",
)


def _de_tax_id(digits: str) -> bool:
    """Of the first ten digits exactly one is there twice or thrice, the others at most once."""
    repeated = [n for n in Counter(digits[:10]).values() if n > 1]
    return digits[0] != "0" and repeated in ([2], [3]) and mod_11_10(digits)


_de_tax_ids = _number(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", _de_tax_id, words=r"steuer|idnr|identifikationsn|tax\b|tin\b")


def _es_dni(value: str) -> bool:
    """The letter is the number modulo 23; a NIE counts its first letter X, Y, Z as 0, 1, 2."""
    number = int({"X": "0", "Y": "1", "Z": "2"}.get(value[0], value[0]) + value[1:-1])
    return number > 0 and value[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]


_es_dnis = _number(
    r"(?i:[0-9]{8}[ -]?[A-Z]|[XYZ][ -]?[0-9]{7}[ -]?[A-Z])",
    _es_dni,
    words=r"dni\b|nie\b|nif\b|documento",
    shape="(?!(?:19|20)[0-9]{6})[0-9XYZ-]*[A-Z]",  # 20240115B begins with a date
)


def _fr_nir(value: str) -> bool:
    """Key = 97 minus the number modulo 97; Corsica's 2A and 2B count as 19 and 18. Months beyond 12 stand for unknown ones."""
    number = value[:13].replace("2A", "19").replace("2B", "18")
    month = int(value[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and 97 - int(number) % 97 == int(value[13:])


_fr_nirs = _number(
    r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
    _fr_nir,
    words=r"nir\b|s[ée]cu\b|s[ée]curit[ée] sociale|insee",
    shape=".*",
)

_CF = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CF_FIRST = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21]  # what 0 to 9 count at odd places, and again A to J
_CF_ODD = dict(zip(_CF, [*_CF_FIRST, *_CF_FIRST, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23], strict=True))
_CF_EVEN = dict(zip(_CF, [*range(10), *range(26)], strict=True))


def _it_codice_fiscale(value: str) -> bool:
    """D.M. 23/12/1976: characters at odd places count by one table, at even places by another; the sum modulo 26 is the last letter."""
    total = sum(_CF_ODD[c] for c in value[:15:2]) + sum(_CF_EVEN[c] for c in value[1:15:2])
    return value[15] == chr(ord("A") + total % 26)


_it_codici_fiscali = _number(
    r"(?i:[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z])", _it_codice_fiscale, words="codice fiscale", shape=".*"
)


def _nl_bsn(digits: str) -> bool:
    nine = digits.zfill(9)
    return len(set(nine)) > 1 and weighted(nine, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


_nl_bsns = _number(r"(?:[0-9]{8,9}|[0-9]{4}[ .][0-9]{2}[ .][0-9]{3}|[0-9]{3}[ .][0-9]{3}[ .][0-9]{3})", _nl_bsn, words="bsn|burgerservice|sofi")


def _in_aadhaar(digits: str) -> bool:
    return digits[0] in "23456789" and len(set(digits)) > 2 and verhoeff(digits)


_in_aadhaars = _number(r"[0-9]{4}([ -]?)[0-9]{4}\1[0-9]{4}", _in_aadhaar, words="aadh?aa?r|uidai|आधार")


def _br_cpf(digits: str) -> bool:
    """Two check digits: each the sum, weighted down to 2, times ten modulo eleven (ten counts as zero)."""
    return len(set(digits)) > 1 and all(weighted(digits[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 == int(digits[n]) for n in (9, 10))


_br_cpfs = _number(r"(?:[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}|[0-9]{11})", _br_cpf, words="cpf|cadastro", shape=".*-.*")


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _pl_pesel(digits: str) -> bool:
    """The month carries the century: 80 for 18xx, 0 for 19xx, 20 for 20xx, 40 and 60 beyond."""
    century, month = divmod(int(digits[2:4]), 20)
    date = _is_date((1800 if century == 4 else 1900 + 100 * century) + int(digits[:2]), month, int(digits[4:6]))
    return date and weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


_pl_pesels = _number(r"[0-9]{11}", _pl_pesel, words="pesel")


def _se_personnummer(digits: str) -> bool:
    """Luhn over the last ten digits; a coordination number adds 60 to the day. A century that is not written is taken to be 19 or 20."""
    ten, centuries = digits[-10:], [digits[:-10]] if len(digits) > 10 else ["19", "20"]
    month, day = int(ten[2:4]), int(ten[4:6])
    return luhn(ten) and any(_is_date(int(century + ten[:2]), month, day - 60 if day > 60 else day) for century in centuries if int(century + ten[:2]))


def _ten_digits(value: str) -> str:
    return _digits(value)[-10:]


_se_personnummers = _number(r"(?:18|19|20)?[0-9]{6}[-+]?[0-9]{4}", _se_personnummer, words="person(?:al )?n|samordnings", shape=".*[-+].*")


def _ca_sin(digits: str) -> bool:
    return digits[0] not in "08" and luhn(digits)


_ca_sins = _number(r"[0-9]{3}([ -]?)[0-9]{3}\1[0-9]{3}", _ca_sin, words=r"sin\b|social insurance|nas\b")


# --- telephone numbers -----------------------------------------------------------------------------------------------

_GAP = "[ \u00a0().\\-/]"
_ABROAD = re.compile(rf"(?a)(?<![\w.+=*^])(?:\+(?: (?=[1-9][0-9]{{0,2}}[ (-]))?|00)[1-9](?:{_GAP}{{0,3}}[0-9]){{6,14}}(?!\w)")
_NORTH_AMERICAN = re.compile(
    r"(?a)(?<![\w.+\-/=*])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}([.-]))[2-9][0-9]{2}(?(1)\1|[ .-])[0-9]{4}(?![\w=*+/]|[.-][0-9])"
)
_TRUNK = re.compile(
    r"(?a)(?<![\w.+\-/=*])(?:\(0[1-9][0-9]{0,4}\)|0[1-9][0-9]{0,4})(?: ?[/.-] ?| )[0-9]{2,8}(?:[ .-][0-9]{2,8}){0,4}(?![\w=*+/%]|[.:-][0-9]| [0-9])"
)
_LOOSE = re.compile(rf"(?a)(?<![\w.+=*$€£])\(?[0-9](?:{_GAP}{{0,2}}[0-9]){{7,14}}(?![\w%=*])")
_PHONE_WORDS = re.compile(
    r"(?i)\b(?:(?:tele|cell|smart)?phones?|tel|telefono?n?(?:nummer)?|tel[eé]fono|t[eé]l[eé]phone|telefone|mobile?|m[oó]vil|celular|cell(?:ular)?|handy(?:nummer)?"
    r"|whatsapp|viber|fax|(?:my|his|her|our|their) (?:new )?number|sms|call|(?:ring|text) (?:me|us|him|her|them)|dial|reach|contact|ph|mob)\b"
)
_NO_PHONE = re.compile(
    r"(?i)\b(?:account|acct|member|customer|zip|routing|licen[cs]e|pin|otp|barcode|amount|total)\s*(?:no|number|id|code)?\s*(?:is|was|of)?[\s:=.#]*$"
)
# Where a national number starts with 0, only such a number is national; elsewhere it never does.
_TRUNK_REGIONS = ("GB", "DE", "FR", "NL", "BE", "AT", "CH", "IT", "AU", "SE", "JP")
_PLAIN_REGIONS = ("US", "IN", "ES", "IT", "PL", "PT", "BR", "MX")


def _dialled(raw: str, strict: bool = False) -> str | None:
    """The number in E.164 form if a region has such a number; `strict`: and writes it in these groups."""
    spelt = "+" + raw[2:] if raw.startswith("00") else raw
    regions = (None,) if spelt.startswith("+") else _TRUNK_REGIONS if spelt.lstrip("(").startswith("0") else _PLAIN_REGIONS
    for region in regions:
        try:
            number = phonenumbers.parse(spelt, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number) and (not strict or _grouped(number) == re.findall("[0-9]+", raw)):
            return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return None


def _grouped(number: phonenumbers.PhoneNumber) -> list[str]:
    return re.findall("[0-9]+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))


def _shorter(raw: str) -> Iterator[str]:
    """The candidate, then without its last groups: '+1 415 555 2671 2023' ends in a year."""
    while len(_digits(raw)) >= 8:
        yield raw
        raw = raw[: max(raw.rfind(c) for c in " \u00a0.-/(") + 1].rstrip(" \u00a0.-/(")


def _phones(text: str) -> Iterator[Span]:
    taken = bytearray(len(text))
    return ((start, end) for start, end in _phone_spans(text) if not _counted_up(_digits(text[start:end])) and _take(taken, start, end))


def _counted_up(digits: str) -> bool:
    """1234567890, 9876543210, 5555555555 are nobody's: each digit differs from the one before by the same step."""
    return len({(int(b) - int(a)) % 10 for a, b in pairwise(digits[-9:])}) == 1


def _spoken_of(text: str, start: int) -> bool:
    before = text[max(0, start - WINDOW) : start]
    return bool(_PHONE_WORDS.search(before)) and not _NUMBERED.search(before) and not _NO_PHONE.search(before)


def _phone_spans(text: str) -> Iterator[Span]:
    """The most certain spelling first: with a country code, as in North America, with a leading 0, any other behind a word for telephones."""
    for match in _ABROAD.finditer(text) if "+" in text or "00" in text else ():
        raw = next(filter(_dialled, _shorter(match[0])), None)
        if raw and (not raw.isdigit() or _spoken_of(text, match.start())):
            yield match.start(), match.start() + len(raw)
    for match in _NORTH_AMERICAN.finditer(text):
        if _dialled(match[0]) and _unnumbered(text, match.start()):
            yield match.span()
    for match in _TRUNK.finditer(text):
        if 9 <= len(_digits(match[0])) <= 12 and _unnumbered(text, match.start()) and _dialled(match[0], strict="/" not in match[0]):
            yield match.span()
    if _PHONE_WORDS.search(text):
        for match in _LOOSE.finditer(text):
            raw = next(filter(_dialled, _shorter(match[0])), None) if _spoken_of(text, match.start()) else None
            if raw:
                yield match.start(), match.start() + len(raw)


def _same_phone(raw: str) -> str:
    return _dialled(raw) or _digits(raw)


# --- addresses -------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"(?a)(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9\u00df-\u00ff-]{1,63}\.)+([A-Za-z]{2,24})(?![\w-])")
_NOBODYS_DOMAIN = re.compile(
    r"(?i)(?:^|\.)(?:example\.(?:com?|org|net|edu)(?:\.\w\w)?|[\w-]+\.(?:example|test|invalid|localhost|local)|noreply\.[\w.-]+"
    r"|(?:your|my|some|any|other)-?\w*\.\w+|(?:domain|company|companyname|email|sample|test|foo|bar|placeholder|website|site|server|host|xyz|abc|acme)\.\w+)$"
)  # RFC 2606 and 6761, then what people write when they mean no one
_NOBODYS_NAME = re.compile(
    r"(?i)(?:git|no-?reply|do-?not-?reply|your\W?\w*|user(?:name)?|name|someone|x{2,}|e?mail|my[_.-]\w*|example\d*|test\d*|first\w*[._]?last\w*)@"
)
_FILE_ENDING = re.compile("(?i)png|jpe?g|gif|svg|webp|css|[jt]sx?|json|html|xml|ya?ml|txt|pdf|zip|exe")  # logo@2x.png


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        domain = match[0].partition("@")[2]
        if not (_FILE_ENDING.fullmatch(match[1]) or _NOBODYS_DOMAIN.search(domain) or _NOBODYS_NAME.match(match[0])):
            yield match.span()


_IPV4 = re.compile(r"(?a)(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.[0-9])")
_IPV6 = re.compile(r"(?ai)(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]{2,34}(?<!:)(?![\w:])")
_VERSION = re.compile(
    r"(?i)(?:\bv(?:er)?|versions?|releases?|build|rev(?:ision)?|firmware|driver|section|chapter|clause|paragraph|oid|identifier|[a-z0-9]/)[\s:=.(\"']*$"
)
_PRODUCT = re.compile(r"[A-Z][A-Za-z]{2,}[ -]$")  # "Acrobat 11.4.23.2"
_ADDRESS_WORDS = re.compile(r"(?i)\b(?:ip(?:v4)?|address|addr|host|server|ping|client|from|ssh|dns|at|to|inet)\b[\s:=.\"'`]*$")
_NOBODYS_IP = frozenset({"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9", "2606:4700:4700::1111", "2001:4860:4860::8888"})  # public resolvers


def _is_public(raw: str) -> bool:
    try:
        address = ipaddress.ip_address(raw)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and str(address) not in _NOBODYS_IP


def _is_version(raw: str, before: str) -> bool:
    """Four one-digit parts number a version or a section; a last part of 0 names a network or a version."""
    if len(raw) < 8 or raw.endswith(".0"):
        return True
    return not _ADDRESS_WORDS.search(before) and bool(_VERSION.search(before) or (len(raw) < 12 and _PRODUCT.search(before)))


def _ipv4s(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        if _is_public(match[0]) and not _is_version(match[0], text[max(0, match.start() - WINDOW) : match.start()]):
            yield match.span()


def _ipv6s(text: str) -> Iterator[Span]:
    return (match.span() for match in _IPV6.finditer(text) if match[0].count(":") > 2 and _is_public(match[0]))


# --- secrets ---------------------------------------------------------------------------------------------------------


def entropy_bits(value: str) -> float:
    """Shannon entropy per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


_MEANT_AS_EXAMPLE = re.compile(r"(?i)x{4,}|\*{3}|example|your|\.\.\.")


def _token(pattern: str) -> Spans:
    """A secret that its issuer marks by a prefix; the last group is what must look drawn at random."""
    compiled = re.compile(r"(?a)(?<![\w-])" + pattern + r"(?![A-Za-z0-9])")
    return lambda text: (m.span() for m in compiled.finditer(text) if entropy_bits(m[m.lastindex or 0]) >= 3 and not _MEANT_AS_EXAMPLE.search(m[0]))


_OPENAI = r"sk-(?:(?:proj|svcacct|admin|None|or-v1)-([\w-]{20,})|((?=[A-Za-z]*[0-9])[A-Za-z0-9]{20,}))"
_PEM = re.compile(r"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY(?: BLOCK)?)-----(?:(?:(?!-----BEGIN)[\s\S]){0,16384}?-----END \1-----|[A-Za-z0-9+/=\s\\:,-]*)")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{32}")


def _private_keys(text: str) -> Iterator[Span]:
    return (m.span() for m in _PEM.finditer(text) if _BASE64.search(m[0]))


_PLACEHOLDER = re.compile(
    r"(?i)^(?:[<\[{($%*#/~].*|.*(?:x{4,}|\*{3,}|\.\.\.|…|<|\$\{|\{\{|://|example|changeme|placeholder|redacted).*"
    r"|(?:your|my|some|the|an?|new|old|insert|enter|replace|put)[_\W].*"
    r"|(?:test|pass|passw|passwd|pwd|password|secret|token|key|admin|user|root|foo|bar|abc|abcdef|qwerty|letmein|welcome|p[a4@][s$]{2}w[o0]rd)[\d_!-]*"
    r"|null|none|true|false|undefined|[a-z_][\w-]*(?:\.[a-z_][\w-]*)+|(?-i:[A-Z]+_[A-Z0-9_]+))$"
)
_URL = re.compile(r"(?i)(?<!\w)[a-z][a-z0-9+.-]{1,15}://([^\s:/@\"'<>]{0,64}):([^\s/@\"'<>]{3,128})@[\w.-]*\w")
_ASSIGNED_MARKS = ("passw", "passphrase", "pwd", "pass:", "pass=", 'pass"', "pass'", "secret", "token", "api", "_key", " key", "-key", "skey")
_ASSIGNED = re.compile(
    r"(?:password|passwd|passwort|passphrase|pass(?=[\"'`]?[:=])|pwd|secret(?:[_ -]?(?:access[_ -]?)?key)?|token"
    r"|api[_ -]?key|access[_ -]?key|auth[_ -]?key|account[_ -]?key|encryption[_ -]?key|signing[_ -]?key)"
    r"[\"'`*]{0,3}\s{0,3}(?::=|=>|[:=]|\bis\b)\s{0,3}(?:\*\*|[\"'`]?)([^\s\"'`,;<>()]{6,200})"
)


def _url_credentials(text: str) -> Iterator[Span]:
    return (m.span() for m in _URL.finditer(text) if not _PLACEHOLDER.match(m[2]) and not _NOBODYS_DOMAIN.search(m[0].rpartition("@")[2]))


def _assigned(text: str) -> Iterator[Span]:
    """`password = ...` with a value that is not a word, a placeholder or a name in source code. The value alone is the hit."""
    lower = text.lower()  # without IGNORECASE the search is three times as fast
    for match in _ASSIGNED.finditer(lower if len(lower) == len(text) else text):
        start = match.start(1)
        value = text[start : match.end(1)].rstrip(".?*]}")
        end = start + len(value)
        if len(value) >= 6 and text[end : end + 1] not in {"(", "["} and _made_up(value):
            yield start, end


def _made_up(value: str) -> bool:
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and entropy_bits(value) >= 2.5 and not _PLACEHOLDER.match(value)


# --- masks -----------------------------------------------------------------------------------------------------------


def _ends(value: str) -> str:
    """First and last character; of what is between only how much it is."""
    kept = _compact(value)
    return f"{kept[0]}…{kept[-1]} ({len(kept)} {'digits' if kept.isdigit() else 'characters'})"


def _sized(prefix: str, value: str) -> str:
    return f"{prefix}…({len(value)} characters)"


def _shown_email(value: str) -> str:
    return f"{value[0]}…@…"


def _shown_url(value: str) -> str:
    return f"{value.partition('://')[0]}://…:…@…"


def _personal(what: str, spans: Spans, marks: tuple[str, ...] = (), same: Callable[[str], str] = _compact, shown: Callable[[str], str] = _ends) -> Kind:
    return Kind(what, "personal", spans, marks, same, shown)


def _secret(what: str, prefix: str, spans: Spans, *marks: str) -> Kind:
    """`prefix` is the part that is the same in every such secret: the only part that is shown."""
    return Kind(what, "secret", spans, marks or (prefix.lower(),), str, partial(_sized, prefix))


# The order is the order of trust: of two hits on the same characters the earlier kind stays.
KINDS: dict[str, Kind] = {
    "private_key": _secret("a private key in PEM form", "-----BEGIN", _private_keys, "private key"),
    "url_credential": Kind("a URL that carries a password", "secret", _url_credentials, ("://",), str, _shown_url),
    "jwt": _secret("a JSON web token", "eyJ", _token(r"(eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,})")),
    "aws_key": _secret("an AWS access key id", "A", _token(r"((?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16})"), "akia", "asia", "abia", "acca"),
    "github_token": _secret(
        "a GitHub token", "gh", _token(r"(?:gh[pousr]_([A-Za-z0-9]{36,255})|github_pat_(\w{82}))"), "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "_pat_"
    ),
    "gitlab_token": _secret("a GitLab token", "glpat-", _token(r"glpat-([\w-]{20,})")),
    "slack_token": _secret("a Slack token", "x", _token(r"(?:xox[abeoprs]|xapp)-((?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{10,})"), "xox", "xapp-"),
    "anthropic_key": _secret("an Anthropic API key", "sk-ant-", _token(r"sk-ant-([\w-]{20,})")),
    "openai_key": _secret("an OpenAI or OpenRouter API key", "sk-", _token(_OPENAI)),
    "google_key": _secret("a Google API key", "AIza", _token(r"AIza([\w-]{35})")),
    "stripe_key": _secret("a Stripe key", "", _token(r"[rs]k_(?:live|test)_([A-Za-z0-9]{16,})"), "k_live_", "k_test_"),
    "huggingface_token": _secret("a Hugging Face token", "hf_", _token(r"hf_([A-Za-z0-9]{30,})")),
    "npm_token": _secret("an npm token", "npm_", _token(r"npm_([A-Za-z0-9]{36})")),
    "pypi_token": _secret("a PyPI token", "pypi-", _token(r"pypi-(AgE[\w-]{50,})")),
    "sendgrid_key": _secret("a SendGrid API key", "SG.", _token(r"SG\.([\w-]{22}\.[\w-]{43})")),
    "azure_storage_key": _secret("an Azure storage account key", "AccountKey=", _token(r"AccountKey=([A-Za-z0-9+/]{86}==)")),
    "assigned_secret": _secret("a value given to a password, key or token", "", _assigned, *_ASSIGNED_MARKS),
    "email": _personal("an e-mail address", _emails, ("@",), str.casefold, _shown_email),
    "ip": _personal("a public IPv4 address", _ipv4s, same=str),
    "ipv6": _personal("a public IPv6 address", _ipv6s, (":",), str.lower),
    "iban": _personal("a bank account number (IBAN)", _ibans),
    "card": _personal("a payment card number", _cards),
    "it_codice_fiscale": _personal("an Italian codice fiscale", _it_codici_fiscali),
    "fr_nir": _personal("a French social security number (NIR)", _fr_nirs),
    "br_cpf": _personal("a Brazilian CPF", _br_cpfs),
    "us_ssn": _personal("a US social security number", _us_ssns),
    "es_dni": _personal("a Spanish DNI or NIE", _es_dnis),
    "uk_nino": _personal("a UK National Insurance number", _uk_ninos),
    "se_personnummer": _personal("a Swedish personnummer", _se_personnummers, same=_ten_digits),
    "in_aadhaar": _personal("an Indian Aadhaar number", _in_aadhaars),
    "de_tax_id": _personal("a German Steuer-ID", _de_tax_ids),
    "pl_pesel": _personal("a Polish PESEL", _pl_pesels),
    "nl_bsn": _personal("a Dutch BSN", _nl_bsns),
    "ca_sin": _personal("a Canadian social insurance number", _ca_sins),
    "phone": _personal("a telephone number", _phones, same=_same_phone),
}

_ORDER = {name: place for place, name in enumerate(KINDS)}
_MARKED = [(name, kind.marks) for name, kind in KINDS.items() if kind.marks]
_NUMERIC = [name for name, kind in KINDS.items() if not kind.marks]
_CHOICES: dict[str, tuple[str, ...]] = {
    EVERY: tuple(KINDS),
    "personal": tuple(name for name, kind in KINDS.items() if kind.group == "personal"),
    "secret": tuple(name for name, kind in KINDS.items() if kind.group == "secret"),
    **{name: (name,) for name in KINDS},
}
