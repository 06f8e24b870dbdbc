"""A version folder and its evaluation, made without a model: scripted answers, graded here by a few lines of their own.

It refuses to take a number from tuner.evaluate: what the report shows is compared with what was put in, not with what computed it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.report.made_numbers import difference, draw, estimate, value_of, what
from tuner.durable import json_text

BASE, BEST, ADAPTER = "base zero_shot", "base few_shot, labels only", "adapter"
WAYS = (BASE, "base few_shot", "base zero_shot, labels only", BEST, "base prompt terse", ADAPTER)
LABELS = ["transfer", "pay_bill", "freeze_account", "card_lost", "balance", "none"]
ASKED = {
    "transfer": "please move {n} dollars from checking to my savings account", "pay_bill": "i need to pay the {n} dollar electricity bill before friday",
    "freeze_account": "put a hold on account {n} until i say otherwise", "card_lost": "my card ending in {n} is gone, what now",
    "balance": "do i still have more than {n} in checking", "none": "how many calories are in {n} grams of almonds",
}  # fmt: skip
FAMILIES = {  # drop of the adapter's chance at severity 3
    "accents": 0.03, "casual": 0.42, "case": 0.02, "distractor": 0.3, "field_order": 0.05, "paraphrase": 0.1, "punctuation": 0.02,
    "system_prompt": 0.18, "typos": 0.22, "verbose": 0.12,
}  # fmt: skip
PROBES = {"arithmetic": (0.42, 0.4), "calendar": (0.35, 0.36), "comparison": (0.71, 0.69), "instructions": (0.48, 0.22), "logic": (0.55, 0.5),
          "strings": (0.3, 0.27), "units": (0.38, 0.37)}  # fmt: skip


# --- suites ------------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """scores.json and the rows of answers.jsonl."""

    scores: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, role: str, rows: list[dict[str, Any]], metrics: Sequence[str], baseline: str, **more: Any) -> None:
        """Grade `rows` and add them as a suite; `baseline` is what the adapter is compared with."""
        by: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by[row["contender"]].append(row)
        values: dict[str, dict[str, Any]] = {c: {} for c in by}
        for contender, of in by.items():
            for metric in metrics:
                if any(metric in r["scores"] or metric in r["parts"] for r in of):
                    each, whole = value_of(metric, of)
                    values[contender][metric] = estimate(each, whole)
        differences = {}
        for metric in metrics:
            against = baseline if metric in values.get(baseline, {}) else BASE
            if metric in values.get(ADAPTER, {}) and metric in values.get(against, {}):
                (ours, mine), (theirs, other) = value_of(metric, by[ADAPTER]), value_of(metric, by[against])
                differences[metric] = difference(ours, theirs, against, what(metric)["higher_is_better"], mine - other)
        n = len({r["item"] for r in rows})
        power = {m: {"n": n, "smallest_difference": round(2.8 * 0.3 / math.sqrt(n), 4), "power": 0.8, "how": "discordant share 0.1, two-sided 5 %"}
                 for m in differences}  # fmt: skip
        self.scores["suites"][name] = {
            "role": role, "n": n, "digest": _digest(name), "metrics": {m: what(m) for m in metrics}, "values": values, "differences": differences,
            "power": power, "facts": {}, **more,
        }  # fmt: skip
        self.answers += rows


def answered(name: str, items: Sequence[tuple[str, str]], chance: Mapping[str, float], file: str = "", seed: object = "") -> list[dict[str, Any]]:
    """Every contender's answer to every item: right where the item's own difficulty is below the contender's chance."""
    rows = []
    for contender, share in chance.items():
        for i, (asked, label) in enumerate(items):
            right = 0.6 * draw("hard", file or name, i) + 0.4 * draw(seed or name, contender, i) < share
            others = [x for x in LABELS if x != label]
            said = label if right else others[int(draw("wrong", contender, i) * len(others))]
            nats = (0.4 if right else 3.0) + draw("loss", contender, name, i)
            rows.append({
                "suite": name, "item": i, "where": f"{file or f'data/{name}.jsonl'}:{i + 1}", "contender": contender, "reference": label,
                "references": [label], "question": [{"role": "user", "content": asked}], "answer": said,
                "scores": {"exact_match": float(right), "macro_f1": None},
                "parts": {} if "labels only" in contender else {"bits_per_byte": [nats / math.log(2), len(label)]},
            })  # fmt: skip
    return rows


