"""Copies, one prompt with several answers, what stands in two splits."""

from __future__ import annotations

from tests.data.samples import Sample, chat, pair

SENTENCE = "the harbour master wrote every arrival into a heavy green book before the evening bell rang over the frozen quay"  # 20 words
EDITED = SENTENCE.replace("evening", "morning")  # 3 of 18 shingles gone: Jaccard 15 / 21
LONG = f"{SENTENCE} and then walked home through the narrow lanes behind the old fish market without speaking to anyone at all"
LONG_EDITED = LONG.replace("narrow", "crooked")  # 3 of 38 shingles: 35 / 41
ANSWER = "he kept a careful record of all the ships that came in that winter, which nobody else in the town had thought of doing"
ANSWER += " and his daughter, who kept the lighthouse after him, gave the books to the museum"
ANSWER_EDITED = ANSWER.replace("nobody", "no one")
OTHER = "write a short poem about the sea"

GOOD = [pair("how are you", "fine"), pair("who is it", "me"), pair("what now", "fine")]
CLEAN = {"train": GOOD, "validation": [pair("where from", "here")], "held_out": [pair("where to", "me")], "ood.far": [pair("how far", "me")]}

SAMPLES: dict[str, list[Sample]] = {
    "exact_duplicates": [
        Sample({"train": [pair("a", "x"), pair("b", "y"), pair("a", "x"), pair("a", "x", id=7), pair("a", "z"), pair("A", "x")],
                "held_out": [pair("a", "x"), pair("q", "x"), pair("q", "x")]},
               [("train", 3, "DUPLICATE"), ("train", 4, "DUPLICATE"), ("held_out", 3, "DUPLICATE")], CLEAN),
        Sample({"train": [chat(("system", "one"), ("user", "q"), ("assistant", "x")), chat(("system", "two"), ("user", "q"), ("assistant", "x")),
                          chat(("system", "one"), ("user", "q"), ("assistant", "x"))]}, [("train", 3, "DUPLICATE")], CLEAN),
    ],
    "near_duplicates": [
        Sample({"train": [pair(LONG, ANSWER), pair(OTHER, "no"), pair(LONG_EDITED, ANSWER), pair(LONG.upper() + "!", ANSWER + "."), pair(LONG, "no")],
                "held_out": [pair(OTHER, ANSWER), pair(OTHER, ANSWER_EDITED)]},
               [("train", 3, "NEAR"), ("train", 4, "SAME_WORDS"), ("held_out", 2, "NEAR")],
               {"train": [pair(LONG, ANSWER), pair(LONG, ANSWER), pair(SENTENCE, "yes"), pair(EDITED, "yes"), pair(LONG_EDITED, "another answer altogether"),
                          pair("???", "yes"), pair("!!!", "yes")],
                "held_out": [pair(LONG_EDITED, ANSWER)]}),
        Sample({"train": [chat(("system", system), ("user", LONG), ("assistant", ANSWER)) for system in ("Be kind.", "be kind")]},
               [("train", 2, "SAME_WORDS")],
               {"train": [chat(("system", system), ("user", LONG), ("assistant", ANSWER)) for system in ("Be kind.", "Be brief.")]}),
        Sample({"train": [pair("क्या लड़का घर जाता है", "हाँ"), pair("क्या लड़का, घर जाता है?", "हाँ")]}, [("train", 2, "SAME_WORDS")],
               {"train": [pair("क्या लड़का घर जाता है", "हाँ"), pair("क्या लड़की घर जाती है", "हाँ")]}),
    ],
    "contradictions": [
        Sample({"train": [pair("a", "x"), pair("b", "y"), pair(" A ", "z"), pair("a", "X")], "held_out": [pair("c", "1"), pair("b", "2")]},
               [("train", line, "CONTRADICTION") for line in (1, 3, 4)], CLEAN, {"references": "one"}),
        Sample({"train": [pair("a", "yes"), pair("a", "no")], "validation": [pair("a", "yes")]}, [("train", line, "CONTRADICTION") for line in (1, 2)],
               {"train": [pair("a", "yes"), pair("A", "Yes"), pair("b", "no")]}, {"task": "label"}),
        Sample({"train": [pair("a", '{"x": 1}'), pair("a", '{"x": 2}')]}, [("train", line, "CONTRADICTION") for line in (1, 2)],
               {"train": [chat(("system", "one"), ("user", "a"), ("assistant", "{}")), chat(("system", "two"), ("user", "a"), ("assistant", '{"x": 2}'))]},
               {"task": "json"}),
        Sample({"train": [*(pair(f"question {i}", "it is red") for i in range(38)), pair("question 3", "it is not red"), pair("question 5", "or blue")]},
               [("train", 4, "CONTRADICTION"), ("train", 39, "CONTRADICTION"), ("train", 6, "DIFFERENT_ANSWERS"), ("train", 40, "DIFFERENT_ANSWERS")],
               {"train": [pair(f"question {i % 10}", f"answer {i}") for i in range(20)]}),
    ],
    "near_contradictions": [
        Sample({"train": [pair(LONG, "yes"), pair(OTHER, "no"), pair(LONG_EDITED, "no")], "held_out": [pair(LONG, "no")]},
               [("train", 3, "NEAR_CONTRADICTION")],
               {"train": [pair(LONG, "yes"), pair(LONG_EDITED, "Yes"), pair(SENTENCE, "no"), pair(EDITED, "yes")]}, {"task": "label"}),
        Sample({"train": [chat(("system", "Say it in French."), ("user", LONG), ("assistant", "oui")),
                          chat(("system", "Say it in French!"), ("user", LONG), ("assistant", "non"))]}, [("train", 2, "NEAR_CONTRADICTION")],
               {"train": [chat(("system", "Say it in French."), ("user", LONG), ("assistant", "oui")),
                          chat(("system", "Say it in Spanish."), ("user", LONG), ("assistant", "si"))]}, {"references": "one"}),
    ],
    "overlap": [
        Sample({"train": [pair("a", "x"), pair("b", "y"), pair("A", "z")], "validation": [pair("c", "x")],
                "held_out": [pair("a", "x"), pair("c", "q"), pair("a", "y")], "ood.far": [pair("d", "x"), pair("b", "y")]},
               [("train", 1, "OVERLAP"), ("train", 3, "OVERLAP"), ("validation", 1, "OVERLAP"), ("train", 2, "OVERLAP")],
               CLEAN | {"ood.near": [pair("how far", "again")]}),
    ],
    "near_overlap": [
        Sample({"train": [pair(OTHER, "no"), pair(LONG_EDITED, ANSWER), pair(LONG, "no"), pair(LONG_EDITED, ANSWER_EDITED)],
                "held_out": [pair(LONG + " today", ANSWER)], "ood.far": [pair("what " + LONG_EDITED, "no")]},
               [("train", 2, "NEAR_OVERLAP"), ("train", 3, "NEAR_OVERLAP"), ("train", 4, "NEAR_OVERLAP")],
               {"train": [pair(LONG, ANSWER), pair(LONG_EDITED, "no"), pair(SENTENCE, "yes")],
                "held_out": [pair(LONG, ANSWER), pair(LONG + " today", "yes"), pair(EDITED, "yes")]}),
    ],
    "leakage": [
        Sample({"train": [pair(OTHER, "no"), pair("tell me about the harbour", f"In those days {LONG}.")],
                "held_out": [pair("what is said of the book", SENTENCE), pair("quote ten words", " ".join(SENTENCE.split()[:10]))],
                "ood.far": [pair(SENTENCE, "why")]},
               [("held_out", 1, "LEAK"), ("ood.far", 1, "LEAK")],
               {"train": [pair("tell me about the harbour", LONG), *(pair(f"number {i}", f"{ANSWER} {i}") for i in range(6))],
                "held_out": [pair("what is said", " ".join(SENTENCE.split()[:12])), pair("how was it", ANSWER), pair(LONG_EDITED[:60], "x")]}),
    ],
    "group_overlap": [
        Sample({"train": [pair("a", "x", who="ann"), pair("b", "x", who=7), pair("c", "x")],
                "held_out": [pair("d", "x", who="ann"), pair("e", "x", who="bob"), pair("f", "x", who="ann"), pair("g", "x")],
                "ood.far": [pair("h", "x", who="7")]},
               [("held_out", 1, "GROUP"), ("held_out", 3, "GROUP"), ("ood.far", 1, "GROUP")],
               {"train": [pair("a", "x", who="ann"), pair("b", "x", who="None")],
                "held_out": [pair("c", "x", who="bob"), pair("d", "x"), pair("e", "x", who="bob")]},
               {"cut": {"group_by": "who"}}),
    ],
    "repeated_ids": [
        Sample({"train": [pair("a", "x", id="k1"), pair("b", "x", id="k2"), pair("c", "x", id="k1"), pair("d", "x"), pair("e", "x", id="k1")],
                "held_out": [pair("f", "x", id="k2")]},
               [("train", 3, "REPEATED_ID"), ("train", 5, "REPEATED_ID")],
               {"train": [pair("a", "x", id=1), pair("b", "x", id=2), pair("c", "x", id=None), pair("d", "x", id=None)], "held_out": [pair("e", "x", id=1)]}),
    ],
}  # fmt: skip
