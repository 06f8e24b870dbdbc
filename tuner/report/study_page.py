"""The pages of studies, from the content of curve.json or sweep.json alone: one file that opens anywhere, without a script.

They refuse what report.html refuses: data is text, and nothing is fetched.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tuner.report.html import _digest, _environment, _part
from tuner.report.study_charts import curve_plot

View = dict[str, Any]


def curve_page(study: View) -> str:
    """The learning curve as a page."""
    title = f"{study['metric']} over training records"
    return _page("curve.html.j2", study, plot=curve_plot("curve-plot", title, study["points"], study["base"], study["share"]))


def sweep_page(study: View) -> str:
    """The trials of a sweep as a page, the best first."""
    by_number = {trial["number"]: trial for trial in study["trials"]}
    rows = [by_number[number] for number in study["order"]]
    good = [row for row in rows if row["value"] is not None]
    keys = list(dict.fromkeys(key for row in rows for key in row["keys"]))
    best, worst = (good[0], good[-1]) if good else (None, None)
    return _page("sweep.html.j2", study, rows=rows, keys=keys, best=best, worst=worst, finished=len(good), failed=len(rows) - len(good))


def _page(template: str, study: View, **more: Any) -> str:
    style = _part("report.css") + _part("study.css")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(study=study, style=Markup(style), policy=policy, **more)
