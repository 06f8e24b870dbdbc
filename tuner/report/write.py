"""Finished files in, three reports out: report.json, report.md and one self-contained report.html."""

from __future__ import annotations

from pathlib import Path

from tuner.durable import json_text, write_text
from tuner.report.gather import gather
from tuner.report.html import html
from tuner.report.markdown import markdown


def write_report(version_folder: Path, evaluation_folder: Path) -> None:
    """Write the reports into `evaluation_folder`, from its scores and answers and the version's own files."""
    report = gather(version_folder, evaluation_folder)
    write_text(evaluation_folder / "report.json", json_text(report), frozen=True)
    write_text(evaluation_folder / "report.md", markdown(report), frozen=True)
    write_text(evaluation_folder / "report.html", html(report), frozen=True)