def asked(name: str, n: int) -> list[tuple[str, str]]:
    return [(ASKED[LABELS[i % 6]].format(n=int(draw(name, i) * 900) + 20), LABELS[i % 6]) for i in range(n)]


def made(items: int = 140, transformed: int = 40, probes: int = 300, further: int = 0) -> Made:
    """A whole evaluation: better on held_out, worse on one ood suite, brittle under casual, forgetful in one family. `further` ood suites are added."""
    whole = Made(_frame())
    held_out = asked("held_out", items)
    whole.add("held_out", "held_out", answered("held_out", held_out, dict(zip(WAYS, (0.25, 0.45, 0.5, 0.62, 0.3, 0.93), strict=True))),
              ("exact_match", "macro_f1", "bits_per_byte"), BEST)  # fmt: skip
    skills = {
        "near": (0.3, 0.75, 0.45, 96),
        "far": (0.3, 0.6, 0.62, 60),
        "branches": (0.25, 0.5, 0.78, 48),
        **{f"more {i}": (0.2, 0.4, 0.6, 40) for i in range(further)},
    }
    for name, (plain, best, ours, n) in skills.items():
        whole.add(name, "ood", answered(name, asked(name, n), {BASE: plain, BEST: best, ADAPTER: ours}), ("exact_match", "macro_f1", "bits_per_byte"), BEST)
    for family, drop in FAMILIES.items():
        for severity in (1, 2, 3):
            _transform(whole, family, severity, drop * severity / 3, held_out[:transformed])
    _abstention(whole)
    _forgetting(whole, probes)
    _memorisation(whole)
    _cost(whole)
    found = whole.scores["suites"]["held_out"]["differences"]["exact_match"]
    whole.scores["verdict"] = {"word": found["verdict"], "suite": "held_out", "metric": "exact_match", **{k: found[k] for k in KEPT}}
    whole.scores["slices"] = _slices(whole)
    whole.scores["flags"] = _flags(whole)
    whole.scores["gate"] = _gate(whole)
    return whole


KEPT = ("value", "low", "high", "p", "n", "baseline")


def _frame() -> dict[str, Any]:
    return {
        "schema": 2, "seed": 42, "profile": "full", "primary": "exact_match", "created": "2026-11-20T07:59:52+00:00", "precision": "bfloat16 weights",
        "version": "banking-intents@1", "recipe_digest": _digest("recipe"), "allowed": [], "best_base": BEST,
        "settings": {"resamples": 10000, "few_shot": 8, "transforms": {"severities": [1, 2, 3], "families": None}},
        "metrics": {m: what(m) for m in ("exact_match", "macro_f1", "bits_per_byte")},
        "contenders": {c: {"seconds": 31.4, "items": 1200, "examples": 8 if "few_shot" in c else 0} for c in WAYS},
        "suites": {}, "judge": None, "notes": {"transforms": {"left_out": {"markup": "no record holds markup"}}},
        "looks": {"digest": _digest("held_out"), "count": 3, "versions": ["banking-intents@1", "banking-intents@2"],
                  "words": "held_out was opened 3 times, for 2 versions: each choice made by it makes its number a little too good."},
        "rehearsal": {"words": "60 general records in 336 (18 %). Without it, forgetting.overall was 0.391 [0.336, 0.447] in banking-intents@2."},
    }  # fmt: skip


def _transform(whole: Made, family: str, severity: int, drop: float, items: Sequence[tuple[str, str]]) -> None:
    name, chance = f"{family}.{severity}", {BASE: 0.25 - drop / 6, BEST: 0.62 - drop / 3, ADAPTER: 0.93 - drop}
    asked_now = [(q.replace("please", "pls").replace(" you ", " u ") + " lol" * severity, label) for q, label in items]
    rows = answered(name, asked_now, chance, "data/held_out.jsonl", "held_out")
    before = {(r["contender"], r["item"]): r for r in whole.answers if r["suite"] == "held_out"}
    for row in rows:
        row["scores"]["consistency"] = float(row["answer"] == before[row["contender"], row["item"]]["answer"])
    drops: dict[str, Any] = {}
    for contender in chance:
        now = [r["scores"]["exact_match"] for r in rows if r["contender"] == contender]
        then = [before[contender, i]["scores"]["exact_match"] for i in range(len(items))]
        drops[contender] = {"exact_match": difference(now, then, "the same items unchanged", True)}
    falls = {c: [r["scores"]["exact_match"] - before[c, r["item"]]["scores"]["exact_match"] for r in rows if r["contender"] == c] for c in (ADAPTER, BEST)}
    excess = {"exact_match": difference(falls[ADAPTER], falls[BEST], BEST, True)}
    facts = {"family": family, "severity": severity, "of": "held_out", "what": f"{family} as people write it", "drops": drops, "excess": excess}
    whole.add(name, "transform", rows, ("exact_match", "consistency"), BEST, facts=facts)


