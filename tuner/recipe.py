"""A YAML file as one frozen Recipe. Each room owns the type of its section; this file joins them and reads the file.

It refuses unknown, repeated and mistyped keys, anchors, tags, and files too large or too deep, all at once and by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, Event, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent, SequenceStartEvent
from ruamel.yaml.reader import ReaderError

from tuner.artifact.spec import ArtifactSpec
from tuner.base import BaseSpec
from tuner.catalog import suggestion
from tuner.data.spec import DataSpec
from tuner.errors import Collector, Problem, Refusal, refuse
from tuner.evaluate.spec import EvaluateSpec, GateSpec
from tuner.fingerprint import digest_json
from tuner.plan.spec import PlanSpec
from tuner.safe_text import quoted, visible
from tuner.section import Section
from tuner.template.spec import TemplateSpec
from tuner.train.spec import MethodSpec, TrainSpec

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


Place = tuple[str | int, ...]


@dataclass
class Document:
    """A parsed YAML file: its value, the line of every key and item, and the origin of what the file does not hold."""

    where: str
    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)

    def at(self, place: Place) -> str:
        """file:line of `place`, or of the nearest key above it; `command line` for a value that was given there."""
        while place and place not in self.lines:
            if place in self.origins:
                return self.origins[place]
            place = place[:-1]
        line = self.lines.get(place)
        return self.where if line is None else f"{self.where}:{line}"


class Recipe(Section):
    """Everything a run depends on. `tuner show recipe FILE` prints it with every default filled in."""

    name: str = Field(pattern=NAME, description="name of the adapter; versions are numbered under it")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="seed of every random choice: cuts, shuffles, initial weights, resamples")
    base: BaseSpec = Field(description="the frozen base model")
    data: DataSpec = Field(description="where records come from and what is checked")
    template: TemplateSpec = Field(default_factory=lambda: TemplateSpec(), description="how records become tokens")
    method: MethodSpec = Field(default_factory=lambda: MethodSpec(), description="which adapter")
    train: TrainSpec = Field(default_factory=lambda: TrainSpec(), description="how it is fitted")
    evaluate: EvaluateSpec = Field(default_factory=lambda: EvaluateSpec(), description="how it is graded")
    gate: GateSpec = Field(default_factory=lambda: GateSpec(), description="what must hold before a version may be promoted")
    plan: PlanSpec = Field(default_factory=lambda: PlanSpec(), description="assumptions of the plan")
    artifact: ArtifactSpec = Field(default_factory=lambda: ArtifactSpec(), description="where versions are kept")
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict, description="named sets of overrides (key.path: value), chosen with --profile")

    _document: Document | None = PrivateAttr(default=None)
    _path: Path = PrivateAttr(default=Path("recipe.yaml"))
    _text: str = PrivateAttr(default="")

    @property
    def path(self) -> Path:
        """The file it was read from; relative paths in the recipe start at its folder."""
        return self._path

    @property
    def text(self) -> str:
        """The file as written."""
        return self._text

    def with_evaluate(self, **changes: Any) -> Recipe:
        """The same recipe, from the same file, graded otherwise."""
        made = self.model_copy(update={"evaluate": self.evaluate.model_copy(update=changes)})
        made._document, made._path, made._text = self._document, self._path, self._text
        return made

    @property
    def training_seed(self) -> int:
        """What the initial weights, the order of rows and dropout follow from; cuts and suites follow from `seed` alone."""
        return self.seed if self.train.seed is None else self.train.seed

    def at(self, *place: str | int) -> str:
        """file:line of a key, for refusals of rooms further down."""
        return self._document.at(place) if self._document is not None else self._path.name

    @property
    def digest(self) -> str:
        """Identity of the choices: equal recipes have equal digests whatever their comments, order or spelling of defaults."""
        return digest_json(self.model_dump(mode="json", exclude={"profiles"}))


def load_recipe(path: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Recipe:
    """Read, override and validate a recipe. Raises Refusal with every problem of the file, each with its line."""
    file = Path(path)
    text = _read(file)
    document, faults = _parsed(text, str(path))
    if not isinstance(document.value, dict):
        refuse(path, "", "no keys", "a mapping with name, base and data", "start from recipes/quickstart.yaml")
    if profile is not None:
        _apply_profile(document, profile)
    for words in overrides:
        _apply_override(document, words)
    try:
        recipe = _validate(document)
    except Refusal as refusal:
        known = {(p.where, p.field) for p in faults.problems}
        raise Refusal([*faults.problems, *(p for p in refusal.problems if (p.where, p.field) not in known)]) from None
    faults.raise_if_any()
    recipe._document = document
    recipe._path = file.resolve()
    recipe._text = text
    return recipe


def recipe_for_files(files: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that reads `files` as its train split, for looking at data before there is a recipe. Only its data section means anything."""
    text = f"name: files\nbase:\n  model: smollm2-135m-instruct\ndata:\n  train: {json.dumps(list(files), ensure_ascii=False)}\n"
    document = parse_yaml(text, "command line")
    for words in overrides:
        _apply_override(document, words)
    recipe = _validate(document)
    recipe._document, recipe._path, recipe._text = document, Path("recipe.yaml").resolve(), text
    return recipe


