"""What the adapter forgot of the base's general ability: probes, arithmetic word problems, and how neutral text is read now.

Questions are asked without the task's system prompt: under it even the base would answer the task, and nothing general would be measured.
Probes that the base itself answers no better than by chance are left out of `overall`: nothing can be lost there, and an adapter that answers at
random would even seem to gain. It gives no verdict on points: every flag is read off an interval.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuner.evaluate.intervals import Difference, Estimate, Numbers, difference, estimate, wilson
from tuner.evaluate.metric_types import ratio
from tuner.evaluate.probe_instructions import followed
from tuner.evaluate.probes import FAMILIES, generate, instructions
from tuner.evaluate.result import ADAPTER, Contestant, MetricFacts, Result, Tick
from tuner.evaluate.spec import ForgettingSpec, Profile
from tuner.fingerprint import digest_json

SUITE = "forgetting"
VERSION = 2
BASE = "base"
DATA = Path(__file__).parent / "data" / "forgetting"
WARN_NATS, FAIL_NATS = 0.05, 0.20  # nats a token on neutral text, where the whole interval lies above: starting points, not established
CHANCE = 0.25  # of the right one among four answers
FOLDS = 5  # parts of a family of which each is counted or not by what the base knows of the others
DULLED_NATS = 0.5  # dearer right answers of counted probes, likewise: two benign adapters of a 135M base cost 0.11 and 0.14, one that lost 0.65 a token 1.33
LEAST_CHANCE = 1e-6  # a right answer's probability is taken as no lower: one question does not outweigh all others
INSTRUCTION_TOKENS, SOLUTION_TOKENS = 24, 200

Rows = list[dict[str, Any]]
Kind = Literal["probes", "instructions", "problems", "passages"]
SIZES: dict[Profile, dict[Kind, int]] = {
    "small": {"probes": 300, "instructions": 28, "problems": 32, "passages": 24},
    "full": {"probes": 1000, "instructions": 70, "problems": 200, "passages": 100},
}


def sizes(spec: ForgettingSpec, profile: Profile) -> dict[Kind, int]:
    """How many questions and texts of each kind are asked."""
    given: dict[Kind, int | None] = {"probes": spec.probes, "instructions": spec.instructions, "problems": spec.problems, "passages": spec.passages}
    return {kind: chosen if (chosen := given[kind]) is not None else usual for kind, usual in SIZES[profile].items()}


def ticks(spec: ForgettingSpec, profile: Profile) -> int:
    """How many items `forgetting` tells its tick of."""
    of = sizes(spec, profile)
    asked = of["probes"] + of["instructions"] + of["problems"] * (1 if profile == "small" else 2)
    return 2 * asked + of["passages"] + len(everyday_prompts())


def forgetting(model: Contestant, spec: ForgettingSpec, profile: Profile, seed: int, resamples: int, tick: Tick | None = None) -> Result:
    """The suite `forgetting`: base and adapter on the same questions and texts, without the task's system prompt."""
    of = sizes(spec, profile)
    with model.without_system():
        rows = [
            *_choices(model, of["probes"], seed, tick), *_followed(model, of["instructions"], seed, tick),
            *_problems(model, of["problems"], profile == "full", tick), *_passages(model, of["passages"], tick), *_prompts(model, tick),
        ]  # fmt: skip
    return result_of(_numbered(_counted(rows)), resamples, seed)


# --- what is asked ---------------------------------------------------------------------------------------------------


def _both(model: Contestant, ask: Callable[[], Any]) -> dict[str, Any]:
    with model.as_base():
        base = ask()
    return {BASE: base, ADAPTER: ask()}


