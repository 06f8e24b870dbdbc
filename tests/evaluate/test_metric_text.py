"""Text metrics against the libraries, scripts and papers that define them."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence

import numpy as np
import pytest

from tuner.evaluate.metrics import METRICS, Answer


def value(name: str, answers: Sequence[Answer]) -> float:
    metric = METRICS[name]
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


def one(name: str, said: str, *wanted: str) -> float:
    return value(name, [Answer(wanted, said)])


def test_exact_match_ignores_case_width_and_spacing_only() -> None:
    assert one("exact_match", "  PIN\u00a0Change\n", "pin change") == 1
    assert one("exact_match", "pin_change.", "pin_change") == 0
    assert one("exact_match", "b", "a", "b") == 1


def squad_normalised(s: str) -> str:
    """The official evaluate-v1.1.py of SQuAD, as published."""

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def test_normalised_match_equals_squads_own_script() -> None:
    rng = random.Random(2)
    words = ["the", "The", "an", "Dog", "dog.", "cat", "U.S.", "a-b", "x!", "theory"]
    agreed = 0
    for _ in range(400):
        wanted = rng.choice(words[3:]) + " " + rng.choice(words)
        said = " ".join(rng.choice(words) for _ in range(2)) if rng.random() < 0.5 else f"the {wanted.upper()}!"
        theirs = squad_normalised(said) == squad_normalised(wanted)
        assert one("normalised_match", said, wanted) == theirs
        agreed += theirs
    assert 100 < agreed < 350


def test_an_article_alone_is_not_matched_by_nothing() -> None:
    assert one("normalised_match", "", "The") == 0 and one("normalised_match", "an", "The") == 0 and one("normalised_match", "the", "The") == 1


@pytest.mark.parametrize(("said", "wanted", "found"), [
    ("The answer is Paris.", "paris", 1), ("Parisian", "paris", 0), ("in New  York City", "new york", 1), ("art", "a", 0), ("a, b", "a", 1),
    ("cat concat", "concat", 1), ("答えは東京です", "東京", 1), ("C++ and C", "c++", 1), ("use C", "c++", 0), ("", "", 1), ("x", "", 0),
    ("snake_case", "case", 1), ("v1.2", "1.2", 0),
])  # fmt: skip
def test_contains_wants_whole_words(said: str, wanted: str, found: float) -> None:
    assert one("contains", said, wanted) == found


def naive_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize(("wanted", "said", "f1"), [  # rouge-score 0.1.2, RougeScorer(["rougeL"]); the first two are the example of Lin 2004, §3.1
    ("police killed the gunman", "police kill the gunman", 0.75),
    ("police killed the gunman", "the gunman kill police", 0.5),
    ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.", 0.5882352941176471),
])  # fmt: skip
def test_rouge_l_equals_rouge_score_on_published_examples(wanted: str, said: str, f1: float) -> None:
    assert one("rouge_l", said, wanted) == pytest.approx(f1, abs=1e-12)


def test_rouge_l_equals_a_naive_longest_common_subsequence() -> None:
    rng = random.Random(4)
    for _ in range(200):
        said, *wanted = [[rng.choice(["a", "B", "c1", "d-e", "f."]) for _ in range(rng.randint(0, 15))] for _ in range(3)]
        tokens = [re.findall("[a-z0-9]+", " ".join(words).lower()) for words in (said, *wanted)]
        best = 0.0
        for reference in tokens[1:]:
            both = naive_lcs(tokens[0], reference)
            precision, recall = both / max(len(tokens[0]), 1), both / max(len(reference), 1)
            f1 = 2 * precision * recall / (precision + recall) if both else float(not tokens[0] and not reference)
            best = max(best, f1)
        assert one("rouge_l", " ".join(said), *(" ".join(w) for w in wanted)) == pytest.approx(best)


def test_rouge_l_reads_words_of_all_scripts() -> None:
    assert one("rouge_l", "le café noir", "le café") == pytest.approx(0.8)
    assert one("rouge_l", "東京都", "東京") == pytest.approx(0.8)


def test_chrf_is_sacrebleus_sentence_score() -> None:
    from sacrebleu.metrics import CHRF

    answers = [Answer(("The Vaults is a pub.", "A pub called The Vaults."), "The Vaults, a pub"), Answer(("x",), "y")]
    theirs = np.mean([CHRF().sentence_score(a.text or "", list(a.references)).score / 100 for a in answers])
    assert value("chrf", answers) == pytest.approx(float(theirs))


def test_chrf_is_the_value_of_sacrebleus_command_line() -> None:
    """sacrebleu ref1 -i hyp -m chrf --sentence-level -w 4 on the corpus below: 100.0000, 24.7380 and 34.8401."""
    answers = [Answer((a,), s) for s, a in zip(SAID, FIRST, strict=True)]
    assert 100 * value("chrf", answers) == pytest.approx((100.0 + 24.7380 + 34.8401) / 3, abs=1e-4)


# sacrebleu's README, "Using SacreBLEU from Python"; its command line gives 48.530827 with both references (sacrebleu ref1 ref2 -i hyp -w 6)
SAID = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
FIRST = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
SECOND = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def test_bleu_is_the_value_of_sacrebleus_command_line() -> None:
    answers = [Answer((a, b), s) for s, a, b in zip(SAID, FIRST, SECOND, strict=True)]
    assert 100 * value("bleu", answers) == pytest.approx(48.530827, abs=1e-6)


def said(rng: random.Random, fewest: int) -> str:
    return " ".join(rng.choices(["a", "b", "c", "d", "e", ",", "f."], k=rng.randint(fewest, 9)))


def test_bleu_equals_sacrebleu_on_random_corpora_and_subsets_of_them() -> None:
    from sacrebleu.metrics import BLEU

    rng = random.Random(6)
    metric = METRICS["bleu"]
    for _ in range(40):
        answers = [Answer((said(rng, 1), said(rng, 1)), said(rng, 0)) for _ in range(rng.randint(1, 15))]
        streams = [[a.references[i] for a in answers] for i in range(2)]
        theirs = BLEU().corpus_score([a.text or "" for a in answers], streams).score / 100
        assert value("bleu", answers) == pytest.approx(theirs, abs=1e-9)
        parts = metric.parts(answers)
        many = metric.combine(np.stack([parts.sum(axis=0), parts[:1].sum(axis=0)]))
        assert many.shape == (2,) and many[0] == pytest.approx(theirs, abs=1e-9)


def test_distinct_n_is_the_share_of_different_n_grams_within_an_answer() -> None:
    assert one("distinct_1", "no no no no", "x") == 0.25
    assert one("distinct_2", "a b a b a", "x") == pytest.approx(2 / 4)
    assert one("distinct_2", "yes", "x") == 1 and one("distinct_2", "", "x") == 0
    assert value("distinct_2", [Answer(("x",), "a b c"), Answer(("x",), "z z z")]) == pytest.approx((1 + 0.5) / 2)


def test_length_ratio_is_of_sums_against_the_nearest_reference_and_takes_no_side() -> None:
    answers = [Answer(("1234567890", "12345"), "123456"), Answer(("12",), "1234")]
    assert value("length_ratio", answers) == pytest.approx((6 + 4) / (5 + 2))
    assert METRICS["length_ratio"].neutral
