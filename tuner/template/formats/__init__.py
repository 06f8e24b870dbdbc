"""Named prompt formats. Each is one jinja file in this folder: a header that says what it is and where it is from, then the template.

It refuses an unknown name, a header it cannot read, and a format whose control texts or stop token the base's vocabulary does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import jinja2
from jinja2 import nodes
from tokenizers import Tokenizer

from tuner.catalog import choose, nearest
from tuner.errors import Collector, refuse
from tuner.safe_text import quoted
from tuner.template.sandbox import Sandbox

TOKENIZER = "tokenizer"  # the name that stands for the base's own chat template
MAX_BYTES = 256 * 1024

Bos = Literal["yes", "no", "base"]
System = Literal["yes", "no", "own default"]

_HEAD = re.compile(r"\A\{#- tuner format\n(?P<lines>.*?)-#\}", re.DOTALL)
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_\w+>")  # how the control texts of known families look


@dataclass(frozen=True)
class Format:
    """A prompt format: its jinja text, and what its header says of it.

    stop        the text that ends an answer; `eos_token` for the base's own; empty where the base's stop tokens decide
    bos         yes: the template writes it; no: never; base: written first where the base's tokenizer begins plain text with it
    needs       control texts that must each be one token of the base; None: every text that looks like one
    """

    name: str
    text: str
    sources: tuple[str, ...] = ()
    stop: str = ""
    bos: Bos = "yes"
    system: System = "yes"
    multi_turn: bool = True
    tools: bool = False
    trims: bool = False
    needs: tuple[str, ...] | None = None
    note: str = ""

    def source_for(self, tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> str:
        """The template as it is rendered and stored on this base: with the beginning-of-text token in front where `bos: base` asks for it."""
        head = _HEAD.match(self.text)
        if self.bos != "base" or head is None or not _begins_with_bos(tokenizer, special_tokens):
            return self.text
        return f"{head.group()}{_BOS}{self.text[head.end() :]}"

    def refuse_other_vocabulary(self, tokenizer: Tokenizer, special_tokens: Mapping[str, str], base: str) -> None:
        """Raises Refusal with every control text of the format that is not one token of the base, and with a stop that is none."""
        collector = Collector()
        needed = dict.fromkeys(self.needs if self.needs is not None else control_texts(self.text))
        if self.stop and self.stop != "eos_token":
            needed[self.stop] = None
        for text in needed:
            if tokenizer.token_to_id(text) is None or len(ids := tokenizer.encode(text, add_special_tokens=False).ids) != 1:
                found = f"{quoted(text)} is {len(ids) if tokenizer.token_to_id(text) is not None else 'no token'} of {base}"
                collector.add("template.format", self.name, found, "one token of the base's vocabulary", _other_format(tokenizer, special_tokens))
        if _reads(self.text, "eos_token") and tokenizer.token_to_id(special_tokens.get("eos_token", "")) is None:
            collector.add("template.format", self.name, f"{base} names no eos_token, which ends an answer", "a tokenizer that names one",
                          "use the tokenizer files that belong to the model")  # fmt: skip
        collector.raise_if_any()


_BOS = "{{- bos_token -}}"


def read_format(name: str, recipe_folder: Path) -> Format:
    """A named format, or the user's own jinja file, its path relative to the recipe. Raises Refusal, with the nearest name."""
    if not name.endswith((".jinja", ".j2")):
        return choose(FORMATS, name, "recipe", "template.format") if "/" not in name else _refuse_path(name)
    path = recipe_folder / name
    try:
        if path.stat().st_size > MAX_BYTES:
            refuse(path, "template.format", f"{path.stat().st_size} bytes", f"at most {MAX_BYTES} bytes", "name a chat template")
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.j*")]) if path.parent.is_dir() else None
        refuse(path, "template.format", "no such file", "a jinja file beside the recipe, or one of: " + ", ".join(FORMATS),
               f"write {near}" if near else "check the path")  # fmt: skip
    except UnicodeDecodeError as error:
        refuse(path, "template.format", f"a byte that is not UTF-8 at offset {error.start}", "UTF-8 text", "save the file as UTF-8")
    except OSError as error:
        refuse(path, "template.format", error.strerror or type(error).__name__, "a readable file", "check the path and its permissions")
    return parse_format(name, text, path)


