"""Instructions: as a choice among four replies (can it tell what was asked for?), and as questions whose answers a function checks (does it do it?).

The first is an ability, the second a behaviour: an adapter that was taught to answer with a label alone may keep the one and lose the other.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.evaluate.probe_kinds import Draft, drafted

_PHRASES = (
    "good morning", "thank you", "the blue house", "a cold winter", "our little dog", "the open door", "a cup of tea", "the old bridge", "my best friend",
    "the green field", "a long walk", "the last train", "some fresh bread", "an early start", "the quiet room", "a warm coat", "the red apple",
)  # fmt: skip
_FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum", "melon", "fig")
_CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Cairo", "Tokyo", "Lima", "Athens", "Dublin")
_KEYS = ("city", "name", "place", "town", "answer", "value", "label", "title")
_TOPICS = ("the sea", "winter", "bread", "a garden", "the moon", "a train", "music", "a dog", "rain", "a school", "a river", "tea")
_ENDINGS = ("today", "friend", "indeed", "always", "again", "goodbye", "together", "now")


@dataclass(frozen=True, slots=True)
class Instruction:
    """A question whose answer `followed` can judge: `rule` names a check of RULES, `wanted` is what it is given."""

    question: str
    rule: str
    wanted: Any


# --- a choice among four replies -----------------------------------------------------------------------------------


def chosen_reply(difficulty: int, draw: random.Random) -> Draft:
    """1: letters in one case; 2: a list in an order or with a separator; 3: a JSON object with a given key and value, or two demands at once."""
    return (_cased, _listed, _formed)[difficulty - 1](draw)


def _cased(draw: random.Random) -> Draft:
    phrase = draw.choice(_PHRASES)
    forms = {"in capital letters": phrase.upper(), "in small letters": phrase.lower(), "with every word capitalised": phrase.title()}
    how = draw.choice(list(forms))
    written = phrase.title() if how == "in small letters" else phrase
    return drafted(f'Write "{written}" {how}.', forms[how], [*forms.values(), phrase.swapcase().title().swapcase(), phrase[0].upper() + phrase[1:]], draw)


def _listed(draw: random.Random) -> Draft:
    fruits = draw.sample(_FRUITS, 3)
    separator, said = draw.choice([(", ", "commas"), ("; ", "semicolons"), (" - ", "dashes")])
    orders = [fruits, fruits[::-1], sorted(fruits), sorted(fruits, reverse=True)]
    how, wanted = draw.choice([("in this order", fruits), ("in reverse order", fruits[::-1])])
    replies = [mark.join(order) for mark in (", ", "; ", " - ") for order in orders]
    return drafted(f"Write {fruits[0]}, {fruits[1]}, {fruits[2]} {how}, separated by {said}.", separator.join(wanted), replies, draw)


def _formed(draw: random.Random) -> Draft:
    first, second = draw.sample(_KEYS, 2)
    city, other = draw.sample(_CITIES, 2)
    shown, wanted = draw.choice([(city, city), (f"{city} in capital letters", city.upper())])
    replies = [json.dumps({key: value}) for key in (first, second) for value in (city, city.upper(), other, other.upper())]
    question = f'Write a JSON object with the key "{first}" and the value {shown}. The city {other} and the key "{second}" are not wanted.'
    return drafted(question, json.dumps({first: wanted}), replies, draw)


# --- answers that a function checks --------------------------------------------------------------------------------


def followed(instruction: Instruction, answer: str) -> bool:
    """Does the answer do what was asked?"""
    return RULES[instruction.rule](answer.strip(), instruction.wanted)


def _words(answer: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", answer)


def _has_text(answer: str, wanted: Any) -> bool:
    """The very letters, in their case."""
    return str(wanted) in answer


def _has_word(answer: str, wanted: Any) -> bool:
    """The word in a sentence of at least three."""
    words = [w.lower() for w in _words(answer)]
    return len(words) > 2 and wanted in words


def _has_at_most(answer: str, wanted: Any) -> bool:
    return 0 < len(_words(answer)) <= int(wanted)


def _begins_with(answer: str, wanted: Any) -> bool:
    words = _words(answer)
    return len(words) > 1 and words[0].lower() == str(wanted)


def _has_field(answer: str, wanted: Any) -> bool:
    """A JSON object, with or without a code fence around it, in which the field has the value."""
    try:
        value = json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", answer))
    except (ValueError, RecursionError):
        return False
    (key, text), *_ = wanted.items()
    return isinstance(value, dict) and value.get(key) == text


def _in_order(answer: str, wanted: Any) -> bool:
    """All the words, in this order, whatever is between them."""
    left = iter(_words(answer.lower()))
    return all(word in left for word in wanted)


RULES: Mapping[str, Callable[[str, Any], bool]] = {
    "text": _has_text, "word": _has_word, "at_most": _has_at_most, "begins_with": _begins_with, "field": _has_field, "in_order": _in_order,
}  # fmt: skip


def _ask_capitals(draw: random.Random) -> Instruction:
    phrase = draw.choice(_PHRASES)
    return Instruction(f'Write "{phrase}" in capital letters.', "text", phrase.upper())


def _ask_words(draw: random.Random) -> Instruction:
    count = draw.randint(5, 12)
    return Instruction(f"Write at most {count} words about {draw.choice(_TOPICS)}.", "at_most", count)


def _ask_word(draw: random.Random) -> Instruction:
    word = draw.choice(_ENDINGS)
    return Instruction(f'Write one short sentence about {draw.choice(_TOPICS)} with the word "{word}" in it.', "word", word)


def _ask_beginning(draw: random.Random) -> Instruction:
    word = draw.choice(_ENDINGS)
    return Instruction(f'Write one short sentence about {draw.choice(_TOPICS)} that begins with the word "{word}".', "begins_with", word)


def _ask_object(draw: random.Random) -> Instruction:
    key, city = draw.choice(_KEYS), draw.choice(_CITIES)
    return Instruction(f'Write a JSON object with the key "{key}" and the value "{city}".', "field", {key: city})


def _ask_list(draw: random.Random) -> Instruction:
    fruits = draw.sample(_FRUITS, 3)
    return Instruction(f"Write these fruits as a numbered list: {', '.join(fruits)}.", "in_order", ["1", fruits[0], "2", fruits[1], "3", fruits[2]])


def _ask_repeat(draw: random.Random) -> Instruction:
    phrase = draw.choice(_PHRASES)
    return Instruction(f'Repeat these words: "{phrase}"', "text", phrase[1:])


INSTRUCTIONS: Mapping[str, Callable[[random.Random], Instruction]] = {
    "capitals": _ask_capitals, "words": _ask_words, "word": _ask_word, "beginning": _ask_beginning, "object": _ask_object, "list": _ask_list,
    "repeat": _ask_repeat,
}  # fmt: skip