def _choices(model: Contestant, count: int, seed: int, tick: Tick | None) -> Rows:
    """The likeliest of four answers, by the sum of the nats of all its tokens, its stop token included, but for those that all four share."""
    probes = generate(count, seed)
    questions, answers = [p.question for p in probes], [list(p.options) for p in probes]
    rows: Rows = []
    for contender, found in _both(model, lambda: model.choice_nats(questions, answers, tick)).items():
        nats = np.array(found, dtype=np.float64)
        for item, (probe, own) in enumerate(zip(probes, np.where(np.isfinite(nats), nats, np.inf), strict=True)):
            right = float(int(own.argmin()) == probe.right and math.isfinite(own[probe.right]))
            rows.append({
                "item": item, "contender": contender, "probe": probe.family, "difficulty": probe.difficulty, "question": probe.question,
                "options": list(probe.options), "reference": probe.answer, "answer": probe.options[int(own.argmin())],
                "option_nats": [float(n) if math.isfinite(n) else None for n in own], "scores": {probe.family: right},
            })  # fmt: skip
    return rows


def _counted(rows: Rows) -> Rows:
    """The same rows; those of probes that the base can do have the scores `overall` and `choice_nats` too.

    A family is dealt into FOLDS parts; a part counts when the base answers the other parts better than by chance: Wilson's 95 % interval of its share lies
    above CHANCE. So it does not depend on the adapter, nor on the luck of the very items that are counted. Choosing whole families by their own items
    would: where the base's shares are near 0.35, an adapter of the same ability that answers 30 % of the items afresh was called worse in 7 % of
    simulated suites, against 2 to 3 % this way (2,000 suites of 7 families of 43).
    """
    right = {(row["probe"], row["item"]): row["scores"][row["probe"]] for row in rows if row["probe"] in FAMILIES and row["contender"] == BASE}
    known = set()
    for family in dict.fromkeys(probe for probe, _ in right):
        items = sorted(item for probe, item in right if probe == family)
        for fold in range(FOLDS):
            others = [right[family, item] for place, item in enumerate(items) if place % FOLDS != fold]
            if others and wilson(sum(others), len(others))[0] > CHANCE:
                known |= set(items[fold::FOLDS])
    for row in rows:
        if row["probe"] in FAMILIES and row["item"] in known:
            nats = np.array([math.inf if n is None else n for n in row["option_nats"]])
            row["scores"] |= {"overall": row["scores"][row["probe"]], "choice_nats": _choice_nats(nats, row["options"].index(row["reference"]))}
    return rows


def _choice_nats(nats: Numbers, right: int) -> float:
    """-log of the right answer's share of the probability that the four have together."""
    least = nats.min()
    if not math.isfinite(least):
        return -math.log(LEAST_CHANCE)
    shares = np.exp(least - nats)
    return -math.log(max(float(shares[right] / shares.sum()), LEAST_CHANCE))


def _followed(model: Contestant, count: int, seed: int, tick: Tick | None) -> Rows:
    asked = instructions(count, seed)
    rows: Rows = []
    for contender, answers in _both(model, lambda: model.answer_many([i.question for i in asked], INSTRUCTION_TOKENS, tick)).items():
        rows += [
            {
                "item": item, "contender": contender, "probe": "instructions_followed", "question": one.question, "reference": None,
                "rule": one.rule, "wanted": one.wanted, "answer": answer, "scores": {"instructions_followed": float(followed(one, answer))},
            }
            for item, (one, answer) in enumerate(zip(asked, answers, strict=True))
        ]  # fmt: skip
    return rows


def _problems(model: Contestant, count: int, solve: bool, tick: Tick | None) -> Rows:
    """Word problems: nats of the reference's solution, and where `solve`, whether the answer's last number is its result."""
    problems = _lines("gsm8k_train_slice.jsonl")[:count]
    questions, solutions = [p["question"] for p in problems], [p["answer"] for p in problems]
    read = _both(model, lambda: model.losses(questions, solutions, tick))
    said = _both(model, lambda: model.answer_many(questions, SOLUTION_TOKENS, tick)) if solve else {}
    rows: Rows = []
    for contender, found in read.items():
        for item, (problem, (nats, tokens)) in enumerate(zip(problems, found, strict=True)):
            row = {
                "item": item, "contender": contender, "probe": "gsm8k", "where": f"gsm8k train:{problem['row']}", "question": problem["question"],
                "reference": problem["answer"], "answer": None, "scores": {}, "parts": {"gsm8k_loss": [nats, tokens]},
            }  # fmt: skip
            if solve:
                row |= {
                    "answer": said[contender][item],
                    "scores": {"gsm8k_exact": float(_last_number(said[contender][item]) == _last_number(problem["answer"]))},
                }
            rows.append(row)
    return rows


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def _passages(model: Contestant, count: int, tick: Tick | None) -> Rows:
    passages = _lines("neutral_text.jsonl")[:count]
    rows: Rows = []
    for item, (passage, d) in enumerate(zip(passages, model.divergences([p["text"] for p in passages], tick), strict=True)):
        shown = {"item": item, "probe": "text", "where": passage["source"], "question": passage["text"], "reference": None, "answer": None, "scores": {}}
        own = {"kl_base": [d.kl_nats, d.tokens], "same_first": [d.same_first, d.tokens]}
        rows.append({**shown, "contender": BASE, "parts": {"text_loss": [d.base_nats, d.tokens]}})
        rows.append({**shown, "contender": ADAPTER, "parts": {"text_loss": [d.adapter_nats, d.tokens], **own}})
    return rows


