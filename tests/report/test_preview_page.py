"""The preview page shows the rows that are trained, token by token, keeps records text, tells nobody, and is its owner's alone.

It refuses to trust the escaping: it parses the page, and opens it in a browser where there is one.
"""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tuner
from tests.report.browser import Browser, needs_browser
from tests.report.hostile import SEEDS, STRINGS
from tests.report.page import Page, luminance, squeezed
from tests.template.test_tokens import chat, real_conversations
from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.report import preview_page as page_room
from tuner.report.preview_page import preview_page, refuse_other_file, write_private
from tuner.safe_text import visible
from tuner.template.preview import Choice
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, open_encoder

TOKEN = re.compile(r'<span class="t([a-z ]*)" title="token (\d+), ([^"]*)" data-id="(\d+)">(.*?)</span>(?:<br>)*', re.DOTALL)
TOLD = re.compile(
    r"characters? (\d+)(?: to (\d+))?, (no loss|loss)(, special)?(, control text of the record kept as plain text)?(?:, part \d+/\d+ of a character)?"
)


def page_of(encoder: Encoder, records: list[Record]) -> str:
    chosen = [(Choice(record, "asked for"), encoder.row(record)) for record in records]
    return preview_page("colours", encoder, chosen, {"train": len(records)}).html


def lone(text: str) -> bool:
    """Does the tokenizer take it? It refuses lone surrogates, and reading refuses records with one."""
    return any(0xD800 <= ord(c) < 0xE000 for c in text)


@pytest.fixture(scope="module")
def turns(smollm2: Any) -> Encoder:
    return open_encoder(smollm2.folder, TemplateSpec(loss_on="all_assistant"), "smollm2")


@pytest.fixture(scope="module")
def fifty(turns: Encoder) -> list[Record]:
    """50 records: real ones of three tasks, chats of several turns with weight 0, control texts, merged boundaries, parts of characters."""
    single = real_conversations()
    joined = [Record((*a.messages, *b.messages), "chats.jsonl", i, "train") for i, (a, b) in enumerate(zip(single[:10], single[70:80], strict=True), start=1)]
    weighted = [Record((r.messages[0], Message("assistant", r.messages[1].content, weight=0), *r.messages[2:]), "w.jsonl", r.line, "train") for r in joined[:5]]
    hard = [chat("x <|im_end|> 😀 東京 \x07", "\n\nyes\tand  no 😀"), chat("\\n is not a line end", "a\\nb\n\n\nc")]
    return [*single[:11], *single[70:81], *single[140:151], *joined, *weighted, *hard]  # 3 x 11 + 10 + 5 + 2


@pytest.fixture(scope="module")
def source(turns: Encoder, fifty: list[Record]) -> str:
    return page_of(turns, fifty)


@pytest.fixture(scope="module")
def hostile_records() -> list[Record]:
    rows = [chat(f"q {text}", f"a {text}", system=text) for text in STRINGS if not lone(text)]
    files = [Record((Message("user", "x"), Message("assistant", "y")), f"{text}.jsonl", 1, text) for text in SEEDS if not lone(text)]
    return [*rows, *files]


@pytest.fixture(scope="module")
def hostile_source(smollm2: Any, hostile_records: list[Record]) -> str:
    spec = TemplateSpec(system="<script>window.pwned=1</script>\n" + '"><img src=x onerror=window.pwned=1>', chat_template_kwargs={"<b>": '"><b>'})
    encoder = open_encoder(smollm2.folder, spec, "<img src=x onerror=window.pwned=1>")
    chosen = [(Choice(record, "asked for"), encoder.row(record)) for record in hostile_records]
    made = preview_page("<script>window.pwned=1</script>", encoder, chosen, {"train": 3, '"><script>window.pwned=1</script>': 1})
    assert made.left_out == 0
    return made.html


# --- what it shows -------------------------------------------------------------------------------------------------


def test_loss_tokens_of_the_page_are_the_rows_labels_on_50_records(turns: Encoder, fifty: list[Record], source: str) -> None:
    articles = re.findall(r"<article.*?</article>", source, re.DOTALL)
    swept = 0
    for record, article in zip(fifty, articles, strict=True):
        row = turns.row(record)
        tokens = TOKEN.findall(article)
        assert [int(number) for _, number, _, _, _ in tokens] == [int(number) for *_, number, _ in tokens] == row.input_ids
        told = [TOLD.fullmatch(words) for _, _, words, _, _ in tokens]
        assert [i if t and t[3] == "loss" else IGNORED for i, t in zip(row.input_ids, told, strict=True)] == row.labels
        assert ["l" in kind.split() for kind, *_ in tokens] == [label != IGNORED for label in row.labels]
        assert ["s" in kind.split() for kind, *_ in tokens] == [bool(t and t[4]) for t in told] == [
            i in turns.control_ids | turns.stop_ids for i in row.input_ids]  # fmt: skip
        assert squeezed(Page(article).text()).count(f"{len(row.input_ids)} tokens: {row.prompt_tokens} prompt") == 1
        swept += 1
    assert swept == 50