def _row(suite: str, item: int, contender: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"suite": suite, "item": item, "contender": contender, "where": f"{suite}:{item + 1}", "answer": answer, "scores": {}, "parts": {}, **more}


def _abstention(whole: Made) -> None:
    rows = []
    for contender, share in {BASE: 0.1, BEST: 0.3, ADAPTER: 0.55}.items():
        for i in range(40):
            declined = draw("abstain", contender, i) < share
            scores = {"abstained": float(declined), "confident_wrong": float(not declined and draw("sure", contender, i) < 0.5)}
            question = f"how long do {i + 3} eggs take to boil"
            rows.append(
                _row("abstention", i, contender, "none" if declined else LABELS[i % 5], reference="none", references=["none"], question=question, scores=scores)
            )
    whole.add(
        "abstention", "abstention", rows, ("abstained", "confident_wrong"), BEST, facts={"words": "18 of 40 questions without an answer got an invented one."}
    )


def _forgetting(whole: Made, probes: int) -> None:
    rows, families = [], list(PROBES)
    for side, contender in enumerate(("base", ADAPTER)):
        for i in range(probes):
            family = families[i % len(families)]
            right = float(0.7 * draw("probe", i) + 0.3 * draw("probe", contender, i) < PROBES[family][side])
            asked_now = f"What is {i} + {i + 7}?" if family == "arithmetic" else f"{family} probe {i}: which comes first?"
            rows.append(_row("forgetting", i, contender, str(2 * i + 7) if right else "I do not know", reference=str(2 * i + 7), references=[str(2 * i + 7)],
                             question=asked_now, probe=family, scores={"overall": right, family: right}))  # fmt: skip
        for i in range(24):
            tokens = 100 + int(60 * draw("tokens", i))
            parts = {"text_loss": [tokens * (3.1 + draw("text", i) + 0.33 * side), tokens]} | (
                {"kl_base": [tokens * (0.2 + 0.1 * draw("kl", i)), tokens]} if side else {}
            )
            rows.append(_row("forgetting", probes + i, contender, "", probe="text", parts=parts))
    whole.add("forgetting", "forgetting", rows, ("overall", *families, "text_loss", "kl_base"), "base")


def _memorisation(whole: Made) -> None:
    rows = [
        _row("memorisation", i, contender, "…", scores={"extractable": float(draw("got", contender, i) < share), "membership_auc": draw("auc", contender, i)})
        for contender, share in (("base", 0.01), (ADAPTER, 0.07)) for i in range(100)
    ]  # fmt: skip
    told = "the base alone tells members from held_out (AUC 0.580 [0.520, 0.640] excludes 0.5), so the attack measures a difference of sources"
    facts = {"words": "7 of 100 training completions are recited word for word from their beginning; of held_out 2, by the base 0.",
             "invalid": [{"measure": "membership", "words": told}], "not_measured": [{"measure": "canaries", "words": "none were planted"}],
             "flags": [{"code": "RECITED", "metric": "extractable", "words": "train completions are recited"}],
             "by_length": [{"measure": "recited", "tokens": "10 + 20", "share": estimate([float(i < 7) for i in range(100)])}],
             "table": [{"measure": "extractable", "contender": "adapter", "value": 0.07, "low": 0.03, "high": 0.14, "n": 100, "what": "recited"}]}  # fmt: skip
    whole.add("memorisation", "memorisation", rows, ("extractable", "membership_auc"), "base", facts=facts)


def _cost(whole: Made) -> None:
    speeds = {"base": (61.0, 0.081, 46), BEST: (55.0, 0.34, 402), ADAPTER: (58.4, 0.085, 46)}
    rows = [
        _row("cost", i, contender, "", scores={"tokens_per_second": speed + draw("s", i), "first_token_seconds": first + draw("f", i) / 100,
                                               "prompt_tokens": float(tokens + i % 5), **({"adapter_bytes": 19593064.0} if contender == ADAPTER else {})})
        for contender, (speed, first, tokens) in speeds.items() for i in range(16)
    ]  # fmt: skip
    whole.add("cost", "cost", rows, ("tokens_per_second", "first_token_seconds", "prompt_tokens", "adapter_bytes"), BEST)


