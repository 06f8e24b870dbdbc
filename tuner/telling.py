"""What the terminal is told: stages and one bar while a run works, tables and sentences when it is done.

It refuses to print data as it is: every text of a user or a model goes through safe_text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuner.safe_text import visible

if TYPE_CHECKING:
    from tuner.artifact.parity import Parity
    from tuner.data.findings import Finding
    from tuner.pipeline import Diagnosed, Run
    from tuner.plan.budget import Plan
    from tuner.train.sft import Progress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Teller:
    """Tells the terminal what a run is doing: one bar at a time; without a terminal, a line every ten seconds."""

    QUIET_SECONDS = 10.0

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(), console=err, transient=True,
        )  # fmt: skip
        self.task: Any = None
        self.what = ""
        self.began_what = ("", 0.0)
        self.spoke = 0.0
        self.began = time.monotonic()

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def stage(self, name: str, say: str) -> None:
        self._close()
        err.print(f"[{time.monotonic() - self.began:6.1f} s] {name}: {visible(say)}", markup=False, soft_wrap=True)

    def checked(self, prepared: Diagnosed) -> None:
        self._close()
        say_checked(prepared, brief=True)

    def reading(self, file: str, bytes_read: int) -> None:
        self._later("reading", visible(file), bytes_read / 1e6, None, "MB")

    def checking(self, what: str, done: int, total: int) -> None:
        if what == "records":
            self._later("checking", "records", done, total, "records")
        else:
            self._later("comparing", what, done, total, "")

    def _later(self, what: str, detail: str, done: float, total: int | None, unit: str) -> None:
        """Moves the bar, once this piece of work has taken two seconds."""
        now = time.monotonic()
        if what != self.began_what[0]:
            self.began_what = (what, now)
        spent = now - self.began_what[1]
        if spent > 2:
            left = None if total is None or not done or not unit else spent * (total - done) / done
            rate = f"{detail}, {done / spent:,.0f} {unit}/s" if unit else detail
            self._move(what, int(done), total if total is not None else int(done), rate, left)

    def planned(self, plan: Plan) -> None:
        say_plan(plan, with_how=False)

    def picked(self, why: Sequence[str]) -> None:
        for line in why:
            out.print(f"picked: {visible(line)}", style="dim", markup=False, soft_wrap=True)

    def training(self, progress: Progress) -> None:
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}, "
        self._move("training", progress.step, progress.steps, f"{loss}{progress.tokens_per_second:.0f} tokens/s", progress.seconds_left)

    def grading(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self.began_what[0]:
            self.began_what = (what, now)
        spent = now - self.began_what[1]
        rate = f"{visible(what)}, {done / spent:.1f} items/s" if spent > 1 else visible(what)
        self._move("grading", done, total, rate, spent * (total - done) / done if done and spent > 1 else None, ends=False)

    def _move(self, what: str, done: int, total: int, rate: str, seconds_left: float | None, ends: bool = True) -> None:
        """Move the bar; without a terminal, say a line now and then, and with `ends` when all is done."""
        if not err.is_terminal:
            now = time.monotonic()
            if now - self.spoke > self.QUIET_SECONDS or (ends and done == total):
                self.spoke = now
                left = "" if seconds_left is None or done == total else f", {seconds_left:.0f} s left"
                err.print(f"[{now - self.began:6.1f} s] {what} {done}/{total}, {rate}{left}", markup=False, soft_wrap=True)
            return
        if what != self.what:
            self._close()
            self.what = what
            self.task = self.bar.add_task(what, total=total, rate=rate)
            self.bar.start()
        self.bar.update(self.task, completed=done, total=total, rate=rate)

    def _close(self) -> None:
        if self.task is not None:
            self.bar.stop()
            self.bar.remove_task(self.task)
            self.task, self.what = None, ""


def say_checked(diagnosed: Diagnosed, brief: bool = False, seconds: float | None = None) -> None:
    """Accounts of the files, counts, the five groups that matter most; then, unless `brief`, every group with its first ten places."""
    from tuner.data.summary import groups, summary

    checked = diagnosed.checked
    whole = summary(checked)
    counts = ", ".join(f"{whole[f'{word}s']} {word}{'' if whole[f'{word}s'] == 1 else 's'}" for word in ("error", "warning", "note"))
    used = ", ".join(f"{split} {count}" for split, count in whole["records"].items())
    took = "" if seconds is None else f"; {seconds:.1f} s"
    nothing = " - nothing to mend" if not checked.findings else ""
    out.print(f"{counts} in {sum(whole['records'].values())} records ({visible(used)}){nothing}{took}", style="bold", markup=False, soft_wrap=True)
    for account in diagnosed.accounts:
        reasons = ", ".join(f"{name} {count}" for name, count in account["reasons"].items())
        why = f" ({reasons})" if reasons else ""
        said = f"read {account['read']} = kept {account['kept']} + dropped {account['dropped']}{why} + rejected {account['rejected']}"
        out.print(f"{visible(account['split']):18} {said}  {visible(account['file'])}", markup=False, soft_wrap=True)
    if whole["redacted"]:
        out.print("redacted: " + ", ".join(f"{kind} {count}" for kind, count in whole["redacted"].items()), markup=False, soft_wrap=True)
    for split, counts in whole["tokens"].items():
        (p50, p95, most), (c50, c95, longest) = counts["prompt"], counts["completion"]
        out.print(
            f"tokens of {visible(split)}: prompt median {p50}, 95 % under {p95}, longest {most}; completion {c50}, {c95}, {longest}",
            markup=False,
            soft_wrap=True,
        )
    found = groups(checked.findings)
    if found and not brief:
        out.print("\nwhat matters most", style="bold")
        for group in found[:5]:
            first = group.findings[0]
            out.print(f"  {group.severity:8}{group.check} ({group.code.lower()}): {group.count}", style=STYLE[group.severity], markup=False, soft_wrap=True)
            out.print(f"          {visible(first.where)}: {visible(first.found, 160)}\n          {visible(first.fix)}", markup=False, soft_wrap=True)
    for group in found:
        shown = group.findings[: 0 if brief else 10]  # what refuses a run is printed once, by the refusal
        rest = f", the first {len(shown)} of them" if 0 < len(shown) < group.count else ""
        out.print(
            f"{'' if brief else chr(10)}{group.severity:8}{group.check} {group.code}: {group.count}{rest}",
            style=None if brief else "bold",
            markup=False,
            soft_wrap=True,
        )
        for finding in shown:
            say_finding(finding)


STYLE = {"error": "red", "warning": "yellow", "note": "dim"}


def say_finding(finding: Finding) -> None:
    for line in finding.problem().lines().splitlines():
        out.print(f"  {visible(line)}", markup=False, soft_wrap=True)


def say_plan(plan: Plan, with_how: bool) -> None:
    per_step = plan.tokens / max(plan.steps, 1)
    out.print(
        f"plan: {plan.records} records, {plan.tokens_per_epoch} tokens an epoch ({plan.loss_tokens_per_epoch} carry loss), longest row "
        f"{plan.longest_row_tokens}; {plan.steps} steps of about {per_step:.0f} tokens, {plan.padding:.1%} of what is computed is padding", soft_wrap=True,
    )  # fmt: skip
    price = "" if plan.cost is None else f", cost {plan.cost:.2f}"
    energy = "" if plan.energy_kwh is None else f", {plan.energy_kwh:.3f} kWh" + ("" if plan.energy_cost is None else f" for {plan.energy_cost:.2f}")
    out.print(
        f"plan: {plan.trainable_parameters:,} trainable beside {plan.base_parameters:,} frozen parameters; {plan.precision}; about "
        f"{plan.needed_bytes / 1e9:.1f} of {plan.device_bytes / 1e9:.1f} GB on {visible(plan.device)}{'' if plan.fits else ', WHICH DOES NOT FIT'}, and "
        f"{minutes(plan.seconds)} of training at {plan.tokens_per_second:.0f} tokens/s{price}{energy}", soft_wrap=True,
    )  # fmt: skip
    if with_how:
        for part, size in plan.memory_bytes.items():
            out.print(f"  {part:12} {size / 1e6:10.1f} MB  {plan.how.get(part, '')}", markup=False, soft_wrap=True)
        for name in (n for n in plan.how if n not in plan.memory_bytes):
            out.print(f"  {name}: {plan.how[name]}", markup=False, soft_wrap=True)
    if plan.combinations:
        say_combinations(plan)


def say_combinations(plan: Plan) -> None:
    """Devices by how the base is held and checkpointing: does it fit, in what, how long."""
    out.print(f"\n{'device':32} {'base':5} {'checkpointing':14} {'fits':5} {'needs':>9} {'of':>9} {'time':>10} {'cost':>9}", style="bold", soft_wrap=True)
    for c in plan.combinations:
        cost = "" if c["cost"] is None else f"{c['cost']:.2f}"
        words = (
            f"{c['device']:32} {c['load']:5} {'on' if c['checkpointing'] else 'off':14} {'yes' if c['fits'] else 'no':5} "
            f"{c['needed_bytes'] / 1e9:6.1f} GB {c['device_bytes'] / 1e9:6.1f} GB {minutes(c['seconds']):>10} {cost:>9}"
        )
        out.print(words, style=None if c["fits"] else "dim", markup=False, soft_wrap=True)
    for first in {c["device"]: c for c in reversed(plan.combinations)}.values():
        out.print(f"  time on {first['device']}: {first['how']}", markup=False, soft_wrap=True)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def say_parity(found: Parity) -> None:
    first = found.ways[0]
    for way, count in found.equal.items():
        equal = count == found.conversations
        out.print(f"{way:22} {count} of {found.conversations} prompts have the ids of {first}", style="green" if equal else "red", markup=False, soft_wrap=True)
    for difference in found.differences[:10]:
        ours, theirs = difference.ways
        out.print(
            f"\nconversation {difference.conversation + 1}, token {difference.position + 1}: {difference.guess}", style="bold", markup=False, soft_wrap=True
        )
        out.print(f"  {ours}: {visible(difference.ours)}\n  {theirs}: {visible(difference.theirs)}", markup=False, soft_wrap=True)
    if found.answers is not None:
        a = found.answers
        where = "" if a.first_difference is None else f", the first difference at token {a.first_difference + 1}"
        out.print(
            f"greedy answers, {found.engine} at {found.weights} beside transformers at fp32: {a.identical} of {a.prompts} identical{where}", soft_wrap=True
        )
        out.print(f"largest logit difference {a.largest_logit_difference:.2g}; same first token {a.same_first_token} of {a.prompts}", soft_wrap=True)


def say_run(done: Run, published: bool = True) -> None:
    """What a run made; not `published` where a version that was there already was evaluated again."""
    if done.version is None:
        return
    what = "published" if published else "evaluated"
    out.print(f"\n{what} {done.version.label}  {shown_path(done.version.folder)}", markup=False, soft_wrap=True)
    if done.evaluation is None:
        return
    say_scores(done.scores)
    out.print(f"report: {shown_path(done.evaluation / 'report.html')}", markup=False, soft_wrap=True)
    if (done.scores.get("gate") or {}).get("outcome") == "pass":
        out.print(f"it may ship: tuner promote {done.version.label} --to production", markup=False, soft_wrap=True)


def say_scores(scores: dict[str, Any]) -> None:
    """An evaluation in some thirty lines: the primary metric on every suite that has it, what else was measured, what is wrong, the gate."""
    from tuner.report.gate_text import gate_text

    primary = scores["primary"]
    out.print(f"{primary} with 95 % intervals, against the best of the base's prompts on the same items:", markup=False, soft_wrap=True)
    for name, suite in scores["suites"].items():
        found = suite["differences"].get(primary)
        if found is None:
            continue
        ours, theirs = suite["values"]["adapter"][primary], suite["values"][found["baseline"]][primary]
        out.print(
                  f"  {visible(name):16} n {found['n']:4}  base {interval_words(theirs)}  adapter {interval_words(ours)}  "
                  f"difference {found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], p {found['p']:.2g}  {found['verdict']}",
                  markup=False, soft_wrap=True)  # fmt: skip
    out.print("better and worse are said only where interval and test agree", style="dim", markup=False, soft_wrap=True)
    for name, suite in scores["suites"].items():
        if suite.get("facts", {}).get("words"):
            out.print(f"{visible(name)}: {visible(suite['facts']['words'])}", markup=False, soft_wrap=True)
    for flag in scores.get("flags", ()):
        out.print(f"look at {visible(flag['suite'])}: {visible(flag['words'])}", style="yellow", markup=False, soft_wrap=True)
    looks = scores.get("looks")
    if looks is not None and looks["count"] > 1:
        out.print(visible(looks["words"]), style="yellow", markup=False, soft_wrap=True)
    if scores.get("gate") is not None:
        out.print(f"\n{gate_text(scores['gate'])}", markup=False, soft_wrap=True)
    out.print(f"verdict: {scores['verdict']['word']}", style="bold", markup=False)


def interval_words(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def shown_path(path: Path) -> str:
    """Relative to the working folder where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def for_terminal(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))
