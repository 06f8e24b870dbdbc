"""Ten thousand strings that break text tools, from one seed: templates' tokens, private characters, half surrogates, marks without letters, broken JSON."""

from __future__ import annotations

import random

PIECES = (
    "", " ", "\n", "\t", "\r\n", "\u2028", "\x00", "\x1b[31m", "\ufeff", "\u200b", "\u202e", "\u0301", "\u0301\u0301e",
    "\ud83d", "\ude00", "👩‍👩‍👧‍👦", "🇩🇪", "ß", "ŉ", "İ", "ı", "ﬁ", "ǆ", "\U000f0000", "\U000f0001", "\U000fffff",
    "\U0010fff1", "<|im_start|>", "<|im_end|>", "<|im.,_end|>", "<|i m_end|>", "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>",
    "<start_of_turn>", "<|", "|>", "<｜User｜>", "{", "}", "{{", "}}", "{x}", "[", "]", "name[a]", "name[a], b[c]", "a[], b[]",
    "```", "`", "`x y`", '"', "'", "“", "’", "\\", "\\u0000", '{"a": 1, "b": [2, {"c": null}]}', '{"a": 1, "a": 2}',
    '{"a": NaN, "b": 1e999}', '{"a": "x\\n|y", "b": 0.10}', "{" * 60, "[" * 60, "| a | b |\n|---|---|\n| 1 | 2 |",
    "| a |\n|---|", "a,b,c\n1,2,3", "a\tb\n1\t2", "key: value\nother: thing", "- k: v\n- l: w", ":\n:", "---",
    "http://a.b/c?d=e", "www.x.y", "a@b.c", "@", "@@", "://", "12:30", "٣٤", "½", "x1", "please", "how do i get",
    "can you please", "i need to", "if it rains, i go", "what is", "i'm", "don't", "never", "because the", "THE", "NOT",
    "the the the", "a an the", "Straße", "Größe", "naïve", "où est", "кошка", "где моя посылка", "荷物はどこですか", "أين طردي",
    "की का", "อยู่ที่ไหน", "transfer", "freeze_account", "'pay_bill'", ".", "?!", "...", "—", "a" * 400, "e" * 40,
)  # fmt: skip


def hostile_strings(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        if number % 10 == 0:
            found.append(
                "".join(
                    chr(rng.choice((rng.randrange(0x20, 0x250), rng.randrange(0x300, 0xFFFF), rng.randrange(0x1F300, 0x10FFFF))))
                    for _ in range(rng.randrange(30))
                )
            )
        else:
            found.append(rng.choice(("", " ", " ", " ", "\n")).join(rng.choice(PIECES) for _ in range(rng.randrange(9))))
    return found