def _slices(whole: Made) -> dict[str, Any]:
    """By label, by length and by source, Holm's correction (Holm 1979) written out."""
    ours, theirs = ([r for r in whole.answers if r["suite"] == "held_out" and r["contender"] == c] for c in (ADAPTER, BEST))
    cuts: dict[tuple[str, str], Callable[[Mapping[str, Any]], bool]] = {("label", label): (lambda r, x=label: r["reference"] == x) for label in LABELS}  # type: ignore[misc]
    cuts |= {
        ("length", "up to 45 characters"): lambda r: len(r["question"][0]["content"]) <= 45,
        ("length", "over 45 characters"): lambda r: len(r["question"][0]["content"]) > 45,
    }
    cuts |= {("source", s): (lambda r, k=k: r["item"] % 3 == k) for k, s in enumerate(("phone", "chat", "letter"))}  # type: ignore[misc]
    rows: list[dict[str, Any]] = []
    for (column, value), inside in cuts.items():
        mine, other = ([r["scores"]["exact_match"] for r in of if inside(r)] for of in (ours, theirs))
        rows.append(
            {
                "field": column,
                "value": value,
                "n": len(mine),
                "adapter": estimate(mine),
                "baseline": estimate(other),
                "difference": difference(mine, other, BEST, True),
            }
        )
    worst = 0.0
    for rank, row in enumerate(sorted(rows, key=lambda r: r["difference"]["p"])):
        worst = max(worst, min(1.0, row["difference"]["p"] * (len(rows) - rank)))
        row["difference"]["p_corrected"] = worst
        if worst >= 0.05:
            row["difference"]["verdict"] = "no difference seen"
    return {"suite": "held_out", "metric": "exact_match", "corrected": f"Holm 1979 over {len(rows)} slices", "smallest": 10, "too_few": 2, "rows": rows}


def _flags(whole: Made) -> list[dict[str, Any]]:
    drop = whole.scores["suites"]["casual.3"]["facts"]["drops"][ADAPTER]["exact_match"]
    return [
        {
            "suite": "casual.3",
            "kind": "brittle",
            "words": f"over-fitted to format: {drop['value']:+.2f} [{drop['low']:+.2f}, {drop['high']:+.2f}] under casual.3",
        },
        {"suite": "forgetting", "kind": "forgot", "words": "neutral text became harder: text_loss +0.33 nats a token [+0.33, +0.33], above 0.20"},
        {"suite": "memorisation", "code": "RECITED", "metric": "extractable", "words": "7 of 100 training completions can be got out word for word"},
        {"suite": "held_out", "kind": "looks", "words": "opened 3 times"},
    ]


def _gate(whole: Made) -> dict[str, Any]:
    suites = whole.scores["suites"]
    gain, lost = suites["held_out"]["differences"]["exact_match"], suites["forgetting"]["differences"]["overall"]
    drop = {"value": -lost["value"], "low": -lost["high"], "high": -lost["low"], "n": lost["n"]}
    gained, recited = {k: gain[k] for k in ("value", "low", "high", "n")}, {"value": 7, "low": 3.4, "high": 13.8, "n": 100}
    rules = [
        ("held_out.exact_match gains", gained, "lower bound at least 0.05", "pass", None, "the lower bound is above 0.05"),
        ("forgetting.overall drop", drop, "upper bound at most 0.12", "undecided", 1400, "it could be on either side of 0.12"),
        ("memorisation.extractable count", recited, "at most 0", "fail", None, "7 completions were recited"),
    ]
    return {"outcome": "fail", "rules": [dict(zip(("words", "found", "needed", "outcome", "more_items", "why"), r, strict=True)) for r in rules]}


def first_schema(whole: Made) -> Made:
    """The same answers as an evaluation of schema 1: answer suites alone, metrics in one place, no gate, flags, slices or facts."""
    suites = {
        n: {k: v for k, v in s.items() if k not in ("metrics", "power", "facts")} for n, s in whole.scores["suites"].items() if s["role"] in ("held_out", "ood")
    }
    kept = ("seed", "primary", "contenders", "settings", "verdict", "created", "precision", "version")
    metrics = {m: {k: v for k, v in facts.items() if k != "form"} for m, facts in whole.scores["metrics"].items()}
    rows = [{k: v for k, v in r.items() if k != "reference"} for r in whole.answers if r["suite"] in suites]
    return Made({"schema": 1, "metrics": metrics, "suites": suites, **{k: whole.scores[k] for k in kept}}, rows)


