"""Thirty lines that know nothing of tuner: every value and difference of a report.json again, from answers.jsonl beside it."""
import json, math, re, sys, unicodedata  # noqa: E401, I001
from collections import defaultdict
from pathlib import Path

norm = lambda text: " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())  # noqa: E731

def value(metric, facts, rows):
    form, parts = facts["form"], [r["parts"][metric] for r in rows if metric in r["parts"]]
    scores = [r["scores"][metric] for r in rows if r["scores"].get(metric) is not None]
    if form in ("auc", "tpr_at_fpr"):
        groups = re.findall(r"\b(member|control|watched)\b", facts["what"])[-2:]
        a, b = ([r["scores"][metric] for r in rows if metric in r["scores"] and r["group"] == g] for g in groups)
        if form == "auc":
            return sum((x > y) + (x == y) / 2 for x in a for y in b) / len(a) / len(b)
        return max(sum(x > t for x in a) / len(a) for t in b if sum(y > t for y in b) <= 0.01 * len(b))
    if form in ("ratio", "perplexity"):
        found = sum(p[0] for p in parts) / max(sum(p[1] for p in parts), 1e-300)
        return math.exp(found) if form == "perplexity" else found
    if form == "ece":
        return sum(abs(sum(p[1] - p[2] for p in parts if p[0] == b)) for b in {p[0] for p in parts}) / len(parts)
    if form == "macro_f1":
        pairs = [(norm(r["reference"]), norm(r["answer"])) for r in rows]
        counts = {label: (sum(w == s == label for w, s in pairs), sum(w == label for w, s in pairs) + sum(s == label for w, s in pairs)) for label, _ in pairs}
        return sum(2 * hit / both for hit, both in counts.values()) / len(counts)
    return sum(scores) / len(scores) if form == "mean" else None

def differing(folder):
    report, rows, checked, wrong = json.loads((folder / "report.json").read_text()), defaultdict(list), 0, []
    for row in map(json.loads, filter(None, (folder / "answers.jsonl").read_text().split("\n"))):
        rows[row["suite"], row["contender"]].append(row)
    for name, suite in report["suites"].items():
        got = {(c, m): value(m, suite["metrics"][m], rows[name, c]) for c, of in suite["values"].items() for m in of}
        stated = {(c, m): e["value"] for c, of in suite["values"].items() for m, e in of.items()}
        got |= {m: got["adapter", m] - got[d["baseline"], m] for m, d in suite["differences"].items()}
        stated |= {m: d["value"] for m, d in suite["differences"].items()}
        checked += sum(v is not None for v in got.values())
        wrong += [(name, k, stated[k], v) for k, v in got.items() if v is not None and not math.isclose(v, stated[k], rel_tol=1e-6, abs_tol=1e-9)]
    return checked, wrong

if __name__ == "__main__":
    print(*differing(Path(sys.argv[1])))
