"""Generated probes: every answer is computed again from the words of its question, by other means than those that made it."""

from __future__ import annotations

import ast
import datetime
import json
import operator
import re
from collections import Counter

import pytest

from tuner.evaluate.probe_instructions import INSTRUCTIONS, RULES, Instruction, followed
from tuner.evaluate.probes import DIFFICULTIES, FAMILIES, Probe, generate, instructions

PROBES = [p for seed in (0, 1, 2) for p in generate(300, seed)]
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
YEAR = [datetime.date(2000, m, 1).strftime("%B") for m in range(1, 13)]
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
PLACES = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
IN_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800}
IN_MILLIMETRES = {"millimetres": 1, "centimetres": 10, "metres": 1000, "kilometres": 10**6}
IN_INCHES = {"inches": 1, "feet": 12, "yards": 36}
SCALES = [IN_SECONDS, IN_MILLIMETRES, IN_INCHES, {"grams": 1, "kilograms": 1000}, {"millilitres": 1, "litres": 1000}, {"months": 1, "years": 12}]
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def of(family: str) -> list[Probe]:
    found = [p for p in PROBES if p.family == family]
    assert len(found) >= 3 * 42
    return found


def value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return int(SIGNS[type(node.op)](value(node.left), value(node.right)))
    assert isinstance(node, ast.Constant)
    return int(node.value)  # type: ignore[arg-type]


def said(probe: Probe, pattern: str) -> str:
    """The answer's own words within its sentence."""
    found = re.fullmatch(pattern, probe.answer)
    assert found, probe
    return found[1]


def test_sums_are_right() -> None:
    for probe in of("arithmetic"):
        shown = re.fullmatch(r"What is (.+)\?", probe.question)
        assert shown
        assert probe.answer == f"{shown[1]} = {value(ast.parse(shown[1], mode='eval').body)}"


def test_the_largest_and_the_smallest_are() -> None:
    for probe in of("comparison"):
        numbers = re.findall(r"\d+(?:\.\d+)?", probe.question)
        word = "largest" if "largest" in probe.question else "smallest"
        wanted = sorted(numbers, key=float)[-1 if word == "largest" else 0]
        assert len({float(n) for n in numbers}) == 4
        assert probe.answer == f"The {word} number is {wanted}."


def test_days_and_months_are_right_by_datetime() -> None:
    for probe in of("calendar"):
        answer = probe.answer.rstrip(".").split()[-1]
        if probe.difficulty == 3:
            start, end = (datetime.datetime.strptime(d, "%d %B %Y") for d in re.findall(r"\d+ \w+ \d{4}", probe.question))
            assert start.strftime("%A") in probe.question
            assert answer == end.strftime("%A")
            continue
        names = WEEK if "day" in probe.question.split()[1] else YEAR
        named = [w for w in re.findall(r"\w+", probe.question) if w in names]
        if "between" in probe.question:
            assert (names.index(answer) - names.index(named[0])) % len(names) == 1
            assert (names.index(named[1]) - names.index(answer)) % len(names) == 1
        elif "number" in probe.question:
            assert names.index(answer) + 1 == int(re.findall(r"\d+", probe.question)[0])
        else:
            steps = next((n for word, n in COUNTS.items() if f" {word} " in probe.question), 1)
            assert names[(names.index(named[0]) + (steps if "after" in probe.question else -steps)) % len(names)] == answer


def test_units_are_right_by_a_common_smallest_unit() -> None:
    for probe in of("units"):
        asked = re.match(r"How many (\w+) are (?:there in )?(.+)\?", probe.question)
        assert asked
        scale = next(s for s in SCALES if asked[1] in s)
        total = sum(int(count) * scale[unit] for count, unit in re.findall(r"(\d+) (\w+)", asked[2]))
        numbers = [int(n) for n in re.findall(r"\d+", probe.answer)]
        given = [int(n) for n in re.findall(r"\d+", asked[2])]
        answer = list((Counter(numbers) - Counter(given)).elements()) or [numbers[0]]
        assert [n * scale[asked[1]] for n in answer] == [total], probe


def test_who_is_first_or_last_follows_from_what_is_told() -> None:
    opposites = {"shortest": "taller", "youngest": "older", "slowest": "faster", "poorest": "richer", "weakest": "stronger", "lightest": "heavier"}
    for probe in of("transitive_logic"):
        above = {(a, b) for a, b in re.findall(r"(\w+) is \w+er than (\w+)\.", probe.question)}
        above |= {(a, b) for b, a in re.findall(r"(\w+) is not as \w+ as (\w+)\.", probe.question)}
        people = {p for pair in above for p in pair}
        asked = probe.question.split("Who is ")[1].rstrip("?").split()[-1]
        low = asked in opposites or " less " in probe.question
        ends = [p for p in people if not any((b if not low else a) == p for a, b in above)]
        assert len(above) == (1 if probe.difficulty == 1 else 3)
        assert len(ends) == 1
        assert ends[0] in re.findall(r"\w+", probe.answer)
        if probe.difficulty > 1:
            assert all(re.search(r"\b(\w+)\.$", o)[1] in people for o in probe.options)  # type: ignore[index]