def _prompts(model: Contestant, tick: Tick | None) -> Rows:
    """The first token of the answers to everyday questions: where an adapter takes them for its task, this is far from the base."""
    questions = everyday_prompts()
    return [
        {
            "item": item, "contender": ADAPTER, "probe": "prompt", "question": question, "reference": None, "answer": None,
            "scores": {"prompt_kl": d.kl_nats, "prompt_same_first": float(d.same_first)},
        }
        for item, (question, d) in enumerate(zip(questions, model.prompt_divergences(questions, tick), strict=True))
    ]  # fmt: skip


def everyday_prompts() -> list[str]:
    return (DATA / "everyday_prompts.txt").read_text(encoding="utf-8").splitlines()


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _numbered(rows: Rows) -> Rows:
    """Rows of answers.jsonl: the item is a number within the suite, the same for both contenders."""
    place: dict[tuple[str, int], int] = {}
    for row in rows:
        kind = row["probe"] if row["probe"] not in FAMILIES else "choice"
        row |= {"suite": SUITE, "item": place.setdefault((kind, row["item"]), len(place)), "where": row.get("where", ""), "parts": row.get("parts", {})}
    return rows


# --- from rows to numbers --------------------------------------------------------------------------------------------


def result_of(rows: Rows, resamples: int, seed: int) -> Result:
    """Values, paired differences and flags, from the rows alone."""
    values: dict[str, dict[str, Estimate]] = {BASE: {}, ADAPTER: {}}
    differences: dict[str, Difference] = {}
    for name, facts in METRICS.items():
        numbers = {contender: numbers_of(rows, contender, name) for contender in values}
        for contender, own in numbers.items():
            if len(own):
                values[contender][name] = estimate(own, ratio, name in BINARY, resamples, seed, bounds=BOUNDS.get(name, NATS))
        if len(numbers[BASE]):
            differences[name] = difference(
                numbers[ADAPTER], numbers[BASE], ratio, binary=name in BINARY, higher_is_better=facts.higher_is_better,
                baseline=BASE, resamples=resamples, seed=seed, bounds=BOUNDS.get(name, NATS),
            )  # fmt: skip
    asked = sorted({(row["item"], row["question"], json.dumps(row["reference"])) for row in rows})
    metrics = {name: facts for name, facts in METRICS.items() if name in values[ADAPTER]}
    told = {**verdict(differences), **_known(rows, values[BASE])}
    return Result(SUITE, "forgetting", len(asked), digest_json(asked), metrics, values, differences, told, rows, VERSION)


