"""Data stays text, the page stays small and closed, and everyone can read it. It refuses to trust the escaping: it parses the page."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.hostile import STRINGS, with_text
from tests.report.made import made, write_evaluation
from tests.report.page import Page, inline_parts_allowed, luminance, nothing_points_outside, usable_pictures
from tuner.report.html import html
from tuner.report.markdown import markdown
from tuner.report.write import write_report
from tuner.safe_text import visible


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    version, folder = write_evaluation(tmp_path_factory.mktemp("safety"), made(items=24, transformed=6, probes=21))
    write_report(version, folder)
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> Page:
    return Page(html(report))


def small_of(report: dict[str, Any]) -> dict[str, Any]:
    """One suite a role and two of ood, few rows of everything: every kind of string, and quick to render two hundred times."""
    few = copy.deepcopy(report)
    kept = ("held_out", "near", "casual.3", "abstention", "forgetting", "memorisation", "cost")
    few["suites"] = {name: few["suites"][name] for name in kept}
    for contender in ("base few_shot", "base zero_shot, labels only"):
        del few["suites"]["held_out"]["values"][contender]
    for family in ("arithmetic", "calendar", "comparison", "logic", "strings"):
        for of in (*few["suites"]["forgetting"]["values"].values(), few["suites"]["forgetting"]["differences"]):
            del of[family]
    few["changes"] = {name: of for name, of in few["changes"].items() if name in kept}
    few["examples"] = [e for e in few["examples"] if e["suite"] in kept][:3]
    few["findings"] = [{**g, "first": g["first"][:2]} for g in few["findings"]]
    few["train_log"], few["slices"]["rows"], few["data"]["files"] = few["train_log"][:3], few["slices"]["rows"][:2], few["data"]["files"][:2]
    few["judge"] = {"model": "a judge", "agreement": "0.8 of 50"}
    few["gate"]["left_out"] = ["memorisation.extractable: nothing to measure it on"]
    return few


def strings(value: Any) -> Iterator[str]:
    """Every string of a report, keys too."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings(v)
    elif isinstance(value, str):
        yield value


def flat(text: str) -> str:
    return text.replace("\n", "\\n")


def test_hostile_strings_in_every_field_stay_text(report: dict[str, Any]) -> None:
    small = small_of(report)
    plain = Page(html(with_text(small, lambda s: f"plain·{s}")))
    shown = flat(plain.text())
    sinks = sorted({visible(s) for s in strings(small) if visible(f"plain·{s}") in shown})
    assert len(STRINGS) >= 200 and len(sinks) >= 140, (len(STRINGS), len(sinks))
    swept = 0
    for hostile in STRINGS:
        page = Page(html(with_text(small, lambda s, h=hostile: f"{h}·{s}")))  # type: ignore[misc]
        assert page.tree == plain.tree, hostile
        text = flat(page.text())
        before = visible(hostile)
        for sink in sinks:
            assert f"{before}·{sink}" in text, (hostile, sink)
            swept += 1
    assert swept == len(STRINGS) * len(sinks) >= 28_000


def test_hostile_strings_end_no_table_and_start_no_html_in_markdown(report: dict[str, Any]) -> None:
    small = small_of(report)
    rows = markdown(small).count("\n")
    for hostile in STRINGS:
        said = markdown(with_text(small, lambda s, h=hostile: f"{h}·{s}"))  # type: ignore[misc]
        assert said.count("\n") == rows, hostile
        assert not re.search(r"(?<!\\)[<>]", said), hostile
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in said.split("\n") if line.startswith("| ")]
        assert set(cells) <= {6, 9}, hostile