def _read(file: Path) -> str:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            refuse(file, "", f"{size} bytes", f"at most {MAX_BYTES} bytes", "keep data out of the recipe")
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        refuse(file, "", "no such file", "a recipe (YAML)", suggestion(file.name, near) if near else "check the path")
    except UnicodeDecodeError as error:
        refuse(file, "", f"a byte that is not UTF-8 at offset {error.start}", "UTF-8 text", "save the file as UTF-8")
    except OSError as error:
        refuse(file, "", error.strerror or type(error).__name__, "a readable file", "check the path and its permissions")


# --- YAML 1.2, a safe part of it -----------------------------------------------------------------------------------


def parse_yaml(text: str, where: str) -> Document:
    """Parse YAML 1.2 without anchors, tags or repeated keys. Raises Refusal with file:line."""
    document, faults = _parsed(text, where)
    faults.raise_if_any()
    return document


def _parsed(text: str, where: str) -> tuple[Document, Collector]:
    """The document and what is wrong with it, so that its keys can be judged in the same pass."""
    document = Document(where)
    collector = Collector()
    body = [e for e in _events(text, where) if isinstance(e, _CONTENT)]
    if body:
        stream = iter(body)
        document.value = _build(next(stream), stream, (), document, collector)
        if (more := next(stream, None)) is not None:
            at = f"{where}:{more.start_mark.line + 1}"
            collector.add(at, "", "a second YAML document", "one document a file", "remove the `---` and what follows")
    return document, collector


_CONTENT = (ScalarEvent, AliasEvent, MappingStartEvent, MappingEndEvent, SequenceStartEvent, SequenceEndEvent)


def _events(text: str, where: str) -> list[Event]:
    """The parser's events. Depth is judged as they come: ruamel.yaml 0.19.1 takes 4 s for 3,000 open brackets, hours for 256 KiB of them."""
    events: list[Event] = []
    depth = 0
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, (MappingStartEvent, SequenceStartEvent)) - isinstance(event, (MappingEndEvent, SequenceEndEvent))
            if depth > MAX_DEPTH:
                refuse(f"{where}:{event.start_mark.line + 1}", "", f"nesting deeper than {MAX_DEPTH}", f"at most {MAX_DEPTH} levels", "flatten it")
            events.append(event)
    except ReaderError as error:
        at, found = f"{where}:{text.count(chr(10), 0, error.position) + 1}", f"the control character U+{error.character:04X}"
        refuse(at, "", found, "YAML 1.2, which is printable text", 'delete it, or write it as "\\xNN" in double quotes')
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        refuse(line, "", getattr(error, "problem", None) or "not YAML", "YAML 1.2", "check indentation, colons and quotes there")
    except (AssertionError, ValueError, OverflowError) as error:  # ruamel.yaml 0.19.1 on `%YAML 1.5`, "\UFFFFFFFF"
        line = f"{where}:{events[-1].end_mark.line + 1}" if events else where
        refuse(line, "", f"not YAML: {error}", "YAML 1.2", "check the escape or directive there")
    return events


def _build(event: Event, stream: Iterator[Event], place: Place, document: Document, collector: Collector) -> Any:
    line = event.start_mark.line + 1
    document.lines.setdefault(place, line)
    at = f"{document.where}:{line}"
    if isinstance(event, AliasEvent):
        collector.add(at, _dotted(place), f"an alias, *{event.anchor}", "plain values", "write the value out")
        return None
    if getattr(event, "anchor", None):
        collector.add(at, _dotted(place), f"an anchor, &{event.anchor}", "plain values", "write the value out where it is used")
    if getattr(event, "tag", None) is not None:
        collector.add(at, _dotted(place), f"a tag, {event.tag}", "values without tags", "remove the tag")
    if isinstance(event, ScalarEvent):
        return _quoted(event.value, at, place, collector) if event.style else _plain(event.value, at, place, collector)
    if isinstance(event, SequenceStartEvent):
        return _sequence(stream, place, document, collector)
    return _mapping(stream, place, document, collector)


def _sequence(stream: Iterator[Event], place: Place, document: Document, collector: Collector) -> list[Any]:
    items: list[Any] = []
    while not isinstance(event := next(stream), SequenceEndEvent):
        items.append(_build(event, stream, (*place, len(items)), document, collector))
    return items


