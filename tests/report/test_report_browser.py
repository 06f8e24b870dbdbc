"""report.html in a real browser: no complaint, no request, filters and keyboard work, paper shows everything."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, FLAGS, Browser, needs_browser
from tests.report.hostile import STRINGS, with_text
from tests.report.made import made, write_evaluation
from tests.report.page import squeezed
from tuner.report.html import html
from tuner.report.write import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version, folder = write_evaluation(tmp_path_factory.mktemp("browser"), made(transformed=20, probes=70))
    write_report(version, folder)
    return folder


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [(360, "light", ""), (375, "dark", ""), (768, "light", ""), (1280, "light", ""), (1280, "dark", ""), (688, "dark", "print")],
)
def test_page_opens_without_a_complaint_a_request_or_sideways_scrolling(browser: Browser, evaluation: Path, width: int, scheme: str, media: str) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(evaluation / "report.html", width=width, scheme=scheme, media=media)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == ("rgb(15, 18, 22)" if scheme == "dark" and not media else "rgb(255, 255, 255)")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.problems == []
    assert browser.requests == [(evaluation / "report.html").resolve().as_uri()]


def test_a_breach_of_the_policy_would_have_been_seen(browser: Browser, evaluation: Path) -> None:
    browser.open(evaluation / "report.html")
    browser.problems.clear()
    browser.run('document.body.insertAdjacentHTML(\'beforeend\', \'<p style="color:red"><img src="https://evil.example/x.png" onerror="1">\'), 1')
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert any("Content Security Policy" in p or "ContentSecurityPolicy" in p for p in browser.problems)


SHOWN = """[...document.querySelectorAll('#answers > li')].filter(e => e.offsetParent !== null)
  .map(e => [e.querySelector('.outcome .note').innerText, e.querySelector('.chip').innerText.slice(2)])"""
SAID = "document.getElementById('shown').textContent"


def press(browser: Browser, key: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text if kind == "keyDown" else "")


def test_filters_show_what_they_say_by_mouse_and_keyboard(browser: Browser, evaluation: Path, report: dict[str, Any]) -> None:
    every = [[e["suite"], e["change"]] for e in report["examples"]]
    assert len(every) == 20 and {c for _, c in every} >= {"won", "lost", "changed"}
    browser.open(evaluation / "report.html")
    browser.problems.clear()
    assert browser.run(SHOWN) == every and browser.run(SAID) == "20 answers"
    for kind in ("lost", "won", "changed"):
        browser.click(f"button[data-value={kind}]")
        wanted = [e for e in every if e[1] == kind]
        assert browser.run(SHOWN) == wanted != [] and browser.run(SAID) == f"{len(wanted)} of 20 answers"
        assert browser.run(f"document.querySelector('button[data-value={kind}]').getAttribute('aria-pressed')") == "true"
    browser.run("document.querySelector('button[data-value=\"\"]').focus()")
    press(browser, "Enter", 13, "\r")
    assert browser.run(SHOWN) == every
    browser.run("document.getElementById('suite-filter').focus()")
    press(browser, "ArrowDown", 40)
    first = browser.run("document.querySelector('#suite-filter option:checked').textContent")
    assert browser.run(SHOWN) == [e for e in every if e[0] == first] != []
    assert browser.problems == []


def test_text_filter_finds_what_is_typed_wherever_it_stands_in_an_answer(browser: Browser, evaluation: Path, report: dict[str, Any]) -> None:
    browser.open(evaluation / "report.html")
    browser.run("document.getElementById('text-filter').focus()")
    browser.call("Input.insertText", text="CHECKING")
    wanted = [e for e in report["examples"] if "checking" in json.dumps(e).lower()]
    assert len(browser.run(SHOWN)) == len(wanted) and 0 < len(wanted) < 20
    browser.call("Input.insertText", text="<b>nowhere")
    assert browser.run(SHOWN) == [] and browser.run(SAID) == "0 of 20 answers"


def test_keyboard_reaches_the_skip_link_first_and_focus_is_seen(browser: Browser, evaluation: Path) -> None:
    browser.open(evaluation / "report.html")
    press(browser, "Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    press(browser, "Enter", 13, "\r")
    assert browser.run("document.activeElement.id") == "main"
    seen = set()
    for _ in range(60):
        press(browser, "Tab", 9)
        seen.add(browser.run("document.activeElement.tagName"))
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", browser.run("document.activeElement.outerHTML.slice(0, 200)")
    assert {"A", "SUMMARY", "DIV"} <= seen


def test_a_link_to_a_folded_table_unfolds_it(browser: Browser, evaluation: Path) -> None:
    browser.open(evaluation / "report.html")
    folded = "[...document.querySelectorAll('.rows a')].find(a => document.querySelector('.many ' + a.getAttribute('href')))"
    assert browser.run("document.querySelector('.many').open") is False
    browser.run(f"{folded}.click(), 1")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("document.querySelector('.many').open") is True


def test_on_paper_everything_is_unfolded_and_no_answer_is_filtered_away(browser: Browser, evaluation: Path) -> None:
    browser.open(evaluation / "report.html")
    browser.click("button[data-value=won]")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    folds = browser.run("[...document.querySelectorAll('details')].map(d => [...d.children].slice(1).every(c => c.getBoundingClientRect().height > 0))")
    assert len(folds) > 30 and all(folds)
    assert browser.run("[...document.querySelectorAll('#answers > li')].filter(e => e.getBoundingClientRect().height > 0).length") == 20
    assert browser.run("getComputedStyle(document.getElementById('filters')).display") == "none"


def test_a_browser_builds_the_same_elements_from_hostile_data(browser: Browser, report: dict[str, Any], tmp_path: Path) -> None:
    trees: list[str] = []
    for texts in ([f"plain {i}" for i in range(len(STRINGS))], STRINGS):
        page, changed = tmp_path / f"{len(trees)}.html", with_text(report, lambda s, last=texts[-1]: f"{last}·{s}")  # type: ignore[misc]
        example = changed["examples"][0]
        changed["examples"] = [{**example, "question": t, "adapter": t, "baseline": t, "references": [t], "where": t} for t in texts]
        page.write_text(html(changed), encoding="utf-8")
        browser.problems.clear()
        browser.open(page, width=375)
        assert browser.run("document.documentElement.scrollWidth") == 375
        trees.append(browser.run("[...document.querySelectorAll('*')].map(e => e.tagName + ' ' + e.getAttributeNames().sort().join(' ')).join('\\n')"))
        assert browser.run("window.pwned") is None
        assert browser.problems == []
    assert len(STRINGS) >= 200 and trees[0] == trees[1] and trees[0].count("\n") > 6000


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
    assert "Worse than the base on" in squeezed(done.stdout) and 'id="filters" class="filters">' in done.stdout
    assert "CONSOLE" not in done.stderr
