"""The catalogue of metrics: one row each, at the foot.

Their parts stand in metric_text, metric_numeric, metric_label, metric_json, metric_loss, metric_context and metric_bertscore. It refuses a metric
that needs an option (`regex` a pattern, `schema_valid` a schema) while the recipe gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuner.catalog import choose
from tuner.errors import refuse
from tuner.evaluate.metric_bertscore import F1, PRECISION, RECALL, BertScorer
from tuner.evaluate.metric_context import context_use, grounded_sentences, has_context
from tuner.evaluate.metric_json import field_parts, fields, json_exact, json_valid, parse_object, schema_score, schema_signature
from tuner.evaluate.metric_label import bin_parts, brier, ece, has_label_nats, label_parts, macro_f1
from tuner.evaluate.metric_loss import bits_and_bytes, has_both, nats_and_tokens, nats_gained, perplexity
from tuner.evaluate.metric_numeric import has_number, numeric_score
from tuner.evaluate.metric_text import (
    bleu,
    bleu_parts,
    bleu_signature,
    chrf,
    chrf_signature,
    contains,
    distinct,
    exact_match,
    lengths,
    normalised_match,
    pattern_score,
    rouge_l,
    rouge_signature,
    token_f1,
)  # fmt: skip
from tuner.evaluate.metric_types import FORMS, Answer, Metric, Sums, mean, only, per_item, per_pair, ratio, ratio_or_one
from tuner.evaluate.spec import MetricOptions

__all__ = ["DEFAULT_METRICS", "METRICS", "Answer", "Metric", "Sums", "catalogue", "fields", "parse_object", "row_parts", "row_score"]

OPTIONS = "evaluate.options"


def catalogue(options: MetricOptions, folder: Path, names: Iterable[str], where: str = "recipe") -> dict[str, Metric]:
    """The metrics called `names`, with their options bound; paths are relative to `folder`, the recipe's.

    Raises Refusal on an unknown name, on a metric whose option is not given, and on an option that cannot be used.
    """
    return {name: _bound(name, options, folder, where) for name in names}


def _bound(name: str, options: MetricOptions, folder: Path, where: str) -> Metric:
    metric = choose(METRICS, name, where, "evaluate.metrics")
    needed = NEEDS.get(name, ())
    if needed and all(getattr(options, option) is None for option in needed):
        refuse(where, f"{OPTIONS}.{needed[0]}", "nothing", f"what `{name}` needs: {MetricOptions.model_fields[needed[0]].description}",
               f"set {' or '.join(f'{OPTIONS}.{option}' for option in needed)}, or take {name} out of evaluate.metrics")  # fmt: skip
    if name == "numeric":
        score = numeric_score(options.absolute_tolerance, options.relative_tolerance)
        return replace(metric, parts=only(has_number, per_item(score)), what=_tolerance(metric.what, options))
    if name == "regex":
        score = pattern_score(options.pattern or "", where, f"{OPTIONS}.pattern")
        return replace(metric, parts=per_item(score), what=f"{metric.what}: {options.pattern}")
    if name == "schema_valid":
        return replace(metric, parts=per_item(schema_score(folder / (options.json_schema or ""), where, f"{OPTIONS}.json_schema")))
    if name in BERTSCORES:
        scorer = _scorer((folder / (options.bertscore_model or "")).resolve(), options.bertscore_layer, where)
        return replace(metric, parts=partial(scorer.parts, BERTSCORES[name]), signature=scorer.signature)
    return metric


def _tolerance(what: str, options: MetricOptions) -> str:
    return f"{what}; within {options.absolute_tolerance:g} or {options.relative_tolerance:.3g} of it"


_SCORERS: dict[tuple[Path, int | None], BertScorer] = {}


def _scorer(folder: Path, layer: int | None, where: str) -> BertScorer:
    """One encoder for precision, recall and F1: it is loaded once."""
    if (folder, layer) not in _SCORERS:
        _SCORERS[folder, layer] = BertScorer(folder, layer, where, f"{OPTIONS}.bertscore_model")
    return _SCORERS[folder, layer]


def _unbound(name: str) -> Callable[[Sequence[Answer]], Sums]:
    """Stands in the table for parts that need an option."""

    def parts(answers: Sequence[Answer]) -> Sums:
        refuse("recipe", "evaluate.metrics", name, "a metric with its options", f"set {OPTIONS}.{NEEDS[name][0]}")

    return parts


def row_score(name: str, numbers: list[float]) -> float | None:
    """What answers.jsonl keeps under scores: the metric of this one item alone, None where only a suite has one."""
    return FORMS[METRICS[name].form].score(numbers)


def row_parts(name: str, numbers: list[float]) -> list[float] | None:
    """What answers.jsonl keeps under parts: the numbers that the suite's value is computed from where it is not the mean of scores."""
    return FORMS[METRICS[name].form].parts(numbers)


