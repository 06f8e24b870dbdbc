"""Refusals, the table lookup behind "did you mean", and the one way text reaches a terminal."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import string
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tuner.catalog import choose, nearest, suggestion
from tuner.errors import SHOWN_PROBLEMS, Collector, Exit, Problem, Refusal, refuse
from tuner.safe_text import quoted, visible


def problems(count: int) -> list[Problem]:
    return [Problem(f"file.jsonl:{i}", f"field{i}", f"found {i}", f"accepted {i}", f"try {i}") for i in range(count)]


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_refusal_survives_pickling_with_every_field() -> None:
    before = Refusal(problems(13))
    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    for protocol in protocols:
        after = pickle.loads(pickle.dumps(before, protocol))
        assert type(after) is Refusal
        assert after.problems == before.problems and str(after) == str(before)
    assert len(protocols) >= 4


def test_a_refusal_raised_in_a_worker_process_arrives_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(refuse, "a.jsonl:3", "completion", "''", "text", "delete line 3")
        with pytest.raises(Refusal) as caught:
            future.result(timeout=60)
    assert caught.value.problems == (Problem("a.jsonl:3", "completion", "''", "text", "delete line 3"),)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 12, 250])
def test_ten_problems_are_shown_and_the_rest_are_counted(count: int) -> None:
    said = str(Refusal(problems(count)))
    shown = min(count, 10)
    assert SHOWN_PROBLEMS == 10
    assert said.count("\n  found     ") == said.count("\n  accepted  ") == said.count("\n  try       ") == shown
    assert [f"file.jsonl:{i} " in said for i in range(count)] == [i < 10 for i in range(count)]
    assert (f"... and {count - 10} more" in said) == (count > 10)
    assert (f"({count} in all)" in said) == (count > 10)


def test_a_problem_reads_place_found_accepted_try() -> None:
    assert Problem("a.jsonl:3", "output", "''", "text", "delete line 3").lines() == (
        "a.jsonl:3  output\n  found     ''\n  accepted  text\n  try       delete line 3"
    )
    assert Problem("a.jsonl", "", "0 bytes", "a record", "fill it").lines().split("\n")[0] == "a.jsonl"


def test_a_collector_raises_everything_in_order_and_nothing_when_empty() -> None:
    collector = Collector()
    collector.raise_if_any()
    for p in problems(3):
        collector.add(p.where, p.field, p.found, p.accepted, p.try_)
    with pytest.raises(Refusal) as caught:
        collector.raise_if_any()
    assert list(caught.value.problems) == problems(3)


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known() -> None:
    table = {"lora": 1, "dora": 2, "vera": 3}
    assert choose(table, "dora", "r.yaml", "method.kind") == 2
    with pytest.raises(Refusal) as caught:
        choose(table, "lorra", "r.yaml:4", "method.kind")
    (problem,) = caught.value.problems
    assert (problem.where, problem.field, problem.found) == ("r.yaml:4", "method.kind", "'lorra'")
    assert problem.accepted == "one of: dora, lora, vera" and problem.try_ == "write lora"
    assert nearest("zzzz", table) is None and suggestion("zzzz", table) == "use one of: dora, lora, vera"


# --- text on a terminal --------------------------------------------------------------------------------------------

# What may move a cursor, forge a line, change direction or hide, written down from the Unicode charts and not from unicodedata.
HIDDEN_RANGES = (
    (0x00, 0x1F), (0x7F, 0x9F),  # C0, DEL, C1
    (0xAD, 0xAD), (0x061C, 0x061C), (0x180E, 0x180E),  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x2064), (0x2066, 0x206F), (0xFEFF, 0xFEFF),  # zero width, lines, bidi, BOM
    (0xD800, 0xDFFF), (0xE000, 0xF8FF),  # surrogates, private use
    (0xFFF9, 0xFFFB), (0xE0001, 0xE0001), (0xE0020, 0xE007F),  # annotations, tags
)  # fmt: skip


def hidden() -> Iterator[str]:
    for first, last in HIDDEN_RANGES:
        yield from map(chr, range(first, last + 1))


def test_every_control_bidi_and_invisible_character_is_written_out() -> None:
    swept = 0
    for char in hidden():
        shown = visible(f"a{char}b")
        assert shown.isascii() and shown.isprintable(), hex(ord(char))
        assert shown.startswith("a\\") and shown.endswith("b")
        if char not in "\n\t":  # the escape is Python's own, so it names the character without doubt
            assert shown.encode("ascii").decode("unicode_escape") == f"a{char}b"
        swept += 1
    assert swept == sum(last - first + 1 for first, last in HIDDEN_RANGES) > 8000


ATTACKS = (
    "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "\x9b31m", "\x9d0;title\x9c", "\x90q\x9c",
    "\x1b]52;c;cm0gLXJm\x07", "\x1bP$q\x1b\\", "ok\rrefused", "a\x08\x08b", "line\nforged: all good", "\u202egnp.exe", "\u2066x\u2069",
    "zero\u200bwidth", "\ufeff", "\U000e0041\U000e0042", "\x00", "half \ud83d pair",
)  # fmt: skip


def test_no_raw_control_character_survives_in_any_mixture() -> None:
    banned = set(hidden())
    dice = random.Random(5)
    swept = 0
    for _ in range(400):
        pieces = dice.choices(ATTACKS, k=dice.randrange(1, 5)) + dice.choices(string.printable, k=dice.randrange(0, 9))
        dice.shuffle(pieces)
        for shown in (visible("".join(pieces)), visible("".join(pieces), 12), quoted("".join(pieces))):
            assert not banned & set(shown)
            shown.encode("utf-8")  # can be printed
            swept += 1
    assert swept == 1200
    assert all(not banned & set(visible(attack)) for attack in ATTACKS) and len(ATTACKS) == 18


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    for text in ("plain", "Größe 5 €", "日本語", "हिन्दी", "العربية", "emoji 😀", "e\u0301", "\u00a0", "back\\slash"):
        assert visible(text) == text


def test_a_limit_cuts_and_marks_the_cut() -> None:
    assert visible("abcdef", 6) == "abcdef"
    assert visible("abcdef", 5) == "abcd…"
    assert visible("\x00" * 100, 3) == "\\x00\\x00…"
    assert quoted("it's") == "'it's'" and quoted("x" * 200) == f"'{'x' * 79}…'"


def test_exit_codes_are_the_documented_ones() -> None:
    assert {e.name: int(e) for e in Exit} == {
        "GOOD": 0,
        "BUG": 1,
        "REFUSED": 2,
        "NOT_BETTER": 3,
        "UNDECIDED": 4,
        "RANK_LOST": 5,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