def _mapping(stream: Iterator[Event], place: Place, document: Document, collector: Collector) -> dict[str, Any]:
    table: dict[str, Any] = {}
    while not isinstance(event := next(stream), MappingEndEvent):
        at = f"{document.where}:{event.start_mark.line + 1}"
        if not isinstance(event, ScalarEvent):
            collector.add(at, _dotted(place), "a key that is not text", "keys that are words", "write a plain word before the colon")
            _build(event, stream, (*place, "?"), document, collector)
            _build(next(stream), stream, (*place, "?"), document, collector)
            continue
        key = _quoted(event.value, at, place, collector) or "" if event.style else event.value
        inner = (*place, key)
        if key in table:
            collector.add(at, _dotted(inner), f"the key {quoted(key)} again, first on line {document.lines[inner]}",
                          "each key once", "delete one of the two")  # fmt: skip
        document.lines.setdefault(inner, event.start_mark.line + 1)
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            collector.add(at, _dotted(inner), "an anchor or tag on a key", "plain keys", "remove it")
        table[key] = _build(next(stream), stream, inner, document, collector)
    return table


def _quoted(text: str, at: str, place: Place, collector: Collector) -> str | None:
    """A quoted or block scalar. JSON's "\\ud83d\\ude00" is one character, which ruamel.yaml leaves as two halves."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        collector.add(at, _dotted(place), "half of a surrogate pair, which is no character", "Unicode text", "write the character itself")
        return None


_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _plain(text: str, at: str, place: Place, collector: Collector) -> Any:
    """A plain scalar by YAML 1.2's core schema (chapter 10.3.2): yes/no/on/off stay text, 2e-3 is a number, 010 is ten."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) or _OTHER_INT.fullmatch(text):
        if len(text) <= 20:
            return int(text) if _INT.fullmatch(text) else int(text, 0)
        collector.add(at, _dotted(place), f"a whole number of {len(text)} digits", "at most 20 digits", "shorten or quote it")
        return None
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            collector.add(at, _dotted(place), text, "a finite number", "write a smaller number")
        return number
    if text.lower() in {".inf", "+.inf", "-.inf", ".nan"}:
        collector.add(at, _dotted(place), text, "a finite number", "write a number")
        return None
    return text


def _dotted(place: Sequence[str | int]) -> str:
    out = ""
    for part in place:
        out += f"[{part}]" if isinstance(part, int) else f".{visible(part)}" if out else visible(part)
    return out


# --- overrides and profiles ----------------------------------------------------------------------------------------


def _apply_profile(document: Document, profile: str) -> None:
    profiles = document.value.get("profiles") or {}
    if not isinstance(profiles, dict) or profile not in profiles or not isinstance(profiles[profile], dict):
        names = list(profiles) if isinstance(profiles, dict) else []
        refuse(document.at(("profiles",)), "profiles", f"no profile {quoted(profile)}", f"one of: {', '.join(names) or 'none defined'}",
               suggestion(profile, names) if names else "add it under `profiles:`")  # fmt: skip
    for key, value in profiles[profile].items():
        line = document.lines.get(("profiles", profile, key))
        _set(document, key.split("."), value, line, f"profiles.{profile}")


def _apply_override(document: Document, words: str) -> None:
    key, equals, value = words.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        refuse("command line", "", quoted(words), "key.path=value", "for example train.epochs=3")
    _set(document, key.split("."), parse_yaml(value, f"command line, {key}").value, None, "command line")


def _set(document: Document, path: list[str], value: Any, line: int | None, origin: str) -> None:
    table = document.value
    for depth, part in enumerate(path[:-1]):
        if isinstance(table.get(part), (str, list)) and _is_source(path[: depth + 1]):  # the short form `train: file.jsonl`
            table[part] = {"files": table[part]}
        if table.get(part) is None:
            table[part] = {}
            _came_from(document, path[: depth + 1], line, origin)
        if not isinstance(table[part], dict):
            refuse(origin, ".".join(path), f"{'.'.join(path[: depth + 1])} is not a section", "a key inside a section", "check the path")
        table = table[part]
    table[path[-1]] = value
    _came_from(document, path, line, origin)


def _came_from(document: Document, path: list[str], line: int | None, origin: str) -> None:
    """Note where the value at `path` was given; what the file said there, and inside it, counts no more."""
    place = tuple(path)
    document.lines = {p: n for p, n in document.lines.items() if p[: len(place)] != place}
    if line is None:
        document.origins[place] = origin
    else:
        document.lines[place] = line


def _is_source(path: list[str]) -> bool:
    return path[0] == "data" and (path[1:] in (["train"], ["rehearsal"], ["validation"], ["held_out"]) or (len(path) == 3 and path[1] == "ood"))