def numbers_of(rows: Rows, contender: str, metric: str) -> Numbers:
    """(n, 2) numerator and denominator of each of a contender's rows that has the metric, in the order of the items."""
    own = (row for row in rows if row["contender"] == contender)
    if METRICS[metric].form == "ratio":
        found = [row["parts"][metric] for row in own if metric in row["parts"]]
    else:
        found = [[row["scores"][metric], 1.0] for row in own if metric in row["scores"]]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _known(rows: Rows, base: dict[str, Estimate]) -> dict[str, Any]:
    """Which probes count in `overall`, by family, and why; and that it was not measured where none does."""
    counted = [row["probe"] for row in rows if row["contender"] == BASE and "overall" in row["scores"]]
    families = {f: {"base": base[f].value, "low": base[f].low, "n": base[f].n, "counted": counted.count(f)} for f in FAMILIES if f in base}
    facts: dict[str, Any] = {"chance": CHANCE, "families": families, "counted": _RULE, "not_measured": []}
    if families and not counted:
        facts["not_measured"] = [{"measure": "overall", "words": f"the base answers none of {len(families)} families of probes better than by chance "
                                  f"({CHANCE}): it has nothing there to forget"}]  # fmt: skip
    return facts


_RULE = f"a {FOLDS}th of a family counts where the base's share of the other {FOLDS - 1} has a Wilson 95 % interval above chance, {CHANCE}"


# --- flags -----------------------------------------------------------------------------------------------------------


def verdict(differences: dict[str, Difference]) -> dict[str, Any]:
    """`word` (forgot, drifted, none seen), `flags` as sentences, the same in one sentence, and the thresholds they were read against.

    forgot: neutral text costs more than 0.20 nats a token, or the probes' mean is worse; drifted: more than 0.05 nats, a single family is worse by Holm's
    rule, or the right answers of counted probes cost more than DULLED_NATS. What an adapter no longer does when told is said beside, and is no lost ability
    by itself.
    """
    found = [*_of_text(differences["text_loss"]), *_of_probes(differences)]
    word = next((w for w in ("forgot", "drifted") if w in [f for f, _ in found]), "none seen")
    flags = [f"{w}: {words}" for w, words in found]
    behaviour = differences.get("instructions_followed")
    if behaviour is not None and behaviour.verdict == "worse":
        flags.append(f"behaviour: follows {_shown(behaviour)} of {behaviour.n} simple instructions less than the base; the task may want that")
    return {
        "verdict": word, "flags": flags, "words": _words(word, differences),
        "thresholds": {"text_loss": {"drifted_above": WARN_NATS, "forgot_above": FAIL_NATS}, "overall": "worse", "choice_nats": {"drifted_above": DULLED_NATS},
                       "families": "worse, Holm over the families"},
    }  # fmt: skip


def _of_text(text: Difference) -> list[tuple[str, str]]:
    if not math.isfinite(text.value):
        return [("forgot", "neutral text cannot be read any more: what it costs is not a number")]
    word, above = ("forgot", FAIL_NATS) if text.low > FAIL_NATS else ("drifted", WARN_NATS)
    return [(word, f"neutral text costs {_shown(text)} nats a token more; the whole interval is above {above}")] if text.low > above else []


def _of_probes(differences: dict[str, Difference]) -> list[tuple[str, str]]:
    found = []
    overall, dearer = differences.get("overall"), differences.get("choice_nats")
    if overall is not None and overall.verdict == "worse":
        found.append(("forgot", f"{_shown(overall)} of the {overall.n} general questions that the base can do"))
    if dearer is not None and dearer.low > DULLED_NATS:
        found.append(("drifted", f"the right answers of these {dearer.n} cost {_shown(dearer)} nats more; the whole interval is above {DULLED_NATS}"))
    return found + [("drifted", f"{name} {_shown(differences[name])} of {differences[name].n} questions") for name in _worse_families(differences)]


def _words(word: str, differences: dict[str, Difference]) -> str:
    """One sentence with its numbers; never that nothing was forgotten."""
    text, overall = differences["text_loss"], differences.get("overall")
    said = {"forgot": "The adapter forgot", "drifted": "The adapter drifted from its base", "none seen": "No forgetting was seen"}[word]
    probes = f"{_shown(overall)} of the {overall.n} general questions that the base can do" if overall is not None else "no probe that the base can do"
    return f"{said}: {_shown(text)} nats a token on {text.n} neutral passages, {probes}."


