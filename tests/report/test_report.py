"""report.html says what report.json says, keeps data text, and asks nobody for anything. It refuses to trust the escaping: it parses the page."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, FLAGS, Browser, needs_browser
from tests.report.hostile import STRINGS, with_text
from tests.report.made import graded, toy_suites, write_evaluation
from tests.report.page import Page, luminance, nothing_points_outside, policy_allows_only_the_inline_style_and_script, squeezed, usable_pictures
from tuner.report import charts
from tuner.report.gather import EXAMPLES, _changes, _examples
from tuner.report.html import html
from tuner.report.markdown import markdown
from tuner.report.write import write_report
from tuner.safe_text import visible

SIZES = {"held_out": 60, "near": 48, "far": 24}
SKILL = {"adapter": {"held_out": 0.95, "near": 0.2, "far": 0.6}, "base": {"held_out": 0.4, "near": 0.8, "far": 0.6}}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version, folder = write_evaluation(tmp_path_factory.mktemp("report"), graded(toy_suites(SIZES), SKILL))
    write_report(version, folder)
    return folder


@pytest.fixture(scope="module")
def report(evaluation: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((evaluation / "report.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def page(evaluation: Path) -> Page:
    return Page((evaluation / "report.html").read_text(encoding="utf-8"))


# --- the numbers ---------------------------------------------------------------------------------------------------


def three(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def with_sign(number: float) -> str:
    return ("+" if number >= 0 else "") + three(number) if f"{number:.3f}" != "-0.000" else "−0.000"


def estimates(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in report["suites"].values():
        for values in one["values"].values():
            yield from (("value", e) for e in values.values())
        yield from (("difference", d) for d in one["differences"].values())


def test_every_value_and_difference_of_report_json_is_in_the_page_with_its_interval(report: dict[str, Any], page: Page) -> None:
    text = squeezed(page.text())
    swept = 0
    for kind, e in estimates(report):
        say = three if kind == "value" else with_sign
        assert f"{say(e['value'])} [{say(e['low'])}, {say(e['high'])}]" in text
        swept += 1
    assert swept == 3 * (2 + 2 + 4 + 4 + 4 + 4)  # suites × metrics of each contender, and the differences


def test_every_three_decimal_number_of_the_page_is_in_report_json(report: dict[str, Any], page: Page) -> None:
    allowed = {say(e[k]) for kind, e in estimates(report) for k in ("value", "low", "high") for say in ([three] if kind == "value" else [with_sign])}
    allowed |= {three(r[k]) for r in report["train_log"] for k in ("loss", "validation_loss") if k in r}
    found = re.findall(r"(?<!p )(?<!p = )(?<![\d.])[+−]?\d+\.\d{3}(?!\d)", page.text(between=" "))  # p has two digits
    assert len(found) > 200
    assert [f for f in found if f not in allowed] == []


def test_table_cells_stand_at_their_contender_and_metric(report: dict[str, Any], page: Page) -> None:
    tables = re.findall(r'<table class="numbers">\s*<caption>n = .*?</table>', page.source, re.DOTALL)
    assert len(tables) == len(report["suites"])
    swept = 0
    for table, one in zip(tables, report["suites"].values(), strict=True):
        rows = [
            [squeezed(Page(cell).text()) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        metrics = [head.split()[0] for head in rows[0][1:]]
        for row in rows[1:-1]:
            for metric, cell in zip(metrics, row[1:], strict=True):
                e = one["values"][row[0]].get(metric)
                assert cell.startswith(three(e["value"]) if e else "not measured"), (row[0], metric, cell)
                is_best = e is not None and one["differences"][metric]["baseline"] == row[0]
                assert ("best base" in cell) == is_best
                swept += 1
        for metric, cell in zip(metrics, rows[-1][1:], strict=True):
            d = one["differences"][metric]
            assert cell.startswith(with_sign(d["value"])) and d["verdict"] in cell and f"p {d['p']:.2g}" in cell
            swept += 1
    assert swept == 3 * 6 * 4


def test_dots_and_whiskers_lie_at_their_values(report: dict[str, Any], page: Page) -> None:
    tracks = re.findall(r'<svg class="track".*?</svg>', page.source, re.DOTALL)
    assert len(tracks) == len(report["suites"])
    for track, one in zip(tracks, report["suites"].values(), strict=True):
        base = one["values"][one["differences"]["exact_match"]["baseline"]]["exact_match"]
        for group, mark, e in (("base", r'<rect class="mark" x', base), ("adapter", r'<circle class="mark" cx', one["values"]["adapter"]["exact_match"])):
            drawn = re.search(rf'<g class="{group}">.*?</g>', track, re.DOTALL)
            assert drawn is not None
            assert f'{mark}="{100 * e["value"]:.3f}%"' in drawn[0]
            assert f'x1="{100 * e["low"]:.3f}%" x2="{100 * e["high"]:.3f}%"' in drawn[0]


def test_loss_curve_passes_through_every_logged_loss(report: dict[str, Any], page: Page) -> None:
    points = re.search(r'<polyline class="training" points="([^"]*)"', page.source)
    assert points is not None
    logged = [r for r in report["train_log"] if "loss" in r]
    drawn = [tuple(map(float, p.split(","))) for p in points[1].split()]
    top = max(float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', page.source.split('class="frame-grid"')[1].split("</svg>")[0]))
    assert len(drawn) == len(logged) == 76
    for (x, y), row in zip(drawn, logged, strict=True):
        assert x == pytest.approx(1000 * row["step"] / 76, abs=0.01)
        assert y == pytest.approx(1000 * (1 - row["loss"] / top), abs=0.01)


def test_axis_holds_every_value_and_zero() -> None:
    random.seed(0)
    for _ in range(500):
        values = [random.uniform(-1, 1) * 10 ** random.uniform(-6, 6) for _ in range(random.randint(1, 6))]
        scale = charts.axis(values)
        slack = 1e-8 * (scale.high - scale.low)
        assert scale.low <= min(0.0, *values, 0.0) + slack and scale.high >= max(0.0, *values, 0.0) - slack
        assert 2 <= len(scale.ticks) <= 9 and scale.ticks[0] == pytest.approx(scale.low) and scale.ticks[-1] == pytest.approx(scale.high)


def test_a_thinned_curve_keeps_its_ends_and_its_extremes() -> None:
    random.seed(1)
    points = [(float(i), random.random()) for i in range(20_000)]
    kept = charts.thinned(points)
    assert len(kept) <= charts.MOST_POINTS + 4
    assert kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points) and kept == sorted(kept)
    assert {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} <= set(kept)


# --- the words -----------------------------------------------------------------------------------------------------


def test_verdict_comes_first_with_both_values_the_interval_n_and_p(report: dict[str, Any], page: Page) -> None:
    said = squeezed("".join(t for inside, t in page.texts if "h1" in inside))
    v = report["verdict"]
    values = report["suites"]["held_out"]["values"]
    assert said.startswith("banking-intents@1 is ▲ better than the best prompted base: exact_match")
    assert f"{three(values['adapter']['exact_match']['value'])} against {three(values[v['baseline']]['exact_match']['value'])} on 60 held_out items" in said
    assert f"{with_sign(v['value'])}, 95 % interval {with_sign(v['low'])} to {with_sign(v['high'])}, p = {v['p']:.2g}" in said


def test_a_suite_where_the_adapter_is_worse_is_named_before_any_plot(report: dict[str, Any], page: Page) -> None:
    d = report["suites"]["near"]["differences"]["exact_match"]
    assert d["verdict"] == "worse"
    said = squeezed(page.text()).split("Every suite:")[0]
    assert f"▼ Worse than the base on 1 of 3 suites near : exact_match {with_sign(d['value'])}" in said.replace("near:", "near :")
    assert "worse than the base on 1 of 3 suites: near" in markdown(report)


@pytest.mark.parametrize(("word", "starts"), [("worse", "x@1 is ▼ worse than"), ("no difference seen", "● No difference seen between x@1 and")])
def test_verdict_words_are_plain(report: dict[str, Any], word: str, starts: str) -> None:
    changed = copy.deepcopy(report) | {"name": "x"}
    changed["verdict"]["word"] = word
    page = Page(html(changed))
    assert squeezed("".join(t for inside, t in page.texts if "h1" in inside)).startswith(starts)
    assert "“No difference seen” is not “no difference”" in page.text()


def test_accounts_findings_and_commands_are_in_the_page(report: dict[str, Any], page: Page) -> None:
    text = squeezed(page.text())
    assert "data/train.jsonl 300 276 24 0" in re.sub(r"(?<=[a-z0-9])(?=data/)", " ", squeezed(re.sub(r"<[^>]*>", " ", page.source)))
    assert "exact_duplicate: 24 notes" in text and "data/train.jsonl:3" in text and "found 12" in text and "found 13" not in text
    assert "tuner run recipe.yaml" in text and "tuner evaluate banking-intents@1 recipe.yaml" in text
    assert report["adapter_digest"].removeprefix("sha256:") in text and "does not add up" not in text
    assert "98.4 s" in text and "86.7 s" in text and "0.88 ×" in text


def test_a_file_whose_account_does_not_add_up_is_marked(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["data"]["files"][0]["kept"] -= 1
    assert "does not add up" in Page(html(changed)).text()


def test_a_report_without_optional_parts_still_prints(report: dict[str, Any]) -> None:
    bare = copy.deepcopy(report)
    bare["training"], bare["train_log"], bare["hardware"], bare["findings"], bare["changes"] = {}, [], {}, [], {}
    bare["examples"] = {name: [] for name in bare["suites"]}
    bare["template"]["system"] = None
    text = Page(html(bare)).text()
    assert "The training log holds no losses." in text and "no system prompt" in text and "Nothing: no errors" in text and "Planned" not in text


# --- data stays text -----------------------------------------------------------------------------------------------


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a report with its place, keys too."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield f"{path}/", k
            yield from strings(v, f"{path}/{k}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from strings(v, f"{path}[{i}]")
    elif isinstance(value, str):
        yield path, value


def flat(text: str) -> str:
    return text.replace("\n", "\\n")


def test_hostile_strings_in_every_field_stay_text(report: dict[str, Any]) -> None:
    small = copy.deepcopy(report)
    small["examples"] = {name: chosen[:2] for name, chosen in small["examples"].items()}
    small["findings"] = [{**g, "first": g["first"][:2]} for g in small["findings"]]
    small["train_log"] = small["train_log"][:3]
    plain = Page(html(with_text(small, lambda s: f"plain·{s}")))
    shown = flat(plain.text())
    sinks = sorted({s for _, s in strings(small) if visible(f"plain·{s}") in shown})
    assert len(STRINGS) >= 200 and len(sinks) >= 80, (len(STRINGS), len(sinks))
    swept = 0
    for hostile in STRINGS:
        page = Page(html(with_text(small, lambda s, h=hostile: f"{h}·{s}")))  # type: ignore[misc]
        assert page.tree == plain.tree, hostile
        text = flat(page.text())
        for sink in sinks:
            assert visible(f"{hostile}·{sink}") in text, (hostile, sink)
            swept += 1
    assert swept == len(STRINGS) * len(sinks) >= 16_000


def test_control_bidi_and_invisible_characters_are_shown_as_escapes(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["recipe"] = "name: a\u202eb\x00c\u200bd\n# second line\u2028"
    source = html(changed)
    assert "name: a\\u202eb\\x00c\\u200bd\n# second line\\u2028" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", source)


def test_long_texts_are_cut_with_their_full_length_said(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["examples"]["near"][0]["question"] = "q" * 123_456
    text = Page(html(changed)).text()
    assert "q" * 4000 + "… (cut: the first 4,000 of 123,456 characters)" in text and "q" * 4001 not in text


def test_a_report_of_huge_data_stays_below_two_megabytes(report: dict[str, Any]) -> None:
    huge = copy.deepcopy(report)
    example = huge["examples"]["near"][0]
    long = {**example, "question": "\u202e" * 50_000, "adapter": "<&\"'>" * 20_000, "baseline": "\U0001f9a6" * 50_000, "references": ["\x00" * 50_000] * 50}
    huge["suites"] = {f"suite {i}": {**huge["suites"]["near"], "role": "ood" if i else "held_out"} for i in range(30)}
    huge["examples"] = {name: [long] * EXAMPLES for name in huge["suites"]}
    huge["changes"] = {}
    huge["verdict"]["suite"] = "suite 0"
    huge["train_log"] = [{"step": i, "loss": 1 / (i + 1)} for i in range(200_000)] + [{"step": i, "validation_loss": 0.5} for i in range(0, 200_000, 100)]
    huge["data"]["files"] = huge["data"]["files"] * 3000
    huge["recipe"] = "<" * 1_000_000
    size = len(html(huge).encode())
    assert size < 2_000_000, size


# --- one file, no way out ------------------------------------------------------------------------------------------


def test_policy_allows_exactly_the_inline_style_and_script(page: Page) -> None:
    policy_allows_only_the_inline_style_and_script(page)


def test_nothing_points_outside_the_page(page: Page) -> None:
    assert nothing_points_outside(page) > 10


def test_page_is_usable_by_keyboard_and_screen_reader(page: Page) -> None:
    assert usable_pictures(page) == len(SIZES) + 1
    assert all(a.get("aria-pressed") in ("true", "false") for a in page.of("button"))
    assert all("hidden" not in a for a in page.of("li")), "readable without script"


def test_text_colours_have_the_contrast_of_wcag_aa_in_light_and_dark(page: Page) -> None:
    swept = 0
    for root in re.findall(r":root \{(.*?)\}", page.content("style"), re.DOTALL)[:2]:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", root))
        pairs = [(c, p) for c in ("ink", "muted", "adapter", "base", "link") for p in ("page", "raised")]
        pairs += [(c, f"{c}-page") for c in ("better", "worse", "same")] + [(c, "page") for c in ("better", "worse", "same")]
        for text, ground in [*pairs, ("ink", "worse-page"), ("link", "worse-page")]:
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
            swept += 1
    assert swept == 36


# --- which examples are shown --------------------------------------------------------------------------------------


def answered(outcomes: list[tuple[int, int]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers and scores of one suite from (adapter right, baseline right) by item."""
    rows = [
        {"suite": "s", "item": i, "where": f"f:{i}", "contender": contender, "question": [{"role": "user", "content": f"q{i}"}], "references": ["yes"],
         "answer": "yes" if right else "no", "scores": {"exact_match": float(right)}}
        for i, pair in enumerate(outcomes) for contender, right in zip(("adapter", "base zero_shot"), pair, strict=True)
    ]  # fmt: skip
    rows += [{**row, "contender": "base few_shot", "answer": "never shown"} for row in rows]
    found = {"exact_match": {"baseline": "base zero_shot"}}
    return rows, {"primary": "exact_match", "metrics": {"exact_match": {"higher_is_better": True}}, "suites": {"s": {"differences": found}}}


