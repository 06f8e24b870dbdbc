"""Probes with numbers: sums, which of four is largest, and units."""

from __future__ import annotations

import random

from tuner.evaluate.probe_kinds import Draft, drafted, far, near


def arithmetic(difficulty: int, draw: random.Random) -> Draft:
    """1: small sums and differences, the others far off; 2: two digits, or a small product; 3: two operations, or a product of two digits and one."""
    if difficulty == 1:
        a, b = draw.randint(2, 12), draw.randint(2, 12)
        shown, value = draw.choice([(f"{a} + {b}", a + b), (f"{a + b} - {b}", a)])
    elif difficulty == 2:
        a, b = draw.randint(13, 60), draw.randint(13, 39)
        c, d = draw.randint(3, 9), draw.randint(3, 9)
        shown, value = draw.choice([(f"{a} + {b}", a + b), (f"{a + b} - {b}", a), (f"{c} * {d}", c * d)])
    else:
        a, b, c = draw.randint(12, 49), draw.randint(12, 49), draw.randint(3, 9)
        shown, value = draw.choice([(f"{a} * {c}", a * c), (f"{a} + {b} + {c}", a + b + c), (f"({a} + {b}) * {c}", (a + b) * c)])
    others = far(value, draw) if difficulty == 1 else near(value, draw)
    return drafted(f"What is {shown}?", str(value), others, draw, f"{shown} = {{}}")


def comparison(difficulty: int, draw: random.Random) -> Draft:
    """1: two-digit numbers far apart; 2: four-digit numbers that differ in one or two digits; 3: decimals of different lengths."""
    if difficulty == 1:
        numbers = [str(10 * tens + draw.randint(0, 9)) for tens in draw.sample(range(1, 10), 4)]
    elif difficulty == 2:
        stem = 100 * draw.randint(10, 99)
        numbers = [str(stem + n) for n in draw.sample(range(100), 4)]
    else:
        whole, digit = draw.randint(0, 9), draw.randint(1, 8)
        numbers = [f"{whole}.{digit}", f"{whole}.{digit}{draw.randint(1, 9)}", f"{whole}.{digit + 1}", f"{whole}.0{draw.randint(10, 99)}"]
        draw.shuffle(numbers)
    word, pick = draw.choice([("largest", max), ("smallest", min)])
    question = f"Which number is the {word}: {numbers[0]}, {numbers[1]}, {numbers[2]} or {numbers[3]}?"
    return drafted(question, pick(numbers, key=float), numbers, draw, f"The {word} number is {{}}.")


_PARTS = (  # (small, large, how many of the small one large one holds)
    ("minutes", "hours", 60), ("seconds", "minutes", 60), ("hours", "days", 24), ("days", "weeks", 7), ("months", "years", 12),
    ("metres", "kilometres", 1000), ("centimetres", "metres", 100), ("millimetres", "centimetres", 10), ("grams", "kilograms", 1000),
    ("millilitres", "litres", 1000), ("inches", "feet", 12), ("feet", "yards", 3),
)  # fmt: skip


def units(difficulty: int, draw: random.Random) -> Draft:
    """1: a few of the large unit in the small one, the others far off; 2: back to the large unit; 3: a large amount and a rest, in the small unit."""
    small, large, ratio = draw.choice(_PARTS)
    count = draw.randint(2, 9)
    if difficulty == 2:
        count = draw.randint(2, 15)
        reply = f"{ratio * count} {small} are {{}} {large}."
        return drafted(f"How many {large} are {ratio * count} {small}?", str(count), near(count, draw), draw, reply)
    if difficulty == 1:
        value = ratio * count
        return drafted(f"How many {small} are there in {count} {large}?", str(value), far(value, draw), draw, f"There are {{}} {small} in {count} {large}.")
    rest = draw.randint(1, ratio - 1)
    value, whole = ratio * count + rest, f"{count} {large} and {rest} {small}"
    wrong = [str(value + n * step) for step in {1, ratio // 10 or 1, ratio} for n in (-1, 1) if value + n * step > 0]
    return drafted(f"How many {small} are there in {whole}?", str(value), [*sorted(wrong), *near(value, draw)], draw, f"There are {{}} {small} in {whole}.")
