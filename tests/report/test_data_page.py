"""The owner's page says what `tuner check --json` says, shows no personal data, keeps records text, and asks nobody for anything.

It refuses to trust the escaping or the masking: it parses the page, and opens it in a browser where there is one.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.browser import Browser, needs_browser
from tests.report.hostile import SEEDS, STRINGS
from tests.report.page import Page, inline_parts_allowed, luminance, nothing_points_outside, squeezed, usable_pictures
from tuner.data.checks import CHECKS
from tuner.data.doctor import Checked, examine
from tuner.data.embedding import centred, static_encoder
from tuner.data.findings import Scene
from tuner.data.record import Message, Record
from tuner.data.sources import FileAccount
from tuner.data.splits import Splits
from tuner.data.summary import as_report
from tuner.pipeline import check_files
from tuner.recipe import load_recipe, recipe_for_files
from tuner.report import data_charts, data_words
from tuner.report.data_map import Landscape, evenly, landscape
from tuner.report.data_page import MOST_BYTES, MOST_FILES, data_page
from tuner.report.data_text import Segment, differing, excerpt, said, seen
from tuner.safe_text import visible

SAMPLES = Path(__file__).parents[2] / "data_samples"

PERSONAL = ["john.smithers@firma-nord.de", "4111 1111 1111 1111", "+1 415 555 2671", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "DE89 3704 0044 0532 0130 00"]
TRACES = ["smithers", "firma-nord", "firmanord", "4111", "1111", "555 2671", "2671", "16C7e42F", "16c7e42f", "0532", "3704"]


def checked_files(folder: Path, files: dict[str, list[Any]], overrides: str = "", task: str = "text") -> tuple[Checked, dict[str, Any]]:
    """The files (name of a split: lines) checked with a recipe of their own, and the JSON report."""
    for split, rows in files.items():
        (folder / f"{split}.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    named = "".join(f"  {split}: {split}.jsonl\n" for split in files)
    (folder / "recipe.yaml").write_text(f"name: x\nbase:\n  model: smollm2-135m-instruct\ndata:\n  task: {task}\n{named}{overrides}", encoding="utf-8")
    diagnosed = check_files(load_recipe(folder / "recipe.yaml"))
    return diagnosed.checked, as_report(diagnosed.checked, diagnosed.accounts)


def clinc(name: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (SAMPLES / "clinc150" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checked, dict[str, Any]]:
    """CLINC150 with planted faults, and a sample of production of which a part asks for other things."""
    train: list[Any] = clinc("train")
    held_out = clinc("held_out")
    train += [train[5], train[9], {**train[20], "completion": "none"}, held_out[3]]
    train += [
        {"prompt": f"please move my money from my savings account to my checking account right now and call it payment {n}", "completion": "transfer"}
        for n in (200, 300)
    ]
    train += [{"prompt": "please keep\u200b it\u202e safe", "completion": "Pin_change"}, {"prompt": "the pаypal page is down", "completion": "close_account"}]
    train.insert(40, '{"prompt": "broken')
    train.insert(60, '{"prompt": "no answer"}')
    production = [{"prompt": r["prompt"]} for r in clinc("ood_out_of_scope") + clinc("validation")]
    folder = tmp_path_factory.mktemp("planted")
    return checked_files(
        folder, {"train": train, "held_out": held_out, "production": production}, "  checks:\n    exact_duplicates: drop\n    stale: 'off'\n", "label"
    )


@pytest.fixture(scope="module")
def source(planted: tuple[Checked, dict[str, Any]]) -> str:
    return data_page(*planted)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def rows_of(source: str, marker: str) -> list[list[str]]:
    """The cells of the first table behind `marker`, row by row."""
    table = source.split(marker, 1)[1].split("</table>", 1)[0]
    return [
        [squeezed(Page(cell).text()) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)] for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    ]


# --- the counts ----------------------------------------------------------------------------------------------------


def test_headline_counts_are_those_of_the_json(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    summary = planted[1]["summary"]
    facts = source.split('<dl class="facts', 1)[1].split("</dl>", 1)[0]
    numbers = [int(n.replace(",", "")) for n in re.findall(r'<span class="num[^"]*">([\d,]+)</span>', facts)]
    graded = sum(n for name, n in summary["records"].items() if name not in ("train", "production"))
    assert numbers == [summary["records"]["train"], graded, summary["errors"], summary["warnings"], summary["notes"]]
    assert summary["errors"] and summary["warnings"] and summary["notes"]
    assert f"held_out {summary['records']['held_out']}; beside them {summary['records']['production']} inputs of production" in squeezed(Page(facts).text())


def test_accounts_are_those_of_the_json_and_add_up(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    rows = rows_of(source, 'class="numbers accounts"')
    files = planted[1]["files"]
    assert len(rows) == len(files) + 2
    for row, f in zip(rows[1:-1], files, strict=True):
        reasons = ", ".join(f"{name} {n}" for name, n in f["reasons"].items())
        assert row == [f["split"], f["file"], str(f["read"]), str(f["kept"]), f"{f['dropped']} {reasons}".strip(), str(f["rejected"])]
        assert f["read"] == f["kept"] + f["dropped"] + f["rejected"]
    assert rows[-1][2:] == [str(sum(f[k] for f in files)) for k in ("read", "kept", "dropped", "rejected")]
    assert files[0]["dropped"] == 2 and files[0]["rejected"] == 2


def test_every_check_is_in_the_catalogue_with_the_count_of_the_json_zero_included(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    counts = Counter(f["check"] for f in planted[1]["findings"])
    rows = {row[0]: row for row in rows_of(source, '<table class="catalogue"')[1:]}
    assert list(rows) == list(CHECKS)
    assert {name: int(row[1].split()[0].replace(",", "")) for name, row in rows.items()} == {name: counts[name] for name in CHECKS}
    assert rows["exact_duplicates"][3].startswith("drop by the recipe") and "2 records left out" in rows["exact_duplicates"][1]
    assert (
        rows["stale"][1] == "0 switched off" and rows["json_completion"][1] == "0 not for this task (label)" and rows["group_overlap"][1].startswith("0 needs")
    )
    assert sum(counts.values()) == len(planted[1]["findings"]) > 10 and min(counts[name] for name in CHECKS) == 0


def test_every_group_of_findings_stands_with_its_count_and_at_most_ten_records(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    counts = Counter((f["check"], f["code"].lower(), f["severity"]) for f in planted[1]["findings"])
    found: Counter[tuple[str, str, str]] = Counter()
    for group in re.findall(r'<details class="group".*?</details>', source, re.DOTALL):
        told = squeezed(Page(group).text())
        n, check, code = re.search(r"([\d,]+) findings?(?:, \d+ shown)? · (\w+)(?:, (\w+))?", told).groups()  # type: ignore[union-attr]
        items = re.findall(r'<li class="item (\w+)"', group)
        wanted = next(key for key in counts if key[0] == check and key[2] == items[0] and (key[1] == code or (code is None and key[1] in check)))
        found[wanted] += int(n.replace(",", ""))
        assert len(items) == min(10, counts[wanted]) and set(items) == {wanted[2]}
    assert found == counts


def test_what_matters_most_is_in_plain_words_with_what_to_do(planted: tuple[Checked, dict[str, Any]], page: Page, source: str) -> None:
    text = squeezed(page.text(" "))
    for matter in planted[1]["summary"]["matters"]:
        plain = data_words.words(matter["check"], matter["code"], matter["fix"])
        assert plain.title in text and f"What to do: {plain.do}" in text
    assert source.index('id="matters"') < source.index('id="accounts"') < source.index('id="inside"') < source.index('id="findings"')


def test_every_check_has_words_for_an_owner() -> None:
    assert [name for name in CHECKS if name not in data_words.BY_CHECK] == []
    assert [name for name in data_words.BY_CHECK if name not in CHECKS] == []
    unknown = data_words.words("a_new_check", "X", "mend it")
    assert unknown.title == "A new check" and unknown.do == "Mend it."


def test_label_counts_are_those_of_the_records_and_rare_ones_are_marked(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    records = planted[0].splits.records
    train, other = Counter(r.completion for r in records["train"]), Counter(r.completion for r in records["held_out"])
    rows = rows_of(source, 'aria-labelledby="labels"')[1:]
    assert {row[0].split(" ▲ ")[0]: (int(row[2]), int(row[3])) for row in rows} == {label: (train[label], other[label]) for label in train | other}
    assert {row[0].split(" ▲ ")[0] for row in rows if "rare" in row[0]} == {label for label, n in train.items() if n < 5} != set()


def test_a_histogram_counts_every_record_once_and_what_lies_beyond_in_the_last_bar() -> None:
    random.seed(0)
    for _ in range(200):
        lengths = np.array([int(random.expovariate(1 / 30)) for _ in range(random.randint(1, 200))] + [100_000] * random.randint(0, 2))
        limit = random.choice([None, 20, 5000])
        on = data_charts.Length.of([lengths], limit)
        counts, _ = np.histogram(np.minimum(lengths, on.scale.high), on.edges)
        assert counts.sum() == len(lengths)
        assert on.cut or on.scale.high >= lengths.max()
        drawn = str(data_charts.histogram("k", "t", lengths, on, limit))
        assert drawn.count('class="bar"') == np.count_nonzero(counts)
        assert ('class="limit"' in drawn) == (limit is not None and limit <= on.scale.high)


# --- map and topics ------------------------------------------------------------------------------------------------


def test_topics_hold_every_sampled_prompt_once_and_the_map_says_what_share_it_holds(planted: tuple[Checked, dict[str, Any]], page: Page, source: str) -> None:
    land = landscape(planted[0])
    assert isinstance(land, Landscape) and land.found is not None
    assert sorted(i for t in land.topics for i in t.rows.tolist()) == list(range(len(land.sample)))
    vectors = centred(static_encoder().encode([r.question for r in land.sample])[0])
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    assert land.explained == pytest.approx(values[:2].sum() / values.sum(), abs=1e-4)
    assert f"hold {100 * land.explained:.1f} % of the differences" in squeezed(page.text())
    drawn = source.split('<svg class="map"', 1)[1].split("</svg>", 1)[0]
    assert drawn.count('class="missed"') == int(land.found.uncovered.sum()) > 0
    assert drawn.count('class="seen"') == int((~land.found.uncovered).sum())
    assert len(re.findall(r'<circle class="c[0-7x]"', drawn)) == len(land.sample)
    assert drawn.count("<title>") == drawn.count("<circle") + drawn.count("<rect")


def test_uncovered_clusters_of_the_page_are_those_of_the_findings(planted: tuple[Checked, dict[str, Any]], source: str) -> None:
    told = [f for f in planted[1]["findings"] if f["code"] == "UNCOVERED"]
    rows = rows_of(source, 'class="next"')[1:]
    assert len(told) == len(rows) > 3
    for finding in told:
        where = f"{finding['file']}:{finding['line']}"
        assert [row[1].split()[0] for row in rows if row[3] == where] == [finding["found"].split()[0]]


def test_a_sample_is_spread_evenly_over_the_records() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = evenly(50_000, 1500)
    assert len(set(rows.tolist())) == 1500 and rows[0] == 0 and rows[-1] == 49_999 and np.diff(rows).max() <= 34


def test_texts_that_the_vectors_cannot_read_get_no_map(tmp_path: Path) -> None:
    rows = [{"prompt": f"请问{i}这个怎么办理呢谢谢你们", "completion": "好的"} for i in range(40)]
    text = Page(data_page(*checked_files(tmp_path, {"train": rows}))).text()
    assert "Topics and map would be guesses" in text and "The map" not in text


# --- what is shown of a record -------------------------------------------------------------------------------------


def test_near_duplicates_stand_side_by_side_with_the_differing_words_marked(source: str) -> None:
    pairs = [squeezed(p) for p in re.findall(r'<div class="texts">.*?</div></div>', source, re.DOTALL)]
    assert any("call it payment <mark>200</mark>" in p and "call it payment <mark>300</mark>" in p for p in pairs)


def test_differences_are_marked_and_nothing_else_is() -> None:
    random.seed(1)
    for _ in range(300):
        one = [random.choice(["a", "b", "c", "dd", "eee", "."]) for _ in range(random.randint(0, 30))]
        other = [w for w in one if random.random() > 0.2] + ["zz"] * random.randint(0, 1)
        ours, theirs = " ".join(one), " ".join(other)
        left, right = differing(ours, theirs, 10_000)
        assert "".join(s.text for s in left) == ours and "".join(s.text for s in right) == theirs
        assert "".join(s.text for s in left if not s.marked) == "".join(s.text for s in right if not s.marked)
        assert any(s.marked for s in [*left, *right]) == (ours != theirs)


def test_a_difference_deep_inside_a_long_text_is_within_what_is_shown() -> None:
    long = "word " * 3000
    left, right = differing(f"{long} five {long}", f"{long} one {long}", 300)
    assert Segment("five", True) in left and Segment("one", True) in right
    assert all(sum(len(s.text) for s in side) < 500 for side in (left, right))
    shown = excerpt(f"{long} needle {long}", 300, "found 'needle' in it")
    assert Segment("needle", True) in shown and sum(len(s.text) for s in shown) < 400


def test_personal_data_never_appears_raw_wherever_it_stands(tmp_path: Path) -> None:
    """In prompts, completions, system prompts, labels, production, near copies, contradictions and a broken line; whole, in parts, or cut in two."""
    whole = " ".join(PERSONAL)
    rows: list[Any] = [{"prompt": f"where is parcel number {n} of mine", "completion": random.Random(n).choice(["open", "closed", "lost"])} for n in range(60)]
    for value in [*PERSONAL, whole]:
        for n in range(3):
            rows.append({"prompt": f"please send the paper for order {n} over to {value} by next week and tell me", "completion": "open"})
            rows.append({"prompt": f"please send the paper for order {n} over to {value} by next week and tell me", "completion": "closed"})
        rows += [{"prompt": "x" * (56 - i) + f" {value} and the rest", "completion": f"open {value}"} for i in range(12)]
        rows += [{"prompt": f"{value}", "completion": f"{value}"}, '{"prompt": "broken ' + value]
        rows.append({"messages": [{"role": "user", "content": value}]})
    system = [{"role": "system", "content": f"You write for {whole}."}]
    chat = [
        {"messages": [*system, {"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in rows
        if isinstance(r, dict) and "completion" in r
    ]
    production = [{"prompt": f"{word} {value}"} for value in PERSONAL for word in ("send this to", "call", "who is")]
    for task, train in (("label", rows), ("text", chat)):
        folder = tmp_path / task
        folder.mkdir()
        for actions in ("", "  checks:\n    exact_duplicates: drop\n    contradictions: drop\n    personal_data: drop\n    secrets: drop\n"):
            source = data_page(*checked_files(folder, {"train": train, "held_out": train[:40], "production": production}, actions, task))
            text = Page(re.sub("</?mark>", "", source)).text(" ")  # marks part words, cells do not
            assert [t for t in [*PERSONAL, *TRACES] if t in source or t in text] == []
            assert "j…@…" in text or actions


@pytest.mark.parametrize("action", ["warn", "drop"])
def test_words_in_which_near_copies_differ_are_not_told_where_they_may_be_parts_of_a_value(tmp_path: Path, action: str) -> None:
    words = "please send the paper for my new order to {} by next week and tell me what became of it and of all the other papers that "
    words += "I sent you in the same big brown box from the shop at the corner last spring"
    rows = [{"prompt": words.format(value), "completion": "open the door"} for value in (*PERSONAL, "jane.roe@corp-sued.de", "Mallory Miller")]
    checked, report = checked_files(tmp_path, {"train": rows}, f"  checks:\n    near_duplicates: {action}\n    secrets: warn\n")
    assert sum(f.check == "near_duplicates" for f in checked.findings) >= 1
    source = data_page(checked, report)
    assert [t for t in [*PERSONAL, *TRACES, "corp", "sued", "jane"] if t in source] == []


def test_text_is_masked_before_it_is_cut() -> None:
    for at in range(60):
        shown = seen("x" * at + " 4111 1111 1111 1111 and on")[:60]
        assert "1111" not in shown and "4111" not in shown
    assert "smi" not in said("nearly 'write to john.smithers@firma-n…'", known=False)
    assert "smi" not in said("broken near 'mail to john.smit'", known=False)
    assert said("'4111 1111 1111' beside f.jsonl:1111", ["4111111111111111"], ["f.jsonl:1111"]) == "'… … …' beside f.jsonl:1111"


def test_hidden_characters_are_written_out_and_marked(source: str) -> None:
    assert "please keep<mark>\\u200b</mark> it<mark>\\u202e</mark> safe" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", source)


# --- data stays text -----------------------------------------------------------------------------------------------


def hostile_set(strings: list[str]) -> tuple[Checked, dict[str, Any]]:
    """Every string as prompt, completion, label, system prompt, file name and production input, checked as labels."""
    splits: dict[str, list[Record]] = {"train": [], "ood.<b>&": []}
    for n, text in enumerate(strings):
        for split, of in splits.items():
            system = (Message("system", text),) if n % 3 == 0 else ()
            of.append(
                Record(
                    (*system, Message("user", f"{text} and {text}"), Message("assistant", text)), f"{text}.jsonl", n + 1, split, {text: text, "source": text}
                )
            )
    production = [Record((Message("user", text), Message("assistant", "")), f"{text}.jsonl", n + 1, "production") for n, text in enumerate(strings)]
    accounts = tuple(FileAccount(f"{text}.jsonl", "train", "d", 1, 1, 0) for text in strings)
    checked = examine(Splits(splits, accounts, (), production), Scene(recipe_for_files(["x"], ["data.task=label"]).data), CHECKS)
    files = [{"file": a.file, "split": a.split, "digest": "d", "read": 1, "kept": 1, "dropped": 0, "rejected": 0, "reasons": {}} for a in accounts]
    return checked, as_report(checked, files)


ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "p", "strong", "nav", "main", "section", "h1", "h2", "h3", "h4", "span", "dl", "div",
    "dt", "dd", "ol", "ul", "li", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "desc", "rect", "line", "text", "circle", "g", "figure",
    "figcaption", "label", "select", "option", "input", "button", "details", "summary", "mark", "code", "footer", "script",
}  # fmt: skip
SAFE_ATTRIBUTE = re.compile(r"[\w\s.,:;#%()/='–-]*")


@pytest.fixture(scope="module")
def hostile_source() -> str:
    return data_page(*hostile_set(STRINGS))


def test_hostile_records_labels_and_file_names_stay_text(hostile_source: str) -> None:
    page = Page(hostile_source)  # refuses unbalanced tags
    assert "comment" not in page.tree and "instruction" not in page.tree
    assert {tag for tag, _ in page.elements} <= ALLOWED
    nothing_points_outside(page)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert tag == "meta" or SAFE_ATTRIBUTE.fullmatch(value or ""), (tag, name, value)
    text = page.text().replace("\n", "\\n")
    missing = [s for s in STRINGS[:MOST_FILES] if s.strip() and visible(f"{s}.jsonl").strip() not in text]
    assert missing == [], missing[:3]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", hostile_source)


def test_policy_allows_exactly_the_inline_style_and_script_and_nothing_points_outside(page: Page) -> None:
    assert inline_parts_allowed(page) == {"style", "script"}
    assert nothing_points_outside(page) > 0


def test_page_is_usable_by_keyboard_and_screen_reader_and_without_script(page: Page) -> None:
    assert usable_pictures(page) > 4
    assert page.source.count("<caption>") == len(page.of("table"))
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" or a.get("class") == "key" for a in page.of("svg"))
    assert [tag for tag, a in page.elements if "hidden" in a] == ["div"], "all but the filter bar is readable without script"


def test_colours_of_the_page_have_their_contrast_in_light_and_dark(page: Page) -> None:
    roots = re.findall(r":root \{(.*?)\}", page.content("style"), re.DOTALL)
    house, own = [r for r in roots if "--ink" in r][:2], [r for r in roots if "--c0" in r]
    assert len(house) == len(own) == 2
    for both in zip(house, own, strict=True):
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", " ".join(both)))
        pairs = [(c, "raised", 3.0) for c in (*(f"c{n}" for n in range(8)), "cx", "worse")] + [("base", "warn-page", 4.5), ("ink", "warn-page", 4.5)]
        for shown, ground, least in pairs:
            light, dark = sorted((luminance(colours[shown]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (shown, ground)


# --- any data ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_thousand_hostile_records_stay_below_two_megabytes() -> None:
    chance = random.Random(0)
    splits: dict[str, list[Record]] = {"train": [], "held_out": []}
    for n in range(50_000):
        own = " ".join(f"{chance.getrandbits(40):x}" for _ in range(4))  # no two prompts alike: comparing near copies is not what is tried here
        long = chance.choice(SEEDS) + "\u202e\U000e0041<&" * (800 if n % 100 == 0 else 2)
        words = (f"{own} {long}", chance.choice(SEEDS) + "\x00" * 50)
        splits["train" if n % 10 else "held_out"].append(
            Record((Message("user", words[0]), Message("assistant", words[1])), "<&>.jsonl" * 20, n + 1, "train", {})
        )
    spec = recipe_for_files(["x"], ["data.task=label"]).data
    few = {name: CHECKS[name] for name in ("hidden_characters", "rare_labels", "exact_duplicates")}
    checked = examine(Splits(splits, tuple(FileAccount(f"{n}.jsonl", "train", "d", 1, 1, 0) for n in range(3000))), Scene(spec), few)
    files = [{"file": f"{n}.jsonl" * 9, "split": "train", "digest": "d", "read": 1, "kept": 1, "dropped": 0, "rejected": 0, "reasons": {}} for n in range(3000)]
    source = data_page(checked, as_report(checked, files))
    assert len(checked.findings) > 50_000
    assert len(source.encode()) <= MOST_BYTES < 2_000_000
    assert "with 2,800 more files" in squeezed(Page(source).text())


@pytest.mark.parametrize("name", sorted(p.name for p in (SAMPLES / "bad").glob("*.*") if p.suffix != ".md"))
def test_a_broken_or_empty_file_still_gives_a_whole_page(name: str) -> None:
    diagnosed = check_files(recipe_for_files([str(SAMPLES / "bad" / name)]))
    report = as_report(diagnosed.checked, diagnosed.accounts)
    source = data_page(diagnosed.checked, report)
    page = Page(source)
    nothing_points_outside(page)
    assert page.inside == [] and {"main", "footer"} <= {tag for tag, _ in page.elements}
    if not report["summary"]["records"].get("train"):
        assert "no training record can be used" in squeezed(page.text())
    assert len(re.findall(r'<li class="item ', source)) == len(report["findings"]) or len(report["findings"]) > 10


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(source, encoding="utf-8")
    return path


@needs_browser
@pytest.mark.parametrize(("width", "scheme", "media"), [(400, "light", ""), (400, "dark", ""), (1200, "light", ""), (1200, "dark", ""), (688, "dark", "print")])
def test_page_opens_without_a_complaint_a_request_or_sideways_scrolling(browser: Browser, file: Path, width: int, scheme: str, media: str) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(file, width=width, scheme=scheme, media=media)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == ("rgb(15, 18, 22)" if scheme == "dark" and not media else "rgb(255, 255, 255)")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.problems == []
    assert browser.requests == [file.resolve().as_uri()]


@needs_browser
def test_a_browser_runs_nothing_of_hostile_records_and_asks_nobody(browser: Browser, hostile_source: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(hostile_source, encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path, width=400)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("window.pwned") is None
    assert browser.run("document.scripts.length") == 1 and browser.run("document.querySelectorAll('img, iframe, object, embed, form, base, link').length") == 0
    in_page = browser.run("[...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase())")
    assert Counter(in_page) == Counter(tag.lower() for tag, _ in Page(hostile_source).elements)
    assert browser.run("document.documentElement.scrollWidth") == 400
    assert browser.problems == [] and browser.requests == [path.resolve().as_uri()]


ITEMS = "[...document.querySelectorAll('li.item')].filter(WANTED).map(e => [e.dataset.severity, e.dataset.check, e.dataset.split, e.textContent])"


@needs_browser
def test_filters_and_search_show_what_they_say(browser: Browser, file: Path, planted: tuple[Checked, dict[str, Any]]) -> None:
    browser.open(file)
    browser.problems.clear()
    every = browser.run(ITEMS.replace("WANTED", "e => true"))

    def choose(field: str, value: str) -> Any:
        browser.run(f"document.getElementById('want-{field}').value = {json.dumps(value)}")
        browser.run(f"document.getElementById('want-{field}').dispatchEvent(new Event('{'input' if field == 'text' else 'change'}'))")
        return browser.run(ITEMS.replace("WANTED", "e => e.offsetParent !== null"))

    assert browser.run("document.getElementById('filters').hidden") is False
    assert choose("severity", "warning") == [e for e in every if e[0] == "warning"] != []
    assert browser.run("document.getElementById('shown').textContent") == f"{sum(e[0] == 'warning' for e in every)} of {len(every)} findings on this page"
    browser.click("#want-all")
    options = browser.run("[...document.querySelectorAll('#want-check option')].map(o => [o.value, o.textContent])")
    value = next(v for v, name in options if name == "near_duplicates")
    near = choose("check", value)
    assert near == [e for e in every if e[1] == value] != []
    browser.click("#want-all")
    found = choose("text", "PAYMENT 300")
    assert found == [e for e in every if "300" in e[3] and "payment" in e[3].lower()] != []
    assert choose("text", "no such words anywhere") == []
    browser.click("#want-all")
    assert browser.run("document.querySelectorAll('li.item[hidden], details.group[hidden]').length") == 0
    assert browser.problems == []


@needs_browser
def test_a_link_of_what_matters_opens_its_group(browser: Browser, file: Path) -> None:
    browser.open(file)
    last = browser.run("[...document.querySelectorAll('.matters a')].map(a => a.getAttribute('href')).pop()")
    browser.run(f"document.querySelector({json.dumps(last)}).open = false")
    browser.click(f".matters a[href='{last}']")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run(f"document.querySelector({json.dumps(last)}).open") is True


@needs_browser
def test_without_script_every_finding_can_be_read(browser: Browser, file: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        assert browser.run("getComputedStyle(document.getElementById('filters')).display") == "none"
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert browser.run("[...document.querySelectorAll('li.item')].every(e => e.offsetHeight > 0)") is True
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