KINDS = {(1, 0): "won", (0, 1): "lost", (0, 0): "both wrong", (1, 1): "both right"}


def test_lost_examples_come_first_and_none_is_invented_or_shown_twice() -> None:
    random.seed(2)
    for _ in range(300):
        weights = [random.random() ** 3 for _ in KINDS]
        outcomes = random.choices(list(KINDS), weights, k=random.randint(1, 80))
        rows, scores = answered(outcomes)
        chosen, counts = _examples(rows, "s", scores), {k: sum(KINDS[o] == k for o in outcomes) for k in KINDS.values()}
        kinds = [e["change"] for e in chosen]
        assert len({e["item"] for e in chosen}) == len(chosen) <= EXAMPLES
        assert all(e["change"] == KINDS[outcomes[e["item"]]] and e["question"] == f"q{e['item']}" for e in chosen)
        assert all(e["adapter"] == ("yes" if outcomes[e["item"]][0] else "no") and e["baseline"] == ("yes" if outcomes[e["item"]][1] else "no") for e in chosen)
        assert "both right" not in kinds
        assert len(chosen) == min(EXAMPLES, counts["won"] + counts["lost"] + counts["both wrong"])
        for shown in range(1, len(kinds) + 1):
            lost, won = kinds[:shown].count("lost"), kinds[:shown].count("won")
            assert lost >= min(won, counts["lost"]), kinds
        assert _changes(rows, "s", scores) == {k: n for k, n in counts.items() if n}


