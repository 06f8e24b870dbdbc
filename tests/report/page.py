"""A page of ours as a strict list of tags, and what must hold of every one: policy, links, names, headings, contrast."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "input", "img"}


class Page(HTMLParser):
    """The page as a strict list of tags and the text between them, with attributes by element."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tree: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.inside: list[str] = []
        self.source = source
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.tree.append(f"<{tag} {' '.join(sorted(name for name, _ in attrs))}>")
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside and self.inside[-1] == tag, f"</{tag}> closes {self.inside[-3:]}"
        self.inside.pop()
        self.tree.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.inside), data))

    def handle_comment(self, data: str) -> None:
        self.tree.append("comment")

    def handle_pi(self, data: str) -> None:
        self.tree.append("instruction")

    def unknown_decl(self, data: str) -> None:
        self.tree.append("declaration")

    def text(self, between: str = "") -> str:
        return between.join(t for inside, t in self.texts if not {"style", "script"} & set(inside))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def content(self, tag: str) -> str:
        return "".join(t for inside, t in self.texts if inside[-1:] == (tag,))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def nothing_points_outside(page: Page) -> int:
    """How many links the page has; all of them lead into itself."""
    links = 0
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "link", "object", "embed", "base", "form", "audio", "video", "use", "image", "foreignobject"}
        for name, value in attributes.items():
            assert name not in {"style", "src", "srcset", "action", "formaction", "xlink:href", "background", "ping"} and not name.startswith("on")
            if name == "href":
                assert value is not None and value.startswith("#") and value[1:] in ids, value
                links += 1
    assert "url(" not in page.content("style") and "@import" not in page.content("style") and "http" not in page.content("script")
    return links


def inline_parts_allowed(page: Page) -> set[str]:
    """The inline parts that the page's policy allows, each checked against the digest of what stands in the page; everything else is closed."""
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    allowed = {rule.removesuffix("-src") for rule, value in rules.items() if "sha256-" in value}
    for tag in allowed:
        assert len(page.of(tag)) == 1 and page.of(tag)[0] == {}
        digest = base64.b64encode(hashlib.sha256(page.content(tag).encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    return allowed


def usable_pictures(page: Page) -> int:
    """How many pictures the page has, each with a description; and that keyboard and screen reader find their way through it."""
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [part for _, a in page.elements for part in (a.get("aria-labelledby") or "").split()]
    assert named and set(named) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.elements}
    assert all("scope" in a for a in page.of("th"))
    pictures = [a for a in page.of("svg") if a.get("role") == "img"]
    assert page.source.count("<desc ") == len(pictures)
    return len(pictures)
