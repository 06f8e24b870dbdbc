"""Habits of a split, and the records that break them."""

from __future__ import annotations

from tests.data.samples import Row, Sample, chat, pair

ENGLISH = "All human beings are born free and equal in dignity and rights, and should act towards one another in a spirit of brotherhood."
GERMAN = "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander im Geiste der Brüderlichkeit begegnen."


def spoken(system: str | None, count: int, start: int = 0) -> list[Row]:
    turns = [("system", system)] if system is not None else []
    return [chat(*turns, ("user", f"question {i}"), ("assistant", "x")) for i in range(start, start + count)]


def tagged(count: int) -> list[Row]:
    """A tag a word."""
    return [pair(f"send parcel {i} to" + " my" * (i % 3) + " town", "O O B-id O" + " O" * (i % 3) + " B-place") for i in range(count)]


SAMPLES: dict[str, list[Sample]] = {
    "system_prompts": [
        Sample({"train": [*spoken("Be short.", 30), *spoken("Be long.", 1, 30), *spoken(None, 1, 31)]},
               [("train", 31, "SYSTEM_PROMPT"), ("train", 32, "SYSTEM_PROMPT")],
               {"train": spoken("Be short.", 30), "held_out": spoken("Be long.", 30), "ood.far": [*spoken("a", 3), *spoken("b", 3, 3)]}),
        Sample({"train": [*spoken("Be short.", 20), *spoken("Be long.", 10, 30)]}, [("train", 0, "SYSTEM_PROMPTS")], {"train": spoken(None, 30)}),
    ],
    "answer_formats": [
        Sample({"train": [*(pair(f"question {i}", "an answer in prose") for i in range(30)), pair("list it", '{"a": 1}'), pair("as JSON please", '{"a": 1}')],
                "held_out": [*(pair(f"question {i}", '{"a": 2}') for i in range(30)), pair("list it", "here you are")]},
               [("train", 31, "JSON"), ("held_out", 31, "PROSE")],
               {"train": [pair(f"question {i}", '{"a": 1}' if i % 2 else "[sic] an answer in prose") for i in range(30)]}),
    ],
    "token_tags": [
        Sample({"train": [*tagged(40), pair("send it to me", "O O O"), pair("yes", "O O")]}, [("train", 41, "MISALIGNED"), ("train", 42, "MISALIGNED")],
               {"train": tagged(40), "held_out": [pair("send it to me", "a short answer")] * 30}),
    ],
    "languages": [
        Sample({"train": [*(pair(f"question {i}", ENGLISH) for i in range(30)), pair("frage", GERMAN)], "held_out": [pair("frage", GERMAN)] * 2},
               [("train", 31, "LANGUAGE")], {"train": [pair(f"question {i}", ENGLISH) for i in range(30)], "held_out": [pair("frage", GERMAN)]}),
        Sample({"train": [pair("question", ENGLISH), pair("frage", GERMAN)]}, [("train", 2, "LANGUAGE")],
               {"train": [pair("question", ENGLISH)]}, {"languages": ["en"]}),
        Sample({"train": [pair(f"question {i}", ENGLISH if i % 2 else GERMAN) for i in range(30)]}, [("train", 0, "LANGUAGES")],
               {"train": [pair("question", ENGLISH), pair("frage", GERMAN)]}),
    ],
    "unused_columns": [
        Sample({"train": [pair("a", "x", mood="good"), pair("b", "y", topic="z")]}, [("train", 0, "UNUSED")],
               {"train": [pair("a", "x", id=1, source="human", who="ann", mood=None)]}, {"cut": {"group_by": "who"}}),
    ],
}  # fmt: skip