def test_a_suite_without_the_primary_metric_has_no_examples() -> None:
    rows, scores = answered([(1, 0)])
    scores["suites"]["s"]["differences"] = {}
    assert _examples(rows, "s", scores) == []


def test_counts_beside_the_examples_are_those_of_answers_jsonl(report: dict[str, Any], evaluation: Path) -> None:
    answers = [json.loads(line) for line in (evaluation / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, one in report["suites"].items():
        baseline = one["differences"]["exact_match"]["baseline"]
        right = {(r["item"], r["contender"]): r["answer"] == r["references"][0] for r in answers if r["suite"] == name}
        pairs = [(right[i, "adapter"], right[i, baseline]) for i in range(one["n"])]
        assert report["changes"][name] == {k: n for o, k in KINDS.items() if (n := pairs.count((bool(o[0]), bool(o[1]))))}


# --- in a browser --------------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(("width", "scheme", "media"), [(375, "light", ""), (375, "dark", ""), (1280, "light", ""), (1280, "dark", ""), (688, "dark", "print")])
def test_page_opens_without_a_complaint_a_request_or_sideways_scrolling(browser: Browser, evaluation: Path, width: int, scheme: str, media: str) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(evaluation / "report.html", width=width, scheme=scheme, media=media)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == ("rgb(15, 18, 22)" if scheme == "dark" and not media else "rgb(255, 255, 255)")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.problems == []
    assert browser.requests == [(evaluation / "report.html").resolve().as_uri()]


@needs_browser
def test_a_breach_of_the_policy_would_have_been_seen(browser: Browser, evaluation: Path) -> None:
    browser.open(evaluation / "report.html")
    browser.problems.clear()
    browser.run('document.body.insertAdjacentHTML(\'beforeend\', \'<p style="color:red"><img src="https://evil.example/x.png" onerror="1">\'), 1')
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert any("Content Security Policy" in p or "ContentSecurityPolicy" in p for p in browser.problems)


SHOWN = "[...document.querySelectorAll('li.example')].filter(e => e.offsetParent !== null).map(e => e.querySelector('.outcome').innerText.slice(2)).sort()"


@needs_browser
def test_filter_buttons_show_what_they_say(browser: Browser, evaluation: Path, report: dict[str, Any]) -> None:
    every = [(i, e["change"]) for i, chosen in enumerate(report["examples"].values()) for e in chosen]
    browser.open(evaluation / "report.html")
    browser.problems.clear()
    assert browser.run(SHOWN) == sorted(c for _, c in every)
    browser.click("button[data-value=lost]")
    assert browser.run(SHOWN) == [c for _, c in every if c == "lost"] != []
    assert browser.run("document.querySelector('button[data-value=lost]').getAttribute('aria-pressed')") == "true"
    assert browser.run("document.getElementById('shown').textContent") == f"{sum(c == 'lost' for _, c in every)} of {len(every)} examples"
    browser.click("button[data-group=suite][data-value='1']")
    assert browser.run(SHOWN) == [c for i, c in every if c == "lost" and i == 1]
    browser.run("document.querySelector('button[data-group=change][data-value=\"\"]').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else "")
    assert browser.run(SHOWN) == sorted(c for i, c in every if i == 1)
    assert browser.problems == []


@needs_browser
def test_a_browser_builds_the_same_elements_from_hostile_data(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    trees = []
    for texts in ([f"plain {i}" for i in range(len(STRINGS))], STRINGS):
        page, changed = tmp_path / f"{len(trees)}.html", with_text(report, lambda s, last=texts[-1]: f"{last}·{s}")  # type: ignore[misc]
        name = next(iter(changed["examples"]))
        example = changed["examples"][name][0]
        changed["examples"][name] = [{**example, "question": t, "adapter": t, "baseline": t, "references": [t], "where": t} for t in texts]
        page.write_text(html(changed), encoding="utf-8")
        browser.problems.clear()
        browser.open(page, width=375)
        assert browser.run("document.documentElement.scrollWidth") == 375
        trees.append(browser.run("[...document.querySelectorAll('*')].map(e => e.tagName + ' ' + e.getAttributeNames().sort().join(' ')).join('\\n')"))
        assert browser.run("window.pwned") is None
        assert browser.problems == []
    assert trees[0] == trees[1] and trees[0].count("\n") > 3000


@needs_browser
def test_the_printed_dom_is_the_page_and_the_console_is_silent(evaluation: Path, tmp_path: Path) -> None:
    flags = [f for f in FLAGS if f != "--remote-debugging-pipe"]
    command = [
        CHROMIUM or "chromium",
        *flags,
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        (evaluation / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Worse than the base on 1 of 3 suites" in done.stdout and 'id="filters" class="filters">' in done.stdout
    assert "CONSOLE" not in done.stderr