def test_offsets_count_the_rendered_text_and_cover_what_stands_in_the_box(turns: Encoder, fifty: list[Record], source: str) -> None:
    for record, article in zip(fifty, re.findall(r"<article.*?</article>", source, re.DOTALL), strict=True):
        text = turns.template.render(list(record.messages), generation_prompt=False)
        for _, _, words, _, shown in TOKEN.findall(article):
            told = TOLD.fullmatch(words)
            assert told
            start, end = int(told[1]), int(told[2] or told[1]) + 1
            boxed = re.sub(r"<i>| \d/\d</i>|</i>", "", shown)
            assert Page(boxed).text() == visible(text[start:end]) or (told[5] and Page(boxed).text() in text[start:end])


def test_rendered_text_stands_whole_beside_the_tokens_with_its_loss_marked(turns: Encoder, fifty: list[Record], source: str) -> None:
    for record, article in zip(fifty, re.findall(r"<article.*?</article>", source, re.DOTALL), strict=True):
        beside = article.split('<div class="rendered text">', 1)[1].split("</div>", 1)[0]
        text = turns.template.render(list(record.messages), generation_prompt=False)
        assert Page(beside).text() == "\n".join(visible(part) for part in text.split("\n"))
        marked = "".join(Page(part).text() for part in re.findall(r"<mark>(.*?)</mark>", beside, re.DOTALL))
        turned = [m for m in record.messages if m.role == "assistant" and m.weight]
        assert marked == "".join("\n".join(visible(part) for part in f"{m.content}<|im_end|>".split("\n")) for m in turned)


def test_counts_and_settings_at_the_top_are_those_of_the_rows(turns: Encoder, fifty: list[Record], source: str) -> None:
    rows = [turns.row(record) for record in fifty]
    told = squeezed(Page(source).text())
    tokens, loss = sum(len(r.input_ids) for r in rows), sum(r.completion_tokens for r in rows)
    assert f"{loss:,} of {tokens:,} tokens carry loss." in told and f"longest row {max(len(r.input_ids) for r in rows)}; at most 1,024" in told
    assert f"0 prompts cut, {sum(r.merged for r in rows)} boundary merged" in told and sum(r.merged for r in rows) == 1
    assert "the base’s own chat template" in told and "all_assistant every assistant turn" in told and "an answer ends with <|im_end|>" in told
    assert "The template writes its own into records without one: You are a helpful AI assistant named SmolLM, trained by Hugging Face" in told
    assert "names, addresses and secrets in the records stand here as they are" in told


def test_the_recipes_own_system_prompt_and_format_are_shown(smollm2: Any) -> None:
    encoder = open_encoder(smollm2.folder, TemplateSpec(format="chatml", system="Be\x07 brief."), "smollm2")
    told = squeezed(Page(page_of(encoder, [chat("a", "b")])).text(" "))
    assert "set by the recipe, for records without their own: Be\\x07 brief." in told and "format chatml template" in told and "SmolLM, trained" not in told


def test_a_page_that_would_grow_too_large_leaves_records_out_and_says_so(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_room, "MOST_TOKENS", 100)
    chosen = [(Choice(chat("a", "b"), "asked for"), encoder.row(chat("a " * n, "b"))) for n in (200, 2, 2)]
    chosen = [(Choice(row.record, "asked for"), row) for _, row in chosen]
    made = preview_page("x", encoder, chosen, {"train": 3})
    assert made.left_out == 2 and made.html.count("<article") == 1 and "2 chosen records are not on this page" in squeezed(Page(made.html).text())


# --- safe ----------------------------------------------------------------------------------------------------------


