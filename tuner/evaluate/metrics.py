"""Metrics as sums: each turns an answer into a few numbers, and a suite's value is a function of their totals.

So a resample of items is a weighted sum, every metric gets its interval the same way, and anyone can re-compute it from
answers.jsonl. It refuses answers without references.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuner.data.record import normalised

Sums = NDArray[np.float64]
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What one contender said to one item, or the loss it gave to the references (nats, tokens and UTF-8 bytes summed over them)."""

    references: tuple[str, ...]
    text: str | None = None
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Metric:
    """One row of the catalogue.

    `parts(answers)` gives (n, k) numbers; `combine` maps their sums (..., k) to values (...). `of` says whether it grades the
    text of an answer or the loss of the references. A `binary` metric is a share of items.
    """

    what: str
    parts: Callable[[Sequence[Answer]], Sums]
    combine: Callable[[Sums], Sums]
    of: Literal["text", "loss"] = "text"
    higher_is_better: bool = True
    binary: bool = False
    best: float = 1.0


def _mean(sums: Sums) -> Sums:
    """Last column counts items."""
    return sums[..., 0] / sums[..., 1]


def _per_item(score: Callable[[Answer], float]) -> Callable[[Sequence[Answer]], Sums]:
    return lambda answers: np.array([[score(a), 1.0] for a in answers], dtype=np.float64).reshape(-1, 2)


# --- text ----------------------------------------------------------------------------------------------------------


def exact_match(answer: Answer) -> float:
    """1 if the answer equals a reference after NFKC, case folding and collapsing white space."""
    return float(normalised(answer.text or "") in {normalised(r) for r in answer.references})


def token_f1(answer: Answer) -> float:
    """F1 of the bags of words, best over references (Rajpurkar et al. 2016, SQuAD; words split on white space after normalising)."""
    return max(_bag_f1(normalised(answer.text or "").split(), normalised(r).split()) for r in answer.references)


def _bag_f1(said: list[str], wanted: list[str]) -> float:
    common = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (len(said) + len(wanted))


def chrf(answer: Answer) -> float:
    """Sentence chrF (Popović 2015: character 6-grams, beta 2), best over references, by sacrebleu; 0 to 1."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(answer.text or "", list(answer.references)).score) / 100


def _label_parts(answers: Sequence[Answer]) -> Sums:
    """For each label that occurs among the references: true positives, false positives, false negatives, occurrences."""
    labels = sorted({normalised(a.references[0]) for a in answers})
    column = {label: i for i, label in enumerate(labels)}
    parts = np.zeros((len(answers), 4 * len(labels)))
    for row, answer in enumerate(answers):
        wanted, said = column[normalised(answer.references[0])], column.get(normalised(answer.text or ""))
        parts[row, 4 * wanted + 3] = 1
        parts[row, 4 * wanted + (0 if said == wanted else 2)] = 1
        if said is not None and said != wanted:
            parts[row, 4 * said + 1] = 1
    return parts


def _macro_f1(sums: Sums) -> Sums:
    """Mean over labels of 2tp / (2tp + fp + fn), over the labels whose references occur in the (re)sample."""
    by_label = sums.reshape(*sums.shape[:-1], -1, 4)
    tp, fp, fn, count = (by_label[..., i] for i in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(count > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
    return np.asarray(np.nanmean(f1, axis=-1))


# --- JSON ----------------------------------------------------------------------------------------------------------


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None: strictly, without NaN, repeated keys or nesting deeper than 100."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _depth(value) <= MAX_DEPTH else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key twice")
    return table


def _no_constant(word: str) -> Any:
    raise ValueError(word)


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level: no recursion on what a model may have said."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return depth


def fields(value: Any, path: str = "") -> Counter[tuple[str, str]]:
    """Every leaf of a JSON value as (path, value), list positions left out: the unit of field F1."""
    if isinstance(value, dict):
        return sum((fields(v, f"{path}.{k}") for k, v in value.items()), Counter())
    if isinstance(value, list):
        return sum((fields(v, f"{path}[]") for v in value), Counter())
    return Counter({(path, json.dumps(value, ensure_ascii=False)): 1})


def json_valid(answer: Answer) -> float:
    """1 if the answer is one JSON object and nothing else."""
    return float(parse_object(answer.text or "") is not None)


def json_exact(answer: Answer) -> float:
    """1 if the answer's object equals a reference's, whatever the order of keys."""
    said = parse_object(answer.text or "")
    return float(said is not None and any(_canonical(said) == _canonical(parse_object(r)) for r in answer.references))


def _canonical(value: Any) -> str:
    """One text for equal JSON, in which 1 and true differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _field_parts(answers: Sequence[Answer]) -> Sums:
    """Fields said and wanted, said and not wanted, wanted and not said, against the nearest reference."""
    rows = []
    for answer in answers:
        said = fields(parse_object(answer.text or "") or {})
        options = []
        for reference in answer.references:
            wanted = fields(parse_object(reference) or {})
            both = sum((said & wanted).values())
            options.append((both, sum(said.values()) - both, sum(wanted.values()) - both))
        rows.append(max(options, key=lambda o: (o[0] - o[1] - o[2], o[0])))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _micro_f1(sums: Sums) -> Sums:
    whole = 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.where(whole > 0, 2 * sums[..., 0] / np.maximum(whole, 1), 1.0)


# --- loss ----------------------------------------------------------------------------------------------------------


def _loss_parts(answers: Sequence[Answer]) -> Sums:
    return np.array([[a.nats, a.tokens, a.bytes] for a in answers], dtype=np.float64).reshape(-1, 3)


def _nats_per_token(sums: Sums) -> Sums:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _bits_per_byte(sums: Sums) -> Sums:
    """Sum of nats / (ln 2 · UTF-8 bytes): comparable between tokenizers (Gao et al. 2020, The Pile, arXiv 2101.00027)."""
    return sums[..., 0] / (math.log(2) * np.maximum(sums[..., 2], 1))


METRICS: dict[str, Metric] = {
    "exact_match": Metric("share of answers equal to a reference after NFKC, case folding and collapsing white space",
                          _per_item(exact_match), _mean, binary=True),
    "macro_f1": Metric("mean F1 over the labels of the references", _label_parts, _macro_f1),
    "token_f1": Metric("mean F1 of the bags of words, best reference", _per_item(token_f1), _mean),
    "chrf": Metric("mean sentence chrF (sacrebleu), best reference, 0 to 1", _per_item(chrf), _mean),
    "json_valid": Metric("share of answers that are one JSON object", _per_item(json_valid), _mean, binary=True),
    "json_exact": Metric("share of answers whose object equals the reference's", _per_item(json_exact), _mean, binary=True),
    "json_field_f1": Metric("F1 over all fields (path and value) of all items", _field_parts, _micro_f1),
    "loss": Metric("mean negative log-likelihood of the references (nats a token, stop token included)",
                   _loss_parts, _nats_per_token, of="loss", higher_is_better=False, best=0.0),
    "bits_per_byte": Metric("bits needed per UTF-8 byte of the references", _loss_parts, _bits_per_byte, of="loss", higher_is_better=False, best=0.0),
}  # fmt: skip

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "label": ("exact_match", "macro_f1", "loss", "bits_per_byte"),
    "json": ("json_field_f1", "json_exact", "json_valid", "loss", "bits_per_byte"),
    "text": ("chrf", "token_f1", "exact_match", "loss", "bits_per_byte"),
}