def test_control_bidi_and_invisible_characters_are_shown_as_escapes(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["recipe"] = "name: a\u202eb\x00c\u200bd\n# second line\u2028"
    source = html(changed)
    assert "name: a\\u202eb\\x00c\\u200bd\n# second line\\u2028" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", source)


def test_long_texts_are_cut_with_their_full_length_said(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["examples"][0]["question"] = "q" * 123_456
    text = Page(html(changed)).text()
    assert "q" * 4000 + "… (cut: the first 4,000 of 123,456 characters)" in text and "q" * 4001 not in text


def test_a_report_of_huge_data_stays_below_two_megabytes(report: dict[str, Any]) -> None:
    huge = copy.deepcopy(report)
    example = huge["examples"][0]
    long = {**example, "question": "\u202e" * 50_000, "adapter": "<&\"'>" * 20_000, "baseline": "\U0001f9a6" * 50_000, "references": ["\x00" * 50_000] * 50}
    huge["suites"] |= {f"suite {i}": {**huge["suites"]["near"], "lead": "exact_match"} for i in range(40)}
    huge["examples"] = [long] * 20
    huge["train_log"] = [{"step": i, "loss": 1 / (i + 1)} for i in range(200_000)] + [{"step": i, "validation_loss": 0.5} for i in range(0, 200_000, 100)]
    huge["data"]["files"] = huge["data"]["files"] * 3000
    huge["recipe"] = "<" * 1_000_000
    huge["slices"]["rows"] = huge["slices"]["rows"] * 400
    huge["flags"] = [{**huge["flags"][0], "words": "<" * 5000}] * 500
    huge["gate"]["rules"] = [{**huge["gate"]["rules"][0], "why": "&" * 5000}] * 50
    huge["suites"]["memorisation"]["facts"]["by_length"] = huge["suites"]["memorisation"]["facts"]["by_length"] * 5000
    size = len(html(huge).encode())
    assert len(huge["suites"]) > 70 and size < 2_000_000, size


def test_an_evaluation_of_thousands_of_items_stays_below_two_megabytes(tmp_path: Path) -> None:
    version, folder = write_evaluation(tmp_path, made(items=2000, transformed=100, probes=1000, further=3))
    write_report(version, folder)
    assert sum(1 for _ in (folder / "answers.jsonl").open(encoding="utf-8")) > 20_000
    assert (folder / "report.html").stat().st_size < 2_000_000


# --- one file, no way out, for everyone ----------------------------------------------------------------------------


def test_policy_allows_exactly_the_inline_style_and_script(page: Page) -> None:
    assert inline_parts_allowed(page) == {"style", "script"}


def test_nothing_points_outside_the_page(page: Page) -> None:
    assert nothing_points_outside(page) > 20


def test_page_is_usable_by_keyboard_and_screen_reader(report: dict[str, Any], page: Page) -> None:
    suites = report["suites"].items()
    rows = sum(s["lead"] is not None and (s["role"] != "transform" or name.endswith(".3")) for name, s in suites)
    assert usable_pictures(page) == rows + len(report["slices"]["rows"]) + 10 + 8 + 2 + 1  # families, probes with overall, measures, loss
    assert all(a.get("aria-pressed") in ("true", "false") for a in page.of("button"))
    labelled = {a["for"] for a in page.of("label")}
    assert {a["id"] for a in [*page.of("select"), *page.of("input")]} == labelled and len(labelled) == 2
    assert all(a.get("tabindex") == "0" and a.get("role") == "region" for a in page.of("div") if a.get("class") == "scroll")
    assert all("hidden" not in a for a in page.of("li")), "readable without script"
    assert page.elements[[tag for tag, _ in page.elements].index("body") + 1] == ("a", {"class": "skip", "href": "#main"})


COLOURS = ("ink", "muted", "adapter", "base", "link", "plain")
WORDS = ("better", "worse", "same", "unsure")


def test_text_colours_have_the_contrast_of_wcag_aa_in_light_dark_and_print(page: Page) -> None:
    swept = 0
    for root in re.findall(r":root \{(.*?)\}", page.content("style"), re.DOTALL)[:2]:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", root))
        pairs = [(c, p) for c in COLOURS for p in ("page", "raised")]
        pairs += [(c, f"{c}-page") for c in WORDS] + [(c, "page") for c in WORDS] + [(c, "raised") for c in WORDS]
        for text, ground in [*pairs, ("ink", "worse-page"), ("muted", "worse-page"), ("link", "worse-page"), ("page", "ink")]:
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
            swept += 1
    assert swept == 2 * 28
    print_root = re.findall(r":root \{(.*?)\}", page.content("style"), re.DOTALL)[2]
    printed = {k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for k, v in re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", print_root)}
    for text in (*COLOURS, *WORDS):
        assert 1.05 / (luminance(printed[text]) + 0.05) >= 4.5, text
