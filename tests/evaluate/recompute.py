"""Forty-three lines that know nothing of tuner: every value, difference, drop and slice of a report.json again, from answers.jsonl beside it."""

import json, math, re, statistics, sys, unicodedata  # noqa: E401, I001
from collections import defaultdict
from pathlib import Path

norm = lambda text: " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())  # noqa: E731


def value(metric, facts, rows):
    form, parts = facts["form"], [r["parts"][metric] for r in rows if metric in r["parts"]]
    if form in ("auc", "tpr_at_fpr"):
        groups = re.findall(r"\b(member|control|watched)\b", facts["what"])[-2:]
        a, b = ([r["scores"][metric] for r in rows if metric in r["scores"] and r["group"] == g] for g in groups)
        if form == "auc":
            return sum((x > y) + (x == y) / 2 for x in a for y in b) / len(a) / len(b)
        return max(sum(x > t for x in a) / len(a) for t in b if sum(y > t for y in b) <= 0.01 * len(b))
    if form in ("ratio", "perplexity"):
        return (math.exp if form == "perplexity" else float)(sum(p[0] for p in parts) / max(sum(p[1] for p in parts), 1e-300))
    if form == "ece":
        return sum(abs(sum(p[1] - p[2] for p in parts if p[0] == b)) for b in {p[0] for p in parts}) / len(parts)
    if form == "macro_f1":
        pairs = [(norm(r["reference"]), norm(r["answer"])) for r in rows]
        return statistics.fmean(2 * sum(w == s == x for w, s in pairs) / sum((w == x) + (s == x) for w, s in pairs) for x in {w for w, _ in pairs})
    known = {"mean": [r["scores"][metric] for r in rows if r["scores"].get(metric) is not None], "file size": []}[form]  # KeyError: a form without a rule
    return statistics.fmean(known) if form == "mean" else None


def is_in(field, wanted, row):
    size, bounds = sum(len(m["content"]) for m in row["question"] if m["role"] != "system"), [int(x) for x in re.findall(r"\d+", wanted)]
    return bounds[0] <= size <= bounds[1] if field == "length" else wanted == (row["reference"] if field == "label" else row.get("traits", {}).get(field))


def differing(folder):
    report, rows, found = json.loads((folder / "report.json").read_text()), defaultdict(list), []
    for row in map(json.loads, filter(None, (folder / "answers.jsonl").read_text().split("\n"))):
        rows[row["suite"], row["contender"]].append(row)
    for name, s in report["suites"].items():
        got = {(c, m): (value(m, s["metrics"][m], rows[name, c]), e) for c, of in s["values"].items() for m, e in of.items()}
        found += [*got.values(), *((got["adapter", m][0] - got[d["baseline"], m][0], d) for m, d in s["differences"].items())]
        old = {c: [o for o in rows[s["facts"]["of"], c] if o["item"] in {r.get("of") for r in rows[name, c]}] for c in s["facts"].get("drops", {})}
        drops = {(c, m): (got[c, m][0] - value(m, s["metrics"][m], old[c]), d) for c in old for m, d in s["facts"]["drops"][c].items()}
        found += [*drops.values(), *((drops["adapter", m][0] - drops[d["baseline"], m][0], d) for m, d in s["facts"].get("excess", {}).items())]
    for s in (cut := report["slices"] or {"rows": []})["rows"]:
        sides = ([r for r in rows[cut["suite"], c] if is_in(s["field"], s["value"], r)] for c in ("adapter", s["difference"]["baseline"]))
        a, b = (value(cut["metric"], report["metrics"][cut["metric"]], of) for of in sides)
        found += [(a, s["adapter"]), (b, s["baseline"]), (a - b, s["difference"])]
    known = [(v, stated) for v, stated in found if v is not None]
    return len(known), [(v, stated) for v, stated in known if not math.isclose(v, stated["value"], rel_tol=1e-6, abs_tol=1e-9)]


if __name__ == "__main__":
    print(*differing(Path(sys.argv[1])))
