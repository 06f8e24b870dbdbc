"""Strings that try to be more than text, and a report in which every string carries one. It refuses to spare a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SEEDS = [
    "<script>window.pwned=1</script>", "<SCRIPT SRC=//evil.example/x.js></SCRIPT>", "<img src=x onerror=window.pwned=1>", "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>", "<iframe srcdoc='<script>window.pwned=1</script>'>", "<a href='javascript:window.pwned=1'>x</a>",
    "<video><source onerror=window.pwned=1>", "<marquee onstart=window.pwned=1>", "<frameset onload=window.pwned=1>",
    "javascript:window.pwned=1", "JaVaScRiPt:alert(1)", "data:text/html,<script>window.pwned=1</script>", "<body onload=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>", "<input autofocus onfocus=window.pwned=1>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>", "<link rel=stylesheet href=//evil.example/x.css>", "<style>*{display:none}</style>",
    "<form action=//evil.example><button>",
    "<object data=//evil.example>", "<embed src=//evil.example>", "<math><mtext></mtext><mglyph><svg><mtext><style><img onerror=window.pwned=1>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>", "<template><script>window.pwned=1</script></template>", "<plaintext>",
    "<textarea>",
    "<title>x</title>", "<table><tr><td>", "<li>one<li>two", "<p>one<p>two", "<h1>mine</h1>", "<button data-group=change data-value=lost>",
    "</style><script>window.pwned=1</script>", "</script><script>window.pwned=1</script>", "</title><script>window.pwned=1</script>", "</desc></svg><script>",
    "</text><script>window.pwned=1</script>", "</p></li></ul></section></main>", "</pre></code>", "<!-- ", "-->", "<!--><script>window.pwned=1</script>",
    "]]>", "<![CDATA[<script>window.pwned=1</script>]]>", "<?xml version='1.0'?>", "<!DOCTYPE html>", "&lt;script&gt;", "&#60;script&#62;", "&",
    "&amp", "&quot;",
    "{{7*7}}", "{{ config }}", "{% for x in ().__class__.__base__.__subclasses__() %}x{% endfor %}", "{# gone #}", "{%raw%}", "${7*7}", "#{7*7}",
    "<%= 7*7 %>",
    "{0.__class__}", "{key}", "{grid}", "%s%n", "\\x3cscript\\x3e", "\\u003cscript\\u003e", '"', "'", "`", '"><script>window.pwned=1</script>',
    "'><script>window.pwned=1</script>", "` onmouseover=window.pwned=1 x=`", '" onmouseover="window.pwned=1', "' onfocus='window.pwned=1' autofocus='",
    '" style="position:fixed;inset:0', "url(javascript:1)", "expression(window.pwned=1)", "@import '//evil.example'", "a\x00b",
    "<scr\x00ipt>window.pwned=1</script>",
    "\u202egnp.exe", "\u2066hidden\u2069", "\u200bzero\u200dwidth\ufeff", "line\u2028separator\u2029end", "bell\x07 escape\x1b[31m csi\x9b31m",
    "\x08\x7f\x85",
    "carriage\rreturn\r\nline", "two\nlines\n\n", "tab\there", "  ", "\u00a0", "\ud800lone surrogate", "\ue000private", "\U000e0041tag", "\uffff\ufffe",
    "e\u0301\u0301\u0301\u0301", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "＜script＞window.pwned=1＜/script＞", "#main", "//evil.example",
    "../../etc/passwd",
]  # fmt: skip
FRAMES: list[Callable[[str], str]] = [lambda s: s, lambda s: f"\"'>{s}<\"'"]
STRINGS = [frame(seed) for frame in FRAMES for seed in SEEDS]
WORDS = {  # the program's own, not data
    "adapter", "base zero_shot", "consistency", "overall", "better", "worse", "no difference seen", "won", "lost", "changed", "both wrong",
    "both right", "pass", "fail", "undecided", "mean", "ratio", "error", "warning", "note",
}  # fmt: skip
OWN = {("suites", "*", "role"), ("examples", "[]", "role")}  # where a string is the program's own, whatever it says
OPEN = {  # mappings whose keys are data, by path
    ("suites",), ("suites", "*", "metrics"), ("suites", "*", "values"), ("suites", "*", "values", "*"), ("suites", "*", "differences"),
    ("suites", "*", "power"), ("suites", "*", "facts", "drops"), ("suites", "*", "facts", "drops", "*"), ("suites", "*", "facts", "excess"),
    ("suites", "*", "facts", "by_length", "[]"),
    ("contenders",), ("metrics",), ("changes",), ("versions",), ("hardware",), ("method",), ("data", "splits"), ("data", "dropped"),
    ("evaluation", "settings"), ("judge",), ("notes", "transforms", "left_out"),
}  # fmt: skip


def with_text(value: Any, text: Callable[[str], str], path: tuple[str, ...] = ()) -> Any:
    """A copy in which every string of data, and every key that is data, went through `text` (which must be injective)."""
    if path in OWN:
        return value
    if isinstance(value, dict):
        is_open = path in OPEN
        return {
            (text(k) if is_open and k not in WORDS else k): with_text(v, text, (*path, "*" if is_open else k)) for k, v in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [with_text(v, text, (*path, "[]")) for v in value]
    return text(value) if isinstance(value, str) and value not in WORDS else value
