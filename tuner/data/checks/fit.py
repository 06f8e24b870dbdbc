"""Checks of whether answers belong to their questions, without a model: swapped rows, shifted columns.

They point at another record as the answer's likely home; an answer that is merely unlike its question is not called wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuner.data.answer_fit import answer_fit
from tuner.data.checks.coverage import drawn
from tuner.data.embedding import available, static_encoder
from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.measure import Context
from tuner.data.personal import masked_quote

MOST = 50_000  # train records looked at, evenly drawn beyond that
ENOUGH = 100


def wrong_answers(context: Context) -> Iterator[Finding]:
    """An answer that fits the question of another record, which has no fitting answer of its own; answers that follow no question at all."""
    records = drawn([context.records[i] for i in context.ranges.get("train", range(0))], MOST)
    if context.task != "text" or len(records) < ENOUGH or not context.one_reference[0]:
        return
    answers = [r.completion for r in records]
    asked, unknown = static_encoder().encode([r.question for r in records])
    said, unknown_too = static_encoder().encode(answers)
    if not (available(unknown) and available(unknown_too)):
        return
    fit = answer_fit(asked, said, answers, seed=0)
    if fit.is_unrelated:
        yield remark(context.file("train"), "UNRELATED", "completion", f"{fit.misfit_share:.0%} of the answers fit strangers' questions as well as their own",
                     "answers to their questions", "nothing if answers are codes or names; else look whether a column was shifted or shuffled",
                     "train")  # fmt: skip
        return
    for row, home in zip(fit.rows.tolist(), fit.homes.tolist(), strict=True):
        record, other = records[row], records[home]
        yield finding(record, "WRONG_ANSWER", "completion",
                      f"{masked_quote(record.completion, 60)} to {masked_quote(record.question, 60)}; it seems to answer {other.where}: "
                      f"{masked_quote(other.question, 60)}",
                      "the answer to this question", "look at both records; exchange the answers back, or delete them")  # fmt: skip


FIT: dict[str, Check] = {"wrong_answers": Check("an answer that seems to belong to another record", "warn", whole=wrong_answers, ranked=True)}
