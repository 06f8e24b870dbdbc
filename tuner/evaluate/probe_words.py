"""Probes with words: days and months, who is before whom, and the letters of a word."""

from __future__ import annotations

import calendar as months
import datetime
import random
from itertools import pairwise

from tuner.evaluate.probe_kinds import Draft, drafted

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = tuple(months.month_name)[1:]  # English: no locale is set
_COUNTS = ("no", "one", "two", "three", "four", "five", "six")
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Jack", "Kate", "Laura", "Mark", "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tom")
_ORDERS = (  # (A is … than B, the most so, the least so)
    ("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"), ("richer", "richest", "poorest"),
    ("stronger", "strongest", "weakest"), ("heavier", "heaviest", "lightest"),
)  # fmt: skip
WORDS = (
    "basket", "candle", "dragon", "engine", "flower", "garden", "hammer", "island", "jacket", "kettle", "ladder", "market", "needle", "orange", "pencil",
    "rabbit", "school", "tunnel", "velvet", "window", "bridge", "castle", "doctor", "forest", "guitar", "insect", "jungle", "kitten", "lemon", "mirror",
    "number", "oyster", "planet", "rocket", "silver", "ticket", "violin", "winter", "yellow", "anchor", "button", "circle", "desert", "finger", "honey",
    "mountain", "notebook", "sandwich", "umbrella", "triangle", "elephant", "hospital", "language", "medicine", "chocolate", "butterfly", "telephone",
)  # fmt: skip
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def calendar(difficulty: int, draw: random.Random) -> Draft:
    """1: the day or month beside or between others, or by its number; 2: some days or months on; 3: the weekday of a later date."""
    if difficulty == 3:
        start = datetime.date(2001, 1, 1) + datetime.timedelta(draw.randrange(365 * 28))
        end = start + datetime.timedelta(draw.randint(5, 24))
        question = f"If {_written(start)} is a {DAYS[start.weekday()]}, what day of the week is {_written(end)}?"
        return drafted(question, DAYS[end.weekday()], DAYS, draw, f"{_written(end)} is a {{}}.")
    names, noun = draw.choice([(DAYS, "day"), (MONTHS, "month")])
    at = draw.randrange(len(names))
    side, way = draw.choice([("after", 1), ("before", -1)])
    if difficulty == 1:
        after, before, period = names[(at + 1) % len(names)], names[at - 1], "week" if noun == "day" else "year"
        said, answer = draw.choice([
            (f"comes right {side} {names[at]}", names[(at + way) % len(names)]), (f"is between {before} and {after}", names[at]),
            (f"is number {at + 1} of the {period}, if {names[0]} is number 1", names[at]),
        ])  # fmt: skip
        return drafted(f"Which {noun} {said}?", answer, names, draw, f"The {noun} that {said.partition(',')[0]} is {{}}.")
    count = draw.randint(2, 5)
    said = f"{_COUNTS[count]} {noun}s {side} {names[at]}"
    return drafted(f"Which {noun} is {said}?", names[(at + way * count) % len(names)], names, draw, f"{said[0].upper()}{said[1:]} is {{}}.")


def _written(date: datetime.date) -> str:
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"


def transitive_logic(difficulty: int, draw: random.Random) -> Draft:
    """Who is most or least so. 1: of two, beside two who are not spoken of; 2: of four, told in order; 3: of four, out of order and from either side."""
    people = draw.sample(NAMES, 4)  # people[0] is the most so
    more, most, least = draw.choice(_ORDERS)
    told = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    if difficulty == 1:
        answer, least_word = draw.choice([(people[0], more), (people[1], "less " + _plain(more))])
        return drafted(f"{told[0]} Who is {least_word}?", answer, people, draw, f"{{}} is {least_word}.")
    if difficulty == 3:
        told = [f"{b} is not as {_plain(more)} as {a}." if draw.random() < 0.5 else said for said, a, b in zip(told, people, people[1:], strict=False)]
        draw.shuffle(told)
    word, answer = draw.choice([(most, people[0]), (least, people[-1])])
    return drafted(f"{' '.join(told)} Who is the {word}?", answer, people, draw, f"The {word} is {{}}.")


def _plain(more: str) -> str:
    """The adjective of a comparative of this file: taller → tall, heavier → heavy."""
    return more[:-3] + "y" if more.endswith("ier") else more[:-2]


def string_operations(difficulty: int, draw: random.Random) -> Draft:
    """1: the first letter, which of four words begins so; 2: another letter by its place, the first by the alphabet; 3: backwards, or without a letter."""
    word = draw.choice(WORDS)
    kind = draw.randrange(2)
    if difficulty == 1:
        if kind:
            said = f'first letter of the word "{word}"'
            return drafted(f"What is the {said}?", word[0], _letters(word, word[0]), draw, f'The {said} is "{{}}".')
        words = _of_different_starts(draw)
        said = f'word that begins with the letter "{words[0][0]}"'
        return drafted(f"Which {said}: {', '.join(sorted(words))}?".replace("word that", "of these words"), words[0], words, draw, f'The {said} is "{{}}".')
    if difficulty == 2:
        if kind:
            place = draw.randrange(1, min(5, len(word)))
            said = f'{_ORDINALS[place]} letter of the word "{word}"'
            return drafted(f"What is the {said}?", word[place], _letters(word, word[place]), draw, f'The {said} is "{{}}".')
        words = _of_different_starts(draw)
        return drafted(f"Which of these words comes first in a dictionary: {', '.join(words)}?", min(words), words, draw, 'The first word is "{}".')
    if kind:
        return drafted(f'Spell the word "{word}" backwards.', word[::-1], _swapped(word[::-1]), draw, f'"{word}" backwards is "{{}}".')
    place = draw.randrange(1, len(word) - 1)
    removed = word[:place] + word[place + 1 :]
    others = [word[:i] + word[i + 1 :] for i in range(len(word))]
    said = f'"{word}" without its {_place(place)} letter'
    return drafted(f"Write the word {said}.", removed, others, draw, f'{said} is "{{}}".')


def _place(index: int) -> str:
    return _ORDINALS[index] if index < len(_ORDINALS) else f"{index + 1}th"


def _letters(word: str, answer: str) -> list[str]:
    """Other letters of the word, then of the alphabet: at least three."""
    own = [c for c in dict.fromkeys(word) if c != answer]
    return own if len(own) >= 3 else [*own, *(c for c in "aeioust" if c != answer and c not in own)]


def _of_different_starts(draw: random.Random) -> list[str]:
    letters = draw.sample(sorted({w[0] for w in WORDS}), 4)
    return [draw.choice([w for w in WORDS if w[0] == letter]) for letter in letters]


def _swapped(word: str) -> list[str]:
    """The word with two neighbouring letters exchanged, in every way that changes it."""
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1) if word[i] != word[i + 1]]
