"""The page for the owner of the data: what is in it, what was found and what to do about each finding, in one file that opens anywhere.

It refuses to show personal data, to leave a count out, and to grow: whatever the data, it stays below two megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tuner.data.checks import CHECKS
from tuner.data.checks.coverage import SHOWN_CLUSTERS
from tuner.data.doctor import Checked
from tuner.data.findings import Finding
from tuner.data.language import LANGUAGES
from tuner.data.measure import Context
from tuner.data.record import Record
from tuner.data.summary import Group, groups
from tuner.report import data_charts, data_words
from tuner.report.charts import ticks_below
from tuner.report.data_map import EXAMPLES, MOST_DOTS, MOST_OVERLAID, Landscape, evenly, landscape
from tuner.report.data_text import Segment, differing, excerpt, said, seen, values_in
from tuner.report.html import _digest, _environment, _part, line

View = dict[str, Any]

MOST_BYTES = 1_900_000
MOST_FILES, MOST_GROUPS, MOST_SPLITS, MOST_LABELS, MOST_SYSTEMS, MOST_ANSWERS = 200, 120, 12, 40, 5, 8
MOST_CLUSTERS = 20
RARE = 5  # records of a label below which it is marked
ORIGINS = {"human": "written by people", "synthetic": "written by a model", "production": "from real use", None: "not said"}


@dataclass(frozen=True)
class Room:
    """How much is shown: findings of a group, characters of a text, characters of what a dot of the map says."""

    findings: int
    text: int
    dot: int


ROOMS = (Room(10, 700, 80), Room(10, 320, 50), Room(6, 200, 30), Room(3, 120, 0), Room(1, 60, 0))


def data_page(checked: Checked, report: Mapping[str, Any]) -> str:
    """The page. `report` is what `as_report` made of `checked`: every count on the page is its count."""
    style, script = _part("report.css") + _part("data.css"), _part("data.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    template = _environment().get_template("data.html.j2")
    owner = _Owner(checked, report)
    for room in ROOMS:
        page = template.render(**owner.view(room), style=Markup(style), script=Markup(script), policy=policy)
        if len(page.encode("utf-8", "replace")) <= MOST_BYTES:
            break
    return page


class _Owner:
    """All sections of one page. What is slow is done once; only the cutting is done again for less room."""

    def __init__(self, checked: Checked, report: Mapping[str, Any]):
        self.checked, self.report = checked, report
        self.context: Context = checked.context
        self.groups = groups(checked.findings)
        self.land = landscape(checked)
        self._seen: dict[tuple[str, str, int, str], str] = {}

    def view(self, room: Room) -> View:
        counts = self.report["summary"]
        return {
            "records": counts["records"],
            "counts": {"error": counts["errors"], "warning": counts["warnings"], "note": counts["notes"]},
            "severities": data_words.SEVERITIES,
            "matters": [self._matter(m) for m in counts["matters"]],
            "redacted": counts["redacted"],
            "files": self._files(),
            "lengths": self._lengths,
            "labels": self._labels,
            "answers": self._answers(room),
            "languages": self._languages,
            "origins": self._origins,
            "systems": self._systems(room),
            "findings": self._findings(room),
            "clusters": self._clusters(room),
            "land": self._landscape(room),
            "catalogue": self._catalogue(),
            "task": self.context.task,
        }

    # --- headline --------------------------------------------------------------------------------------------------

    def _matter(self, group: Mapping[str, Any]) -> View:
        plain = data_words.words(group["check"], group["code"], group["fix"])
        number = next((n for n, g in enumerate(self.groups) if (g.check, g.code, g.severity) == (group["check"], group["code"], group["severity"])), None)
        return {**group, "plain": plain, "key": None if number is None or number >= MOST_GROUPS else number, "found": self._example(number, group["found"])}

    def _example(self, number: int | None, found: str) -> str:
        """The words of the group's first finding, masked by what its record is known to hold."""
        if number is None:
            return said(found, known=False)
        first = self.groups[number].findings[0]
        record = self._record(first)
        return self._told(first, record, self._other(first, record))

    def _files(self) -> View:
        files = self.report["files"]
        rows = [{**f, "adds_up": f["read"] == f["kept"] + f["dropped"] + f["rejected"]} for f in files[:MOST_FILES]]
        sums = {key: sum(f[key] for f in files) for key in ("read", "kept", "dropped", "rejected")}
        return {"rows": rows, "sums": sums, "more": len(files) - len(rows)}

    # --- what is in the data ---------------------------------------------------------------------------------------

    @cached_property
    def _ranges(self) -> list[tuple[str, range]]:
        return [(split, among) for split, among in self.context.ranges.items() if len(among)]

    @cached_property
    def _lengths(self) -> View:
        """Histograms of prompt, completion and, where tokens were counted, both together with the limit."""
        tokens, limit = self.context.measures.tokens, self.context.scene.max_tokens
        counted = bool(tokens.any())
        columns: dict[str, NDArray[np.int64]]
        if counted:
            columns = {"prompt": tokens[:, 0].astype(np.int64), "answer": tokens[:, 1].astype(np.int64)}
            columns["whole record"] = columns["prompt"] + columns["answer"]
        else:
            columns = {
                "prompt": np.array([len(r.question) for r in self.context.records], dtype=np.int64),
                "answer": np.array([len(r.completion) for r in self.context.records], dtype=np.int64),
            }
        used = np.flatnonzero(tokens.any(axis=1)) if counted else np.arange(len(self.context.records))
        parts = []
        for c, (name, values) in enumerate(columns.items()):
            own_limit = limit if name == "whole record" else None
            by_split = [(split, values[used[(used >= among.start) & (used < among.stop)]]) for split, among in self._ranges[:MOST_SPLITS]]
            on = data_charts.Length.of([v for _, v in by_split], own_limit)
            rows = [
                {"split": split, "n": len(v), "svg": data_charts.histogram(f"hist-{c}-{s}", f"Length of {name}, {split}", v, on, own_limit),
                 "quantiles": [int(q) for q in np.quantile(v, (0.5, 0.95, 1.0)).round()] if len(v) else None,
                 "over": int((v > own_limit).sum()) if own_limit is not None else 0}
                for s, (split, v) in enumerate(by_split)
            ]  # fmt: skip
            beyond = own_limit is not None and own_limit > on.scale.high
            parts.append({"name": name, "rows": rows, "ticks": ticks_below(on.scale), "cut": on.cut, "limit": own_limit, "beyond": beyond})
        return {"parts": parts, "unit": "tokens" if counted else "characters", "more": max(0, len(self._ranges) - MOST_SPLITS)}

    @cached_property
    def _label_counts(self) -> dict[str, Counter[str]]:
        return {split: Counter(self.context.records[i].completion for i in among) for split, among in self._ranges}

    @cached_property
    def _labels(self) -> View | None:
        """Label tasks: how often each label occurs in train and elsewhere; the commonest, and then the rarest."""
        if self.context.task != "label" or not self._ranges:
            return None
        train = self._label_counts.get("train", Counter())
        others: Counter[str] = Counter()
        for split, counts in self._label_counts.items():
            if split != "train":
                others += counts
        ranked = sorted(train.keys() | others.keys(), key=lambda label: (-train[label], -others[label], label))
        shown = ranked if len(ranked) <= MOST_LABELS else ranked[: MOST_LABELS // 2] + ranked[-MOST_LABELS // 2 :]
        most = max((train[label] for label in shown), default=0)
        rows = [
            {"label": line(seen(label), 80) if label.strip() else "", "train": train[label], "others": others[label],
             "bar": data_charts.share_bar(train[label], most),
             "mark": "never taught" if not train[label] else "rare" if train[label] < RARE else ""}
            for label in shown
        ]  # fmt: skip
        rare = sum(0 < n < RARE for n in train.values())
        return {
            "rows": rows,
            "all": len(ranked),
            "train": train.total(),
            "rare": rare,
            "unseen": sum(not train[label] for label in ranked),
            "most": MOST_LABELS,
        }

    def _answers(self, room: Room) -> View | None:
        """Other tasks: answers that occur word for word more than once in train."""
        among = self.context.ranges.get("train", range(0))
        if self.context.task == "label" or not among:
            return None
        own = self.context.measures.completion[among.start : among.stop]
        values, first, counts = np.unique(own, return_index=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MOST_ANSWERS]
        rows = [
            {"text": line(self._text(self.context.records[among.start + int(first[i])], "completion"), min(room.text, 160)), "n": int(counts[i]),
             "bar": data_charts.share_bar(int(counts[i]), len(own))}
            for i in order.tolist() if counts[i] > 1
        ]  # fmt: skip
        return {"rows": rows, "distinct": len(values), "n": len(own)}

    @cached_property
    def _languages(self) -> View:
        names = ["too short to tell, or not prose", *(data_words.LANGUAGES.get(code, code) for code in LANGUAGES[1:])]
        return self._by_split([names[code] for code in self.context.measures.language.tolist()])

    @cached_property
    def _origins(self) -> View:
        """Who made the records, as the recipe or their own column says."""

        def origin(i: int) -> str:
            own = self.context.records[i].extra.get("source")
            said_by_recipe = self.context.source(self.context.split_of[i], "source")
            return ORIGINS[own if isinstance(own, str) and own in ORIGINS else said_by_recipe if said_by_recipe in ORIGINS else None]

        return self._by_split([origin(i) for i in range(len(self.context.records))])

    def _by_split(self, kinds: Sequence[str]) -> View:
        """Counts of each kind in train and in all other splits, the commonest first."""
        train = self.context.ranges.get("train", range(0))
        here, all_over = Counter(kinds[train.start : train.stop]), Counter(kinds)
        rows = [
            {"name": name, "train": here[name], "others": n - here[name], "bar": data_charts.share_bar(n, len(kinds))}
            for name, n in all_over.most_common(MOST_SPLITS)
        ]  # fmt: skip
        return {"rows": rows, "known": set(all_over) - {ORIGINS[None]}, "more": len(all_over) - len(rows)}

    def _systems(self, room: Room) -> View:
        """System prompts: the commonest, and how many there are."""
        counts = Counter(r.messages[0].content if r.messages and r.messages[0].role == "system" else None for r in self.context.records)
        rows = [{"text": None if text is None else line(seen(text), room.text), "n": n} for text, n in counts.most_common(MOST_SYSTEMS)]
        return {"rows": rows, "different": len(counts.keys() - {None}), "more": len(counts) - len(rows)}

    # --- findings with their records -------------------------------------------------------------------------------

    @cached_property
    def _shown(self) -> list[tuple[Group, list[Finding]]]:
        """Of every group the findings that may be shown: at most ten, evenly spread over the files in order."""
        return [(g, [g.findings[i] for i in evenly(g.count, ROOMS[0].findings).tolist()]) for g in self.groups[:MOST_GROUPS]]

    @cached_property
    def _places(self) -> dict[tuple[str, int], list[Record]]:
        """The kept records that a shown finding stands on or names."""
        files = {r.file for r in self.context.records} | {r.file for r in self.checked.splits.production}
        wanted = {(f.file, f.line) for _, found in self._shown for f in found if f.line}
        for _, found in self._shown:
            for f in found:
                wanted |= set(_named(f.found, files))
        places: dict[tuple[str, int], list[Record]] = {}
        for records in (self.context.records, self.checked.splits.production):
            for record in records:
                if (record.file, record.line) in wanted:
                    places.setdefault((record.file, record.line), []).append(record)
        return places

    @cached_property
    def _general_values(self) -> list[str]:
        """Personal data in what many findings quote: system prompts and labels."""
        systems = {r.messages[0].content for r in self.context.records if r.messages and r.messages[0].role == "system"}
        labels = {label for counts in self._label_counts.values() for label in counts} if self.context.task == "label" else set()
        return values_in([*list(systems)[:2_000], *list(labels)[:2_000]])

    def _said(self, text: str, records: Sequence[Record], known: bool) -> str:
        own = values_in(m.text for r in records for m in r.messages)
        return said(text, [*own, *self._general_values], [f"{r.file}:{r.line}" for r in records], known)

    def _told(self, f: Finding, record: Record | None, other: Record | None) -> str:
        """What a finding says it found. The masks of personal data and secrets are its own.

        The words in which two records differ are left out: they may be pieces of a value that no longer look like one. Where both
        records are kept they are marked in the texts instead.
        """
        if f.check in ("personal_data", "secrets"):
            return said(f.found)
        found = f.found if record is not None and other is None else f.found.partition("; differs in:")[0].partition("; the prompts differ in:")[0]
        return self._said(found, [r for r in (record, other) if r is not None], known=record is not None or not f.line)

    def _record(self, f: Finding) -> Record | None:
        return next((r for r in self._places.get((f.file, f.line), []) if r.split == f.split), None)

    def _text(self, record: Record, part: str) -> str:
        """Prompt, completion or system prompt of a record, masked and visible; done once."""
        key = (record.split, record.file, record.line, part)
        if key not in self._seen:
            whole = {"prompt": record.question, "completion": record.completion}.get(part)
            self._seen[key] = seen(record.messages[0].content if whole is None else whole)
        return self._seen[key]

    def _findings(self, room: Room) -> View:
        checks, splits = list(dict.fromkeys(g.check for g, _ in self._shown)), list(dict.fromkeys(f.split for _, found in self._shown for f in found))
        made: list[View] = []
        for number, (group, found) in enumerate(self._shown):
            chosen = [found[i] for i in evenly(len(found), room.findings).tolist()]
            made.append({
                "key": number, "check": group.check, "code": group.code, "severity": group.severity, "count": group.count, "number": checks.index(group.check),
                "plain": data_words.words(group.check, group.code, group.findings[0].fix),
                "first": [self._finding(f, room) | {"number": splits.index(f.split)} for f in chosen],
            })  # fmt: skip
        return {
            "groups": made,
            "checks": checks,
            "splits": splits,
            "more": len(self.groups) - len(made),
            "shown": sum(len(g["first"]) for g in made),
            "each": room.findings,
        }

    def _finding(self, f: Finding, room: Room) -> View:
        """One finding with its record's text beside it; where it names another record, with that one too and what differs."""
        record = self._record(f)
        other = self._other(f, record)
        records = [r for r in (record, other) if r is not None]
        told: View = {
            "where": f.where, "split": f.split, "field": f.field, "found": self._told(f, record, other),
            "accepted": self._said(f.accepted, records, known=bool(records)), "fix": said(f.fix), "pair": None, "parts": [], "why_not": "", "masked": False,
        }  # fmt: skip
        if record is None:
            told["why_not"] = self._why_not(f)
            return told
        if other is not None:
            told["pair"] = self._pair(record, other, room)
            told["masked"] = not any(s.marked for side in told["pair"] for part in side["parts"] for s in part["text"]) and record.messages != other.messages
            return told
        escapes = f.check == "hidden_characters"
        if f.field == "system" and record.messages[0].role == "system":
            told["parts"].append(_part_of("instruction", excerpt(self._text(record, "system"), room.text, told["found"], escapes)))
        told["parts"].append(_part_of("prompt", excerpt(self._text(record, "prompt"), room.text, told["found"], escapes)))
        if f.split != "production":
            told["parts"].append(_part_of("answer", excerpt(self._text(record, "completion"), room.text, told["found"], escapes)))
        return told

    def _other(self, f: Finding, record: Record | None) -> Record | None:
        """The other record that a finding names; where it names several, the first with another answer."""
        if record is None:
            return None
        named = [r for place in _named(f.found, {file for file, _ in self._places}) for r in self._places.get(place, []) if r != record]
        return next((r for r in named if r.completion != record.completion), named[0] if named else None)

    def _pair(self, one: Record, other: Record, room: Room) -> list[View]:
        sides: list[View] = [{"where": r.where, "split": r.split, "parts": []} for r in (one, other)]
        for part, name in (("prompt", "prompt"), ("completion", "answer")):
            for side, text in zip(sides, differing(self._text(one, part), self._text(other, part), room.text), strict=True):
                side["parts"].append(_part_of(name, text))
        return sides

    def _why_not(self, f: Finding) -> str:
        if not f.line:
            return ""
        action = CHECKS[f.check].action(self.context.scene.spec, f.check) if f.check in CHECKS else "warn"
        if f.check in ("files", "unreadable", "structure", "template"):
            return "The record could not be used, so its text is not shown here; it stands in the file at this line."
        return (
            "The record was left out"
            + (", as the recipe says," if action == "drop" else " by another check")
            + " so its text is not shown here; it stands in the file at this line."
        )

    # --- clusters and map ------------------------------------------------------------------------------------------

    def _clusters(self, room: Room) -> View:
        """Prompts that are near copies of each other: the biggest clusters, with two members side by side."""
        near = self.context.near
        ranked = sorted(near.clusters.values(), key=lambda members: (-len(members), members[0]))
        rows = []
        for members in ranked[:MOST_CLUSTERS]:
            places = np.flatnonzero(np.isin(near.representative, members))
            answers = len(np.unique(self.context.measures.completion[places]))
            splits = list(dict.fromkeys(self.context.split_of[i] for i in places.tolist()))
            sides = self._pair(self.context.records[members[0]], self.context.records[members[-1]], room)
            rows.append({"size": len(members), "records": len(places), "answers": answers, "splits": splits, "pair": sides})
        return {"rows": rows, "all": len(ranked), "prompts": sum(map(len, ranked))}

    def _landscape(self, room: Room) -> View:
        if isinstance(self.land, str):
            return {"why_not": self.land}
        land = self.land
        short = min(room.text, 160)
        label_task = self.context.task == "label"
        topics = [
            {"n": len(t.rows), "share": len(t.rows) / len(land.sample), "typical": [seen(w) for w in t.typical],
             "labels": [line(seen(label), 40) for label, _ in t.labels],
             "examples": list(dict.fromkeys(line(self._text(land.sample[i], "prompt"), short) for i in t.rows[: 3 * EXAMPLES].tolist()))[:EXAMPLES]}
            for t in land.topics
        ]  # fmt: skip
        return {
            "why_not": "", "topics": topics, "sampled": len(land.sample), "train": land.train, "explained": land.explained, "map": self._map(land, room),
            "legend": [(data_charts.colour(n), line(seen(label), 40)) for n, label in enumerate(land.labels)],
            "others": bool(label_task and (land.colours < 0).any()), "dots": len(land.train_dots), "overlaid": len(land.production_dots),
            "production": len(land.production), "found": self._uncovered(land, short), "limits": (MOST_DOTS, MOST_OVERLAID),
        }  # fmt: skip

    def _map(self, land: Landscape, room: Room) -> Markup:
        def title(record: Record) -> str:
            return line(self._text(record, "prompt"), room.dot) if room.dot else ""

        def dots(points: NDArray[np.float64], records: Sequence[Record], rows: NDArray[np.int64], say: Callable[[Record], str] = title) -> data_charts.Dots:
            return data_charts.Dots(points[rows], [say(records[i]) for i in rows.tolist()], np.zeros(len(rows), dtype=np.int64))

        def with_label(record: Record) -> str:
            return f"{title(record)} → {line(seen(record.completion), 40)}" if self.context.task == "label" and room.dot else title(record)

        middles = np.array([int(t.rows[0]) for t in land.topics], dtype=np.int64)
        missed = land.found.uncovered[land.production_dots] if land.found is not None else np.zeros(len(land.production_dots), dtype=bool)
        train = data_charts.Dots(land.points[land.train_dots], [with_label(land.sample[i]) for i in land.train_dots.tolist()], land.colours[land.train_dots])
        told = f"{len(land.train_dots):,} training records in {len(land.topics)} topics" + (
            f"; {len(missed):,} inputs of production, {int(missed.sum()):,} of them without a near training record" if len(missed) else ""
        )
        return data_charts.scatter(
            train,
            dots(land.production_points, land.production, land.production_dots[~missed]),
            dots(land.production_points, land.production, land.production_dots[missed]),
            dots(land.points, land.sample, middles, lambda r: line(self._text(r, "prompt"), 80)), told,
        )  # fmt: skip

    def _uncovered(self, land: Landscape, short: int) -> View | None:
        if land.found is None:
            return None
        clusters = [
            {"n": len(c.rows), "share": len(c.rows) / len(land.production), "where": land.production[c.medoid].where,
             "examples": list(dict.fromkeys(line(self._text(land.production[i], "prompt"), short) for i in c.rows[: 3 * EXAMPLES].tolist()))[:EXAMPLES]}
            for c in land.found.clusters[:SHOWN_CLUSTERS]
        ]  # fmt: skip
        low, high = land.found.interval
        return {"share": land.found.share, "low": low, "high": high, "missed": int(land.found.uncovered.sum()), "is_short": land.found.is_short,
                "clusters": clusters, "all": len(land.found.clusters)}  # fmt: skip

    # --- the catalogue ---------------------------------------------------------------------------------------------

    def _catalogue(self) -> list[View]:
        """Every check with what the recipe set it to, and its count; those that could not look say why."""
        counts = Counter(f["check"] for f in self.report["findings"])
        dropped = {name: sum(by_file.values()) for name, by_file in self.checked.dropped.items()}
        spec = self.context.scene.spec
        rows = []
        for name in [*CHECKS, *sorted(counts.keys() - CHECKS.keys())]:
            check = CHECKS.get(name)
            action = "warn" if check is None else check.action(spec, name)
            what = data_words.words(name, "", "").title if check is None else check.what[:1].upper() + check.what[1:]
            rows.append({
                "name": name, "what": what, "setting": action, "action": data_words.ACTIONS[action], "set": name in spec.checks,
                "count": counts[name], "dropped": dropped.get(name, 0), "idle": "" if counts[name] else self._idle(name, what, action),
            })  # fmt: skip
        return rows

    def _idle(self, name: str, what: str, action: str) -> str:
        """Why a check had nothing to look at."""
        scene = self.context.scene
        if action == "off":
            return "switched off"
        if name in CHECKS and CHECKS[name].needs_base:
            return "looked for by tuner check --with-base only"
        if what.casefold().startswith("task ") and not what.casefold().startswith(f"task {scene.task}"):
            return f"not for this task ({scene.task})"
        tokens = (scene.max_tokens is not None, "a recipe")
        needs = {
            "template": tokens, "overlong": tokens, "control_tokens": tokens, "group_overlap": (scene.spec.cut.group_by is not None, "data.cut.group_by"),
            "coverage": (bool(self.checked.splits.production), "data.production"),
        }  # fmt: skip
        there, need = needs.get(name, (True, ""))
        return "" if there else f"needs {need}"


def _named(found: str, files: set[str]) -> list[tuple[str, int]]:
    """Every file:line that a finding names, in order."""
    at = []
    for file in files:
        start = found.find(f"{file}:") if file else -1
        while start >= 0:
            rest = found[start + len(file) + 1 :]
            digits = rest[: next((i for i, c in enumerate(rest) if not c.isdecimal()), len(rest))]
            if digits and (start == 0 or found[start - 1] in " (;,"):
                at.append((start, (file, int(digits))))
            start = found.find(f"{file}:", start + 1)
    return [place for _, place in sorted(at)]


def _part_of(name: str, text: list[Segment]) -> View:
    return {"name": name, "text": text or [Segment("(nothing)")]}