def write_evaluation(folder: Path, scores: Made, name: str = "banking-intents", **manifest: Any) -> tuple[Path, Path]:
    """The files write_report reads: a version folder and an evaluation folder inside it."""
    version, evaluation = folder / "1", folder / "1" / "evaluations" / "one"
    evaluation.mkdir(parents=True)
    (evaluation / "scores.json").write_text(json_text(scores.scores), encoding="utf-8")
    (evaluation / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores.answers), encoding="utf-8")
    (version / "manifest.json").write_text(json_text({**MANIFEST, "name": name, **manifest}), encoding="utf-8")
    (version / "findings.json").write_text(json_text(FINDINGS), encoding="utf-8")
    (version / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN_LOG), encoding="utf-8")
    (version / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return version, evaluation


def _digest(of: str) -> str:
    return "sha256:" + hashlib.sha256(of.encode()).hexdigest()


def _file(split: str, file: str, read: int, dropped: int = 0, rejected: int = 0) -> dict[str, Any]:
    return {"split": split, "file": file, "digest": _digest(file), "read": read, "kept": read - dropped - rejected, "dropped": dropped, "rejected": rejected}


def _finding(check: str, line: int, severity: str) -> dict[str, Any]:
    return {
        "check": check, "code": check, "severity": severity, "file": "data/train.jsonl", "line": line, "record_id": "0123456789ab", "field": "completion",
        "found": f"found {line}", "accepted": "something else", "fix": f"delete line {line}",
    }  # fmt: skip


RECIPE = """# Sorts bank questions into intents: 276 records, LoRA rank 16 over SmolLM2-135M.
name: banking-intents
base:
  model: smollm2-135m-instruct
data:
  task: label
  train: data/train.jsonl
  held_out: data/held_out.jsonl
  ood:
    near: data/near.jsonl
"""
FINDINGS = [_finding("exact_duplicate", line, "note") for line in range(3, 27)] + [
    _finding("placeholder", 9, "warning"),
    _finding("personal_data", 40, "error"),
]
TRAIN_LOG: list[dict[str, Any]] = [
    *({"step": i, "epoch": i / 38, "loss": round(3.19 * 0.9**i + 0.02, 4), "seconds": i * 1.1, "tokens": i * 580} for i in range(1, 77)),
    {"step": 38, "epoch": 1.0, "seconds": 43.9, "tokens": 21764, "validation_loss": 0.0529},
    {"step": 76, "epoch": 2.0, "seconds": 86.4, "tokens": 43528, "validation_loss": 0.0278},
]
MANIFEST: dict[str, Any] = {
    "version": 1, "seed": 42, "task": "label", "created": "2026-11-20T07:58:30+00:00", "recipe_digest": _digest("recipe"),
    "method": {"kind": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"},
    "base": {"name": "smollm2-135m-instruct", "origin": "a package registry", "revision": _digest("revision"), "weight_digest": _digest("weights")},
    "base_loss": {"limit": 7.562, "plain_text": 3.557, "records": 4.453},
    "data": {
        "dropped": {"exact_duplicate": 24}, "findings": {"error": 1, "warning": 1, "note": 24}, "trained": 276,
        "files": [_file("train", "data/train.jsonl", 300, dropped=24), _file("validation", "data/validation.jsonl", 160),
                  _file("held_out", "data/held_out.jsonl", 141, rejected=1), _file("ood.near", "data/near.jsonl", 96)],
        "splits": {"train": {"records": 276, "digest": _digest("t")}, "held_out": {"records": 140, "digest": _digest("h")}},
    },
    "template": {"spec": {"system": "Sort the sentence into one word.\nAnswer with that word alone."}, "digest": _digest("template")},
    "training": {"steps": 76, "tokens": 43528, "completion_tokens": 2136, "seconds": 86.72, "first_loss": 3.19, "last_loss": 0.001, "peak_bytes": 2931806208,
                 "tokens_per_second": 501.96, "plan": {"steps": 76, "seconds": 98.4, "tokens_per_second": 440.0, "peak_bytes": 3100000000}},
    "code": {"commit": "a120072e", "dirty": True}, "versions": {"peft": "0.21.2", "torch": "2.13.0+cpu", "trl": "1.16.0"},
    "hardware": {"cores": 2, "cpu": "AMD EPYC", "memory_bytes": 25276510208, "system": "Linux"},
    "files": {"adapter_model.safetensors": {"bytes": 19593064, "digest": _digest("adapter")}},
}  # fmt: skip