def _refuse_path(name: str) -> Format:
    refuse("recipe", "template.format", quoted(name), "a named format, or the path of a .jinja file", "end the file's name in .jinja")


def stop_of(source: str) -> str:
    """The stop text of a template that carries a header, as an artifact's does; empty for any other. `eos_token` is the base's own anyway."""
    head = _HEAD.match(source)
    found = re.search(r"^stop: *(\S+)$", head["lines"], re.MULTILINE) if head else None
    return found[1] if found and found[1] != "eos_token" else ""


def parse_format(name: str, text: str, where: object) -> Format:
    """A format out of its jinja text. A file without a header is a template that says nothing of itself. Raises Refusal."""
    head = _HEAD.match(text)
    if head is None:
        return Format(name, text)
    collector = Collector()
    found: dict[str, list[str]] = {}
    for number, line in enumerate(head["lines"].splitlines(), 2):
        key, colon, value = line.partition(":")
        if line.strip() and (not colon or key not in _VALUES or (value.strip() not in _VALUES[key] and _VALUES[key])):
            accepted = f"{key}: {' or '.join(_VALUES[key])}" if key in _VALUES else "a line of: " + ", ".join(_VALUES)
            collector.add(f"{where}:{number}", "header", quoted(line), accepted, "mend the header of the format")
        found.setdefault(key, []).append(value.strip())
    collector.raise_if_any()
    one = {key: values[-1] for key, values in found.items()}
    needs = one.get("needs")
    return Format(
        name, text, tuple(found.get("source", ())), one.get("stop", ""), cast("Bos", one.get("bos", "yes")), cast("System", one.get("system", "yes")),
        one.get("multi_turn", "yes") == "yes", one.get("tools", "no") == "yes", one.get("trims", "no") == "yes",
        None if needs is None else tuple(needs.replace("none", "").split()), " ".join(found.get("note", ())),
    )  # fmt: skip


_VALUES: dict[str, tuple[str, ...]] = {
    "source": (), "stop": (), "bos": ("yes", "no", "base"), "system": ("yes", "no", "own default"), "multi_turn": ("yes", "no"),
    "tools": ("yes", "no"), "trims": ("yes", "no"), "needs": (), "note": (),
}  # fmt: skip


def control_texts(source: str) -> list[str]:
    """Texts of a template that look like control tokens, such as <|im_start|>. A template that does not parse has none."""
    try:
        tree = Sandbox().parse(source)
    except (jinja2.TemplateError, RecursionError):
        return []
    written = [node.data for node in tree.find_all(nodes.TemplateData)]
    written += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return list(dict.fromkeys(found for text in written for found in _CONTROL.findall(text)))


def _reads(source: str, name: str) -> bool:
    try:
        return any(node.name == name for node in Sandbox().parse(source).find_all(nodes.Name))
    except (jinja2.TemplateError, RecursionError):
        return False


def _begins_with_bos(tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> bool:
    """Whether the tokenizer puts the beginning-of-text token before plain text by itself, as Llama's does and SmolLM2's does not."""
    bos = tokenizer.token_to_id(special_tokens.get("bos_token", ""))
    return bos is not None and tokenizer.encode("a").ids[:1] == [bos]


def _other_format(tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> str:
    eos = tokenizer.token_to_id(special_tokens.get("eos_token", "")) is not None
    fit = [f.name for f in FORMATS.values() if all(tokenizer.token_to_id(t) is not None for t in f.needs or ()) and (f.stop != "eos_token" or eos)]
    return f"use {TOKENIZER}, or one that this base has the tokens for: {', '.join(fit)}"


def _shipped() -> dict[str, Format]:
    files = sorted(Path(__file__).parent.glob("*.jinja"))
    return {file.stem: parse_format(file.stem, file.read_text(encoding="utf-8"), file.name) for file in files}


FORMATS = _shipped()
SHIPPED_SOURCES = frozenset(text for f in FORMATS.values() for text in (f.text, f.text.replace("-#}", "-#}" + _BOS, 1)))
