"""Personal data and secrets. Every number is made up; check digits are right."""

from __future__ import annotations

from tests.data.samples import Sample, chat, pair

SAMPLES: dict[str, list[Sample]] = {
    "personal_data": [
        Sample({"train": [pair("write to anna.kowalska@brandtmail.net", "done"), pair("who is it", "me"), pair("pay", "with card 4539 1488 0343 6467"),
                          pair("transfer it to DE89 3704 0044 0532 0130 00", "a@brandtmail.net and b@brandtmail.net")]},
               [("train", 1, "EMAIL"), ("train", 3, "CARD"), ("train", 4, "IBAN"), ("train", 4, "EMAIL")],
               {"train": [pair("order no. 4539148803436467", "2024-05-06, 12:30, 3.14159"), pair("version 10.0.0.1", "see you at five")]}),
    ],
    "secrets": [
        Sample({"train": [pair("what is the key", "ASIAQ4GW5JTXM2RLK7BZ"), pair("who is it", "me")],
                "held_out": [chat(("system", "postgres://admin:h8Kq2vLx9@db.brandt.net/main"), ("user", "a"), ("assistant", "b"))]},
               [("train", 1, "AWS_KEY"), ("held_out", 1, "URL_CREDENTIAL")],
               {"train": [pair("what is a password", "a secret word that you type"), pair("show me a key", "AKIAIOSFODNN7EXAMPLE")]}),
    ],
}  # fmt: skip
