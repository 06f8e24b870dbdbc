"""report.html says what report.json says, whatever was and was not measured. It refuses to trust the templates: it parses the page."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.made import first_schema, made, write_evaluation
from tests.report.made_numbers import value_of
from tests.report.page import Page, squeezed
from tuner.report.html import html
from tuner.report.write import write_report


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version, folder = write_evaluation(tmp_path_factory.mktemp("report"), made())
    write_report(version, folder)
    return folder


@pytest.fixture(scope="module")
def page(evaluation: Path) -> Page:
    return Page((evaluation / "report.html").read_text(encoding="utf-8"))


# --- the numbers ---------------------------------------------------------------------------------------------------


def three(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def with_sign(number: float) -> str:
    return ("+" if number >= 0 else "") + three(number) if f"{number:.3f}" != "-0.000" else "−0.000"


def in_unit(metric: str, number: float) -> str:
    """A value as people read it: bytes, rates, seconds, counts, and three decimals for all else."""
    ending = {
        "adapter_bytes": f"{number / 1e6:.1f} MB",
        "tokens_per_second": f"{number:,.1f}",
        "first_token_seconds": f"{number:.3f} s",
        "prompt_tokens": f"{number:,.0f}",
    }
    return ending.get(metric, three(number)).replace("-", "−")


def estimates(report: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for one in report["suites"].values():
        for values in one["values"].values():
            yield from (("value", m, e) for m, e in values.items())
        yield from (("difference", m, d) for m, d in one["differences"].items())
        for contender, of in one["facts"].get("drops", {}).items():
            if contender in ("adapter", one["differences"]["exact_match"]["baseline"]):  # those of other ways stand in report.json alone
                yield from (("difference", m, d) for m, d in of.items())
    for row in report["slices"]["rows"]:
        yield from (("value", "", row[side]) for side in ("adapter", "baseline"))
        yield "difference", "", row["difference"]


def test_every_value_difference_drop_and_slice_of_report_json_is_in_the_page_with_its_interval(report: dict[str, Any], page: Page) -> None:
    text = squeezed(page.text())
    swept = 0
    for kind, metric, e in estimates(report):
        signs = "+" if kind == "difference" else ""
        say = [in_unit(metric, e[k]) for k in ("value", "low", "high")]
        value, low, high = [said if not signs or said.startswith("−") else signs + said for said in say]
        assert f"{value} [{low}, {high}]" in text, (metric, e)
        swept += 1
    assert swept > 400


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for v in value.values():
            yield from numbers_of(v)
    elif isinstance(value, list):
        for v in value:
            yield from numbers_of(v)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_every_three_decimal_number_of_the_page_is_in_report_json(report: dict[str, Any], page: Page) -> None:
    allowed = {say(number) for number in numbers_of(report) for say in (three, with_sign)}
    allowed |= {
        said for text in re.findall(r"\d\.\d{3}", json.dumps([s["facts"] for s in report["suites"].values()] + [report["rehearsal"]])) for said in [text]
    }
    found = re.findall(r"(?<!p )(?<!p = )(?<![\d.])[+−]?\d+\.\d{3}(?!\d)", page.text(between=" "))  # p has two digits
    assert len(found) > 1000
    assert [f for f in found if f not in allowed] == []


def test_table_cells_stand_at_their_contender_and_metric(report: dict[str, Any], page: Page) -> None:
    after = [part.split("</table>")[0] for part in re.split(r'(?=<h3 id="suite-)', page.source)]
    sections = [(squeezed(Page(part.split("</h3>")[0] + "</h3>").text()).split()[0], part) for part in after if "<caption>n = " in part]
    assert len(sections) == sum(s["role"] in ("held_out", "ood", "transform") for s in report["suites"].values()) == 34
    swept = 0
    for name, part in sections:
        one, table = report["suites"][name], part[part.index("<table") :]
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
    assert swept == 7 * 3 + 3 * 4 * 3 + 30 * 4 * 2


def test_numbers_can_be_computed_again_from_answers_jsonl(report: dict[str, Any], evaluation: Path) -> None:
    rows = [json.loads(line) for line in (evaluation / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    swept = 0
    for name, one in report["suites"].items():
        for contender, values in one["values"].items():
            of = [r for r in rows if r["suite"] == name and r["contender"] == contender]
            for metric, e in values.items():
                assert value_of(metric, of)[1] == pytest.approx(e["value"])
                swept += 1
    assert swept > 200


def test_the_command_in_the_page_computes_the_verdicts_number_again(report: dict[str, Any], page: Page, evaluation: Path) -> None:
    shown = next(t for t in page.content("code").split("python3 -c ")[1:])
    command = "python3 -c " + shown[: shown.index("len(rows))'") + len("len(rows))'")]
    done = subprocess.run(["bash", "-c", command.replace("python3", sys.executable, 1)], cwd=evaluation, capture_output=True, text=True, check=True)
    e = report["suites"]["held_out"]["values"]["adapter"]["exact_match"]
    value, n = done.stdout.split(" n ")
    assert float(value) == pytest.approx(e["value"]) and int(n) == e["n"] == 140


# --- the words -----------------------------------------------------------------------------------------------------


def test_verdict_comes_first_with_both_values_the_interval_n_and_p(report: dict[str, Any], page: Page) -> None:
    said = squeezed("".join(t for inside, t in page.texts if "h1" in inside))
    v = report["verdict"]
    values = report["suites"]["held_out"]["values"]
    assert said.startswith("banking-intents@1 is ▲ better than the best prompted base: exact_match")
    assert f"{three(values['adapter']['exact_match']['value'])} against {three(values[v['baseline']]['exact_match']['value'])} on 140 held_out items" in said
    assert f"{with_sign(v['value'])}, 95 % interval {with_sign(v['low'])} to {with_sign(v['high'])}, p = {v['p']:.2g}" in said


def test_gate_flags_and_weak_suites_stand_before_any_plot(report: dict[str, Any], page: Page) -> None:
    said = squeezed(page.text()).split("Every suite:")[0]
    assert "Gate: ▼ fail" in said and "✓ pass" in said and "? undecided" in said
    for rule in report["gate"]["rules"]:
        assert rule["words"] in said and rule["needed"] in said and rule["why"] in said
    assert "About 1,400 more items would decide" in said and "7 of 100 [3.4, 13.8]" in said
    assert "4 things to know before relying on it" in said and all(f["words"] in said for f in report["flags"])
    d = report["suites"]["near"]["differences"]["exact_match"]
    assert (
        d["verdict"] == "worse"
        and f"near: exact_match {with_sign(d['value'])}" in said
        and "Worse than the base on the leading metric of 2 of 36 suites" in said
    )


def test_a_page_that_is_worse_on_no_leading_metric_names_the_other_metrics_it_is_worse_on(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    for one in changed["suites"].values():
        if one["lead"]:
            one["differences"][one["lead"]]["verdict"] = "better"
    d = changed["suites"]["forgetting"]["differences"]["text_loss"]
    said = squeezed(Page(html(changed)).text()).split("Every suite:")[0]
    assert d["verdict"] == "worse" and "Worse than the base on other metrics than the leading ones" in said and "leading metric of none of 36 suites" in said
    assert f"forgetting: text_loss {with_sign(d['value'])} [{with_sign(d['low'])}, {with_sign(d['high'])}] n {d['n']}" in said


def test_n_and_p_beside_a_verdict_are_of_its_difference_and_a_flagged_suite_says_so(report: dict[str, Any], page: Page) -> None:
    found = report["suites"]["forgetting"]
    d = found["differences"]["overall"]
    assert d["n"] == 300 and found["n"] == 324  # the others are passages of text
    told = squeezed(page.text(between=" ")).split("Every suite:")[1].split("Gained and lost")[0]
    assert "forgetting overall, n 300 " in told and f"{d['verdict']} p {d['p']:.2g} flagged" in told and told.count("flagged") == 3
    assert "Better and worse are said only where interval and test agree" in told
    assert "300 choice questions and 24 passages of neutral text" in page.text()
    slices = squeezed(page.text(between=" ")).split("Gained and lost")[1]
    assert all(f"{r['difference']['verdict']} corrected p {r['difference']['p_corrected']:.2g}" in slices for r in report["slices"]["rows"])


def test_chance_is_drawn_and_said_where_a_probe_is_a_choice_and_families_that_do_not_count_are_named(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    assert "chance" not in squeezed(Page(html(changed)).text())
    changed["suites"]["forgetting"]["facts"] |= {"chance": 0.25, "counted": ["arithmetic", "comparison"]}
    page = Page(html(changed))
    text = squeezed(page.text())
    assert {a["x1"] for a in page.of("line") if a.get("class") == "chance" and a["y2"] == "100%"} == {"25.000%"}
    assert text.count("; chance 0.250") == 8  # overall and seven families, each with a description of its plot
    assert "Not counted for the verdict: calendar, instructions, logic, strings, units." in text and text.count("chance is 0.250, not counted") == 5
    changed["suites"]["forgetting"]["facts"] |= {"chance": {"overall": 0.25}, "counted": None}
    assert squeezed(Page(html(changed)).text()).count("; chance 0.250") == 1


def test_answers_that_were_remembered_are_not_said_to_have_taken_no_time(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    names = list(changed["contenders"])
    for name, asked in zip(names, (0, 30, 1200), strict=False):
        changed["contenders"][name] |= {"asked": asked, "items": 1200, "seconds": 12.3}
    rows = re.findall(r"<tr>.*?</tr>", html(changed).split('id="asked"')[1].split("</table>")[0])
    said = [squeezed(re.sub(r"<[^>]*>", " ", row)) for row in rows[1:]]
    assert said[0].endswith("1,200 remembered") and said[1].endswith("12.3 s for 30, 1,170 remembered") and said[2].endswith("1,200 12.3 s")
    assert all(row.endswith("1,200 31.4 s") for row in said[3:])  # no `asked`: an evaluation of before it was counted


def test_every_suite_of_a_role_is_in_the_page(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["suites"]["lm_eval"] = copy.deepcopy(changed["suites"]["forgetting"]) | {"n": 77, "facts": {}}
    text = squeezed(Page(html(changed)).text())
    assert "lm_eval n 77" in text


def test_a_plot_by_severity_says_which_severities_were_asked(report: dict[str, Any], page: Page) -> None:
    assert "asks all three" not in page.text()
    changed = copy.deepcopy(report)
    changed["suites"] = {name: s for name, s in changed["suites"].items() if s["role"] != "transform" or s["facts"]["severity"] == 2}
    changed["examples"], changed["changes"] = [], {}
    assert "asks all three" not in Page(html(changed)).text()  # a recipe that names its severities under `full` is asked no others
    changed["evaluation"]["profile"] = "small"
    assert "This evaluation asked severity 2 alone; --profile full asks all three." in squeezed(Page(html(changed)).text())


def test_what_was_left_out_is_said_with_its_reason(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    del changed["suites"]["memorisation"]
    changed["missing"] = {"memorisation": "memorisation"}
    changed["notes"] = {"memorisation": {"left_out": {"memorisation": "other train records"}}, "contenders": {"left_out": {"base few_shot": "3 of 8 fit"}}}
    changed["examples"] = [e for e in changed["examples"] if e["suite"] != "memorisation"]
    text = squeezed(Page(html(changed)).text())
    assert "Left out: memorisation: other train records." in text and "--suite memorisation" not in text and "base few_shot: 3 of 8 fit." in text


def test_sections_come_in_the_order_a_reviewer_decides_in(page: Page) -> None:
    ids = [a["id"] for tag, a in page.elements if tag == "h2" and "id" in a]
    wanted = ["gate", "flags", "worse", "suites", "slices", "robustness", "forgetting", "memorisation", "abstention", "cost", "power", "training", "data",
              "examples", "tables", "made"]  # fmt: skip
    assert ids == wanted


def test_slices_are_shown_worst_first_with_their_correction(report: dict[str, Any], page: Page) -> None:
    said = squeezed(page.text())
    gains = [r["difference"]["value"] for r in report["slices"]["rows"]]
    part = said[said.index("Gained and lost, by slice") : said.index("Where answers break The same items")]
    places = [part.index(with_sign(gain)) for gain in sorted(gains)]
    assert places == sorted(places) and "Holm 1979 over 11 slices" in part and "2 slices of fewer than 10 items are left out" in part


def test_drops_by_severity_name_the_worst_family_first_beside_the_base(report: dict[str, Any], page: Page) -> None:
    plots = re.findall(r'<svg class="severity".*?</desc>', page.source, re.DOTALL)
    assert len(plots) == 10
    drops = {name: s["facts"]["drops"] for name, s in report["suites"].items() if s["role"] == "transform"}
    worst = min(drops, key=lambda name: drops[name]["adapter"]["exact_match"]["value"])
    assert worst.partition(".")[0] in plots[0]
    for severity in (1, 2, 3):
        ours, base = (drops[f"{worst.partition('.')[0]}.{severity}"][c]["exact_match"] for c in ("adapter", "base few_shot, labels only"))
        for who, d in (("adapter", ours), ("best prompted base", base)):
            assert f"{who} at severity {severity}: {with_sign(d['value'])} [{with_sign(d['low'])}, {with_sign(d['high'])}]" in plots[0]
    assert "beyond the base’s" in page.text() and "Left out: markup: no record holds markup." in page.text()


def test_an_interval_of_a_drop_is_drawn_at_its_bounds(report: dict[str, Any], page: Page) -> None:
    d = report["suites"]["casual.3"]["facts"]["drops"]["adapter"]["exact_match"]
    plot = re.search(r'<svg class="severity"(?:(?!<svg class="severity").)*?casual: change.*?</g></svg>', page.source, re.DOTALL)
    ticks = page.source.split('class="multiples"')[1].split("</svg>")[0]
    labels = [(float(y), float(t.replace("−", "-"))) for y, t in re.findall(r'y="([\d.]+)%" dy="4" text-anchor="end">([−\d.]+)<', ticks)]
    (top, most), (foot, least) = labels[-1], labels[0]
    assert plot is not None and (top, foot) == (0.0, 100.0)
    low, high = (100 * (most - d[k]) / (most - least) for k in ("low", "high"))
    assert any(abs(float(a) - low) < 0.01 and abs(float(b) - high) < 0.01 for a, b in re.findall(r'class="whisker"[^>]*y1="([\d.]+)%" y2="([\d.]+)%"', plot[0]))


def test_forgetting_memorisation_abstention_cost_power_and_looks_say_their_words(report: dict[str, Any], page: Page) -> None:
    text = squeezed(page.text())
    facts = report["suites"]["memorisation"]["facts"]
    assert facts["words"] in text and facts["invalid"][0]["words"] in text and "they cannot show that there is none" in text
    assert report["suites"]["abstention"]["facts"]["words"] in text and report["looks"]["words"] in text and report["rehearsal"]["words"] in text
    assert "19.6 MB" in text and "tokens_per_second" in text and "kl_base" in text and "text_loss" in text
    smallest = report["suites"]["held_out"]["power"]["exact_match"]["smallest_difference"]
    assert f"With n = 140, held_out could have seen a difference in exact_match of {three(smallest)} or more. No difference seen is not no difference" in text


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
    assert text.index("personal_data: 1 error") < text.index("placeholder: 1 warning") < text.index("exact_duplicate: 24 notes")
    for verb in ("run recipe.yaml", "evaluate banking-intents@1", "gate banking-intents@1", "report banking-intents@1"):
        assert f"tuner {verb}" in text
    assert report["adapter_digest"].removeprefix("sha256:") in text and "does not add up" not in text
    assert "98.4 s" in text and "86.7 s" in text and "0.88 ×" in text


def test_a_file_whose_account_does_not_add_up_is_marked(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["data"]["files"][0]["kept"] -= 1
    assert "does not add up" in Page(html(changed)).text()


def test_an_evaluation_of_the_first_schema_says_what_it_did_not_measure_and_the_command_that_does(tmp_path: Path) -> None:
    version, folder = write_evaluation(tmp_path, first_schema(made(items=30, transformed=6, probes=21)))
    write_report(version, folder)
    loaded = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = squeezed(Page((folder / "report.html").read_text(encoding="utf-8")).text())
    assert loaded["missing"] == {
        "transform": "transforms",
        "abstention": "abstention",
        "forgetting": "forgetting",
        "memorisation": "memorisation",
        "cost": "cost",
    }
    for kind in loaded["missing"].values():
        assert text.count(f"Not measured in this evaluation. To measure it: tuner evaluate banking-intents@1 --suite {kind}") == 1
    assert "This evaluation was not judged by a gate. To judge it: tuner gate banking-intents@1" in text
    assert "things to know" not in text and "Nothing flagged" not in text and loaded["flags"] is None
    assert loaded["examples"] and {e["suite"] for e in loaded["examples"]} <= {"held_out", "near", "far", "branches"}


def test_a_report_without_optional_parts_still_prints(report: dict[str, Any]) -> None:
    bare = copy.deepcopy(report)
    bare["training"], bare["train_log"], bare["hardware"], bare["findings"], bare["changes"], bare["examples"] = {}, [], {}, [], {}, []
    bare["template"]["system"] = bare["gate"] = bare["slices"] = bare["looks"] = bare["rehearsal"] = None
    bare["flags"] = []
    bare["suites"] = {name: {**s, "facts": {}, "power": {}} for name, s in bare["suites"].items()}
    text = Page(html(bare)).text()
    assert "The training log holds no losses." in text and "no system prompt" in text and "Nothing: no errors" in text and "Planned" not in text
    assert "Nothing flagged" in text and "No slices" in text and "No item-by-item comparison" in text and "not recorded by this evaluation" in text


def test_a_primary_metric_that_is_no_share_is_not_drawn_on_one_scale_with_shares(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    for one in changed["suites"].values():
        if one["role"] in ("held_out", "ood"):
            one["lead"] = "bits_per_byte"
    changed["primary"], changed["suites"] = "bits_per_byte", {n: s for n, s in changed["suites"].items() if s["role"] in ("held_out", "ood", "forgetting")}
    changed["examples"], changed["changes"] = [], {}
    page = Page(html(changed))
    titles = [t for inside, t in page.texts if inside[-1:] == ("title",)]
    assert [t for t in titles if t.endswith(": bits_per_byte")] and "forgetting: overall" in titles
    plot = squeezed(page.text()).split("Every suite: bits_per_byte")[1].split("Gained and lost")[0]
    assert "1 suite judged by another metric, on another scale" in plot and "forgetting" not in plot


def test_an_interval_that_does_not_exist_is_said_to_be_none(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    for e in (changed["suites"]["near"]["values"]["adapter"]["exact_match"], changed["suites"]["near"]["differences"]["exact_match"]):
        e["low"] = e["high"] = None
    changed["suites"]["casual.3"]["facts"]["drops"]["adapter"]["exact_match"] |= {"value": None, "low": None, "high": None}
    changed["slices"]["rows"][0]["difference"] |= {"value": None, "low": None, "high": None}
    text = squeezed(Page(html(changed)).text())
    assert f"{three(changed['suites']['near']['values']['adapter']['exact_match']['value'])} [none, none]" in text