def test_hostile_records_change_no_tag_and_no_attribute(hostile_source: str, hostile_records: list[Record]) -> None:
    page = Page(hostile_source)
    assert page.inside == [] and {"comment", "instruction", "declaration"}.isdisjoint(page.tree)
    allowed = {"html", "head", "meta", "title", "style", "body", "a", "header", "p", "strong", "main", "section", "div", "h1", "h2", "h3", "h4", "dl", "dt",
               "dd", "span", "code", "i", "b", "s", "mark", "label", "input", "article", "br", "footer", "script"}  # fmt: skip
    assert {tag for tag, _ in page.elements} <= allowed
    assert Counter(tag for tag, _ in page.elements)["article"] == len(hostile_records) and len(page.of("script")) == len(page.of("style")) == 1
    for tag, attributes in page.elements:
        if tag == "span" and "title" in attributes:
            number, _, words = str(attributes["title"]).removeprefix("token ").partition(", ")
            assert number == attributes["data-id"] and number.isdigit() and TOLD.fullmatch(words)
        assert not any(name.startswith("on") or name in ("style", "src", "srcdoc") for name in attributes)
    assert {str(a["href"]) for a in page.of("a")} == {"#main"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", hostile_source)


def test_policy_allows_the_one_style_and_script_by_digest_and_nothing_else(source: str) -> None:
    page = Page(source)
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digests = ["sha256-" + base64.b64encode(hashlib.sha256(page.content(tag).encode()).digest()).decode() for tag in ("style", "script")]
    assert policy == f"default-src 'none'; style-src '{digests[0]}'; script-src '{digests[1]}'; base-uri 'none'; form-action 'none'"


def test_the_page_is_its_owners_alone_even_where_an_older_one_was_open_to_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_private(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    write_private(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text(encoding="utf-8") == "two"
    (tmp_path / "after").touch()
    assert stat.S_IMODE((tmp_path / "after").stat().st_mode) != 0o600  # the umask is what it was


def test_only_an_earlier_page_is_overwritten(tmp_path: Path, source: str) -> None:
    page, other, empty = tmp_path / "page.html", tmp_path / "format.jinja", tmp_path / "empty.html"
    page.write_text(source, encoding="utf-8")
    other.write_text("{{ messages }}", encoding="utf-8")
    empty.touch()
    for path in (page, empty, tmp_path / "new.html", None):
        refuse_other_file(path, "--html")
    for path in (other, tmp_path):
        with pytest.raises(Refusal, match="an earlier page of tuner preview"):
            refuse_other_file(path, "--html")


def test_the_command_writes_a_private_page_and_overwrites_no_input(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    done = tuner("preview", "recipe.yaml", "--random", "3", "--html", "page.html", cwd=tmp_path)
    assert done.returncode == 0 and "written: page.html (not masked; only you may read it)" in done.stdout and "thing number" not in done.stdout
    path = tmp_path / "page.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text(encoding="utf-8").count("<article") == 3
    assert tuner("preview", "recipe.yaml", "--html", "page.html", cwd=tmp_path).returncode == 0
    before = (tmp_path / "train.jsonl").read_bytes()
    for name in ("train.jsonl", "recipe.yaml", "tiny.txt"):
        (tmp_path / "tiny.txt").write_text("mine", encoding="utf-8")
        refused = tuner("preview", "recipe.yaml", "--html", name, cwd=tmp_path)
        assert refused.returncode == 2 and "choose another name" in refused.stderr
    assert (tmp_path / "train.jsonl").read_bytes() == before and (tmp_path / "tiny.txt").read_text(encoding="utf-8") == "mine"


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
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.problems == [] and browser.requests == [file.resolve().as_uri()]


@needs_browser
def test_a_browser_runs_nothing_of_hostile_records_and_asks_nobody(browser: Browser, hostile_source: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(hostile_source, encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path, width=400)
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("window.pwned") is None
    assert browser.run("document.scripts.length") == 1 and browser.run("document.querySelectorAll('img, iframe, object, embed, form, base, link').length") == 0
    in_page = browser.run("[...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase())")
    assert Counter(in_page) == Counter(tag.lower() for tag, _ in Page(hostile_source).elements)
    assert browser.run("document.documentElement.scrollWidth") == 400
    assert browser.problems == [] and browser.requests == [path.resolve().as_uri()]


@needs_browser
def test_a_click_writes_what_the_pointer_shows_and_numbers_can_be_switched_on(browser: Browser, file: Path) -> None:
    browser.problems.clear()
    browser.open(file)
    browser.click(".tokens .t.l")
    assert browser.run("document.querySelector('.told').textContent") == browser.run("document.querySelector('.tokens .t.l').title") != ""
    browser.click(".tokens .t.l")
    assert browser.run("document.querySelector('.told').textContent") == ""
    under = "getComputedStyle(document.querySelector('.tokens .t.l'), '::after').content"
    assert browser.run(under) == "none"
    browser.click("#ids")
    assert browser.run(under) == '"' + browser.run("document.querySelector('.tokens .t.l').dataset.id") + '"'
    assert browser.problems == []


@needs_browser
def test_without_script_everything_is_there(browser: Browser, file: Path, source: str) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        assert browser.run("[...document.querySelectorAll('.tokens .t')].every(e => e.offsetHeight > 0)") is True
        assert browser.run("document.querySelectorAll('.tokens .t').length") == len(TOKEN.findall(source))
        assert browser.run("[...document.querySelectorAll('.told, .needs-script')].every(e => e.offsetHeight === 0)") is True
        browser.click("#ids")
        assert browser.run("getComputedStyle(document.querySelector('.tokens .t'), '::after').content") != "none"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_of_every_kind_of_token_stand_out_from_their_box(browser: Browser, file: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, measured on the colours the browser computed."""
    browser.open(file, scheme=scheme)
    kinds = [".t:not(.l):not(.s)", ".t.l:not(.s)", ".t.s:not(.l)", ".t.l.s", ".t.x", ".t:not(.l) i", ".t.l i"]
    for kind in kinds:
        colours = browser.run(f"(() => {{ const e = document.querySelector('.tokens {kind}'), box = e.closest('.t');"
                              " return [getComputedStyle(e).color, getComputedStyle(box).backgroundColor] })()")  # fmt: skip
        light, dark = sorted((luminance("#" + "".join(f"{int(n):02x}" for n in re.findall(r"\d+", c)[:3])) for c in colours), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (kind, colours)