# --- validation ----------------------------------------------------------------------------------------------------


def _validate(document: Document) -> Recipe:
    try:
        return Recipe.model_validate(document.value)
    except ValidationError as error:
        seen: dict[tuple[str, str], Problem] = {}
        for entry in error.errors(include_url=False):
            problem = _problem(document, entry)
            seen.setdefault((problem.where, problem.field), problem)
        raise Refusal(seen.values()) from None


def _problem(document: Document, entry: Mapping[str, Any]) -> Problem:
    place = _real_place(document.value, entry["loc"])
    at, key, kind = document.at(place), _dotted(place), entry["type"]
    if kind == "extra_forbidden":
        known = _keys_at(place[:-1])
        return Problem(at, key, f"an unknown key, {quoted(place[-1])}", "one of: " + ", ".join(known), suggestion(str(place[-1]), known))
    if kind == "missing":
        missing = (*place, entry["loc"][-1])
        return Problem(at, _dotted(missing), "nothing", _wanted(missing), f"add `{entry['loc'][-1]}:` there")
    found = _shown(entry.get("input"))
    if kind == "literal_error":
        expected = entry["ctx"]["expected"]
        names = re.findall(r"'([^']*)'", expected)
        return Problem(at, key, found, expected.replace("'", ""), suggestion(str(entry.get("input")), names))
    if kind == "value_error":
        return Problem(at, key, found, str(entry["ctx"]["error"]), "change it as said; `tuner show recipe FILE` prints every key with what it means")
    if kind in {"model_type", "dict_type"}:
        return Problem(at, key, found, "a section: indented lines of key: value", _wanted(place) or "see `tuner show recipe`")
    message = str(entry["msg"]).removeprefix("Input should be ")
    return Problem(at, key, found, message, _wanted(place) or "see `tuner show recipe`")


def _shown(value: object) -> str:
    return quoted(value) if isinstance(value, str) else quoted(json.dumps(value, default=str)).strip("'")


def _real_place(value: Any, loc: Sequence[str | int]) -> Place:
    """`loc` without the parts pydantic adds for union branches: the longest prefix that exists in the document."""
    place: list[str | int] = []
    for part in loc:
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _field_at(place: Place) -> FieldInfo | None:
    model: type[BaseModel] | None = Recipe
    found: FieldInfo | None = None
    for part in place:
        if model is None:  # inside a dict such as data.ood: the entry's own name
            continue
        found = model.model_fields.get(str(part))
        if found is None:
            return None
        inner = list(_models_in(found.annotation))
        model = inner[0] if inner and not _is_table(found.annotation) else None
        if _is_table(found.annotation) and inner:
            return _field_in_table(inner[0], place[place.index(part) + 2 :], found)
    return found


def _field_in_table(model: type[BaseModel], rest: Place, outer: FieldInfo) -> FieldInfo | None:
    return model.model_fields.get(str(rest[0])) if rest else outer


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_table(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _keys_at(place: Place) -> list[str]:
    """The keys accepted inside `place`."""
    if not place:
        return sorted(Recipe.model_fields)
    info = _field_at(place)
    models = list(_models_in(info.annotation)) if info is not None else []
    return sorted(models[0].model_fields) if models else []


def _wanted(place: Place) -> str:
    info = _field_at(place)
    return info.description or "" if info is not None else ""


# --- showing -------------------------------------------------------------------------------------------------------


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that editors use to complete and check recipes."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema(mode="validation")}


def recipe_text(recipe: Recipe, comments: bool = True) -> str:
    """The recipe as YAML with every default filled in; with `comments`, each key's description and unit above it."""
    return "\n".join(_section_lines(recipe, "", comments)) + "\n"


def _section_lines(section: BaseModel, indent: str, comments: bool) -> Iterator[str]:
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        if comments and info.description:
            yield f"{indent}# {info.description}"
        yield from _value_lines(key, value, indent, comments)


def _value_lines(key: str, value: Any, indent: str, comments: bool) -> Iterator[str]:
    head = indent + (key if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key) else json.dumps(key))
    if isinstance(value, BaseModel):
        yield f"{head}:"
        yield from _section_lines(value, indent + "  ", comments)
    elif isinstance(value, dict) and value:
        yield f"{head}:"
        for inner_key, inner in value.items():
            yield from _value_lines(inner_key, inner, indent + "  ", comments)
    else:
        yield f"{head}: {_flow(value)}"


def _flow(value: Any) -> str:
    """`value` as JSON that YAML reads as the same value: what YAML calls a line break or unprintable is escaped."""
    return re.sub("[\x7f-\x9f\u2028\u2029\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False, default=_as_json))


def _as_json(value: Any) -> Any:
    """A section inside a list (a rule of the gate) as its mapping; anything else that JSON does not know as its text."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