def test_letters_are_right() -> None:
    for probe in of("string_operations"):
        quoted = re.findall(r'"(\w+)"', probe.question)
        answer = re.findall(r'"(\w+)"', probe.answer)[-1]
        if "backwards" in probe.question:
            assert answer == "".join(reversed(quoted[0]))
        elif "without its" in probe.question:
            place = re.search(r"its (\w+) letter", probe.question)
            assert place
            at = PLACES.get(place[1]) or int(place[1].removesuffix("th"))
            letters = list(quoted[0])
            del letters[at - 1]
            assert answer == "".join(letters)
        elif "letter of" in probe.question:
            place = re.search(r"the (\w+) letter", probe.question)
            assert place
            assert answer == quoted[0][PLACES[place[1]] - 1]
        else:
            words = re.findall(r"\w+", probe.question.split(":")[1])
            if quoted:
                assert [w for w in words if w.startswith(quoted[0])] == [answer]
            else:
                assert sorted(words)[0] == answer


def test_the_chosen_reply_is_the_one_that_was_asked_for() -> None:
    for probe in of("instructions"):
        if probe.difficulty == 1:
            text = probe.question.split('"')[1]
            wanted = str.upper if "in capital letters" in probe.question else str.lower if "in small letters" in probe.question else str.title
            assert probe.answer == wanted(text)
        elif probe.difficulty == 2:
            words = re.match(r"Write (\w+), (\w+), (\w+) in", probe.question)
            assert words
            mark = {"commas": ", ", "semicolons": "; ", "dashes": " - "}[probe.question.rstrip(".").split()[-1]]
            assert probe.answer == mark.join(reversed(words.groups()) if "reverse" in probe.question else words.groups())
        else:
            key, city = re.search(r'the key "(\w+)" and the value (\w+)', probe.question).groups()  # type: ignore[union-attr]
            assert json.loads(probe.answer) == {key: city.upper() if "capital" in probe.question else city}


def test_every_probe_has_four_different_options_and_one_right_answer() -> None:
    assert len(PROBES) == 900
    for probe in PROBES:
        assert len(set(probe.options)) == 4
        assert probe.options[probe.right] == probe.answer
    places = Counter(p.right for p in PROBES)
    assert min(places.values()) > 150  # of 225: no place is the safe guess


@pytest.mark.parametrize("count", [21, 300, 1000])
def test_probes_are_all_different_and_the_same_again_for_the_same_seed(count: int) -> None:
    probes = generate(count, 7)
    assert probes == generate(count, 7)
    assert len({p.question for p in probes}) == count
    cells = Counter((p.family, p.difficulty) for p in probes)
    assert len(cells) == len(FAMILIES) * len(DIFFICULTIES) == 21
    assert max(cells.values()) - min(cells.values()) <= 1
    assert len({p.question for p in generate(count, 8)} - {p.question for p in probes}) > count / 3


FOLLOWING = {
    "text": ("THE BLUE HOUSE", 'Sure: "THE BLUE HOUSE"!', "The blue house"),
    "word": ("again", "The sea came in again at noon.", "The sea came in."),
    "at_most": (5, "Bread is warm and good.", "Bread is warm and good today."),
    "begins_with": ("today", "Today the sea is calm.", "The sea is calm today."),
    "field": ({"city": "Rome"}, '```json\n{"city": "Rome", "land": "Italy"}\n```', '{"city": "Paris"}'),
    "in_order": (["1", "fig", "2", "plum"], "1. Fig\n2. Plum", "1. Plum\n2. Fig"),
}


def test_every_rule_passes_an_answer_that_follows_and_fails_one_that_does_not_and_an_empty_one() -> None:
    assert set(FOLLOWING) == set(RULES)
    for rule, (wanted, good, bad) in FOLLOWING.items():
        asked = Instruction("?", rule, wanted)
        assert followed(asked, good)
        assert not followed(asked, bad)
        assert not followed(asked, "")


def test_instructions_are_different_and_of_every_kind() -> None:
    made = instructions(70, 0)
    assert len({i.question for i in made}) == 70
    assert made == instructions(70, 0)
    assert {i.rule for i in made} == set(RULES)
    assert len(instructions(100, 3)) == 100
    assert len(INSTRUCTIONS) == 7
    for one in made:
        shown = one.wanted if one.rule != "field" else next(iter(one.wanted.values()))
        assert all(str(w).lower().lstrip("0123456789") in one.question.lower() for w in (shown if isinstance(shown, list) else [shown]))