METRICS: dict[str, Metric] = {
    "exact_match": Metric("share of answers equal to a reference after NFKC, case folding and collapsing white space",
                          per_item(exact_match), mean, binary=True),
    "normalised_match": Metric("share of answers equal to a reference without case, punctuation and English articles (SQuAD)",
                               per_item(normalised_match), mean, binary=True),
    "contains": Metric("share of answers in which a reference occurs as whole words", per_item(contains), mean, binary=True),
    "regex": Metric("share of answers that match evaluate.options.pattern within a second", _unbound("regex"), mean, binary=True),
    "numeric": Metric("share of answers whose last number (or the one after ####) is the reference's",
                      only(has_number, per_item(numeric_score(0.0, 0.0))), mean, binary=True, applies=has_number),
    "accuracy": Metric("share of items given a right label, labels compared as exact_match compares", per_item(exact_match), mean, binary=True),
    "macro_f1": Metric("mean F1 over the labels of the references", label_parts, macro_f1, form="macro_f1"),
    "ece": Metric("expected calibration error of the labels' likelihoods, 10 bins of equal mass; read it beside its null",
                  only(has_label_nats, bin_parts), ece, of="labels", higher_is_better=False, best=0.0, form="ece", applies=has_label_nats),
    "brier": Metric("mean Brier score of the labels' likelihoods, 0 to 2", only(has_label_nats, per_item(brier)), mean, of="labels",
                    higher_is_better=False, best=0.0, applies=has_label_nats),
    "token_f1": Metric("mean F1 of the bags of words, best reference", per_item(token_f1), mean),
    "rouge_l": Metric("mean ROUGE-L F1, best reference", per_item(rouge_l), mean, signature=rouge_signature),
    "chrf": Metric("mean sentence chrF (sacrebleu), best reference, 0 to 1", per_item(chrf), mean, signature=chrf_signature),
    "bleu": Metric("corpus BLEU (sacrebleu), 0 to 1; 0 where no answer has four words", bleu_parts, bleu, form="bleu", signature=bleu_signature),
    "bertscore_precision": Metric("mean BERTScore precision, best reference", _unbound("bertscore_precision"), mean),
    "bertscore_recall": Metric("mean BERTScore recall, best reference", _unbound("bertscore_recall"), mean),
    "bertscore_f1": Metric("mean BERTScore F1, best reference", _unbound("bertscore_f1"), mean),
    "distinct_1": Metric("mean share of an answer's words that are different", per_item(distinct(1)), mean),
    "distinct_2": Metric("mean share of an answer's word pairs that are different: loops show", per_item(distinct(2)), mean),
    "length_ratio": Metric("characters said / characters of the nearest references; 1 is as long, neither side is better",
                           per_pair(lengths), ratio, form="ratio", higher_is_better=False, neutral=True),
    "json_valid": Metric("share of answers that are one JSON object", per_item(json_valid), mean, binary=True),
    "schema_valid": Metric("share of answers that fit the schema of evaluate.options.json_schema", _unbound("schema_valid"), mean, binary=True,
                           signature=schema_signature),
    "json_exact": Metric("share of answers whose object equals the reference's", per_item(json_exact), mean, binary=True),
    "json_field_f1": Metric("F1 over all fields (path and value) of all items", field_parts, ratio_or_one, form="ratio"),
    "grounded_sentences": Metric("share of sentences whose numbers, names and most words stand in the context or the question; blind to what was mixed up",
                                 only(has_context, per_pair(grounded_sentences)), ratio, form="ratio", applies=has_context),
    "context_use": Metric("share of the answers' content words beyond the question that stand in the context",
                          only(has_context, per_pair(context_use)), ratio, form="ratio", applies=has_context),
    "context_gain": Metric("nats a token that the context saves on the references", only(has_both, per_pair(nats_gained)), ratio, of="context_loss",
                           best=float("inf"), form="ratio", applies=has_both),
    "loss": Metric("mean negative log-likelihood of the references (nats a token, stop token included)",
                   per_pair(nats_and_tokens), ratio, of="loss", higher_is_better=False, best=0.0, form="ratio"),
    "perplexity": Metric("e to the loss; between models of one tokenizer only",
                         per_pair(nats_and_tokens), perplexity, of="loss", higher_is_better=False, form="perplexity"),
    "bits_per_byte": Metric("bits needed per UTF-8 byte of the references", per_pair(bits_and_bytes), ratio, of="loss", higher_is_better=False,
                            best=0.0, form="ratio"),
}  # fmt: skip

BERTSCORES = {"bertscore_precision": PRECISION, "bertscore_recall": RECALL, "bertscore_f1": F1}
_CONTEXT = ("context_field", "context_start")

# The options a metric needs: one of them must be given.
NEEDS: dict[str, tuple[str, ...]] = {
    "regex": ("pattern",),
    "schema_valid": ("json_schema",),
    **dict.fromkeys(BERTSCORES, ("bertscore_model",)),
    "grounded_sentences": _CONTEXT,
    "context_use": _CONTEXT,
    "context_gain": _CONTEXT,
}

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "label": ("exact_match", "macro_f1", "ece", "brier", "loss", "bits_per_byte"),
    "json": ("json_field_f1", "json_exact", "json_valid", "loss", "bits_per_byte"),
    "text": ("chrf", "rouge_l", "token_f1", "exact_match", "loss", "bits_per_byte"),
}