def _worse_families(differences: dict[str, Difference]) -> list[str]:
    """Families with a verdict `worse` whose p holds among all families (Holm 1979)."""
    ranked = sorted((name for name in FAMILIES if name in differences), key=lambda name: differences[name].p)
    worse = []
    for place, name in enumerate(ranked):
        if differences[name].p > 0.05 / (len(ranked) - place):
            break
        if differences[name].verdict == "worse":
            worse.append(name)
    return worse


def _shown(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


# --- what rehearsal bought -------------------------------------------------------------------------------------------


def bought(with_rows: Rows, without_rows: Rows, resamples: int, seed: int) -> dict[str, Any]:
    """What general records mixed into training bought: adapter with rehearsal minus adapter without, on the items both were asked.

    `with_rows` and `without_rows` are the rows of this suite of two versions that differ in data.rehearsal alone; that is the caller's to know.
    """
    ours, theirs = _adapter_items(with_rows), _adapter_items(without_rows)
    common = [key for key in ours if key in theirs]
    differences: dict[str, Difference] = {}
    for name, facts in METRICS.items():
        both = [key for key in common if all(_has(side[key], name) for side in (ours, theirs))]
        pair = [numbers_of([side[key] for key in both], ADAPTER, name) for side in (ours, theirs)]
        if both:
            differences[name] = difference(
                pair[0], pair[1], ratio, binary=name in BINARY, higher_is_better=facts.higher_is_better,
                baseline="adapter without rehearsal", resamples=resamples, seed=seed, bounds=BOUNDS.get(name, NATS),
            )  # fmt: skip
    better = [name for name in ("text_loss", "overall", "kl_base") if name in differences and differences[name].verdict == "better"]
    worse = [name for name in ("text_loss", "overall", "kl_base") if name in differences and differences[name].verdict == "worse"]
    word = "kept more" if better and not worse else "kept less" if worse and not better else "mixed" if better else "no difference seen"
    return {"verdict": word, "items": len(common), "differences": {name: d.as_dict() for name, d in differences.items()}}


def _has(row: dict[str, Any], metric: str) -> bool:
    return metric in row["scores"] or metric in row["parts"]


def _adapter_items(rows: Rows) -> dict[tuple[str, str], dict[str, Any]]:
    """The adapter's rows by what was asked: two evaluations may number items differently."""
    return {(row["probe"], row["question"]): row for row in rows if row["suite"] == SUITE and row["contender"] == ADAPTER}


_CHOICE = f"for which the right one of four answers is the likeliest (chance {CHANCE})"
METRICS: dict[str, MetricFacts] = {
    "overall": MetricFacts(f"share of the choice probes that the base can do {_CHOICE}; {_RULE}", True),
    **{family: MetricFacts(f"share of the {family} probes {_CHOICE}", True) for family in FAMILIES},
    "choice_nats": MetricFacts(f"mean nats of the right answer among the four of a probe that counts in overall (chance {-math.log(CHANCE):.2f}; probability "
                               f"taken as at least {LEAST_CHANCE})", False),
    "instructions_followed": MetricFacts("share of simple instructions that the greedy answer follows, by a function: behaviour, not ability", True),
    "gsm8k_loss": MetricFacts("nats a token of the reference solutions of GSM8K train problems", False, "ratio"),
    "gsm8k_exact": MetricFacts("share of GSM8K train problems whose greedy answer ends with the right number", True),
    "text_loss": MetricFacts("nats a token of neutral out-of-copyright text, no template", False, "ratio"),
    "kl_base": MetricFacts("KL(base ‖ adapter) in nats a token on the same text", False, "ratio"),
    "same_first": MetricFacts("share of the same text's tokens for which base and adapter put the same one first", True, "ratio"),
    "prompt_kl": MetricFacts("mean KL(base ‖ adapter) in nats of the first token answered to everyday questions", False),
    "prompt_same_first": MetricFacts("share of everyday questions for which base and adapter put the same first token first", True),
}  # fmt: skip
BINARY = frozenset({"overall", *FAMILIES, "instructions_followed", "gsm8k_exact", "prompt_same_first"})
NATS = (0.0, math.inf)
BOUNDS = {**dict.fromkeys([*BINARY, "same_first"], (0.0, 1.0)), "choice_nats": (0.0, -math.log(LEAST_CHANCE))}
