"""Words of two scripts."""

from __future__ import annotations

from tests.data.samples import Sample, chat, pair

SAMPLES: dict[str, list[Sample]] = {
    "mixed_scripts": [
        Sample({"train": [pair("log in to p\u0430ypal", "no"), pair("Привет", "да"), pair("is it safe", "never, \u0410pple does not write")],
                "held_out": [chat(("system", "be short"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "micros\u043eft"))]},
               [("train", 1, "HOMOGLYPH"), ("train", 3, "HOMOGLYPH"), ("held_out", 1, "HOMOGLYPH")],
               {"train": [pair("Привет, paypal", "Δx is 5 μm"), pair("SMSка", "α-β"), pair("paypal", "Apple")]}),
    ],
}  # fmt: skip
