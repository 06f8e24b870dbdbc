"""Metrics of JSON answers: does it parse, does it fit the schema, are its fields right?

What a model says is hostile input: no repeated keys, no NaN, no endless nesting, no schema that fetches another over the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.metric_types import Answer, Sums

MAX_DEPTH = 100
PATTERN_SECONDS = 1.0
_NOT_JSON = object()


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None: strictly, without NaN, repeated keys or nesting deeper than 100."""
    value = _parse(text)
    return value if isinstance(value, dict) else None


def _parse(text: str) -> Any:
    """The JSON value that `text` is, as strictly, or _NOT_JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _NOT_JSON
    return value if _depth(value) <= MAX_DEPTH else _NOT_JSON


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key twice")
    return table


def _no_constant(word: str) -> Any:
    raise ValueError(word)


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level: no recursion on what a model may have said."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return depth


def fields(value: Any, path: str = "") -> Counter[tuple[str, str]]:
    """Every leaf of a JSON value as (path, value), list positions left out: the unit of field F1."""
    if isinstance(value, dict):
        return sum((fields(v, f"{path}.{k}") for k, v in value.items()), Counter())
    if isinstance(value, list):
        return sum((fields(v, f"{path}[]") for v in value), Counter())
    return Counter({(path, json.dumps(value, ensure_ascii=False)): 1})


def json_valid(answer: Answer) -> float:
    """1 if the answer is one JSON object and nothing else."""
    return float(parse_object(answer.text or "") is not None)


def json_exact(answer: Answer) -> float:
    """1 if the answer's object equals a reference's, whatever the order of keys."""
    said = parse_object(answer.text or "")
    return float(said is not None and any(_canonical(said) == _canonical(parse_object(r)) for r in answer.references))


def _canonical(value: Any) -> str:
    """One text for equal JSON, in which 1 and true differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def field_parts(answers: Sequence[Answer]) -> Sums:
    """Twice the fields both said and wanted, and the fields said plus the fields wanted, against the nearest reference: 2tp and 2tp + fp + fn."""
    return np.array([_field_pair(a) for a in answers], dtype=np.float64).reshape(-1, 2)


def _field_pair(answer: Answer) -> tuple[int, int]:
    said = fields(parse_object(answer.text or "") or {})
    options = []
    for reference in answer.references:
        wanted = fields(parse_object(reference) or {})
        both, size = sum((said & wanted).values()), sum(said.values()) + sum(wanted.values())
        options.append((3 * both - size, both, size))  # tp - fp - fn, then tp
    _, both, size = max(options, key=lambda o: o[:2])
    return 2 * both, size


# --- schema ----------------------------------------------------------------------------------------------------------


def schema_score(file: Path, where: str, field: str) -> Callable[[Answer], float]:
    """A score that is 1 where the answer is one JSON value that fits the schema in `file`; `format` is not asserted, as the specification has it.

    Raises Refusal if the file is no JSON Schema, or refers to another document: nothing is fetched.
    """
    validator = _validator(_read_schema(file, where, field), file, where, field)

    def score(answer: Answer) -> float:
        value = _parse(answer.text or "")
        try:
            return float(value is not _NOT_JSON and validator.is_valid(value))
        except (RecursionError, TimeoutError):
            return 0.0

    return score


def _read_schema(file: Path, where: str, field: str) -> Any:
    try:
        schema = _parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        refuse(where, field, f"{file.name}: {type(error).__name__}", "a readable file of JSON Schema, its path relative to the recipe", "mend the path")
    if schema is _NOT_JSON:
        refuse(where, field, f"{file.name}: not one JSON value", "a file of JSON Schema", "write JSON without repeated keys or comments")
    far = next((ref for ref in _references(schema) if not ref.startswith("#")), None)
    if far is not None:
        refuse(where, field, f"{file.name}: $ref {far!r}", "references inside the file: #/$defs/…", "copy the other schema under $defs")
    return schema


def _references(schema: Any) -> Iterator[str]:
    """Every $ref and $dynamicRef of a schema."""
    level = [schema]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            yield from (v for k, v in value.items() if k in ("$ref", "$dynamicRef") and isinstance(v, str))
            level += value.values()
        elif isinstance(value, list):
            level += value


def _validator(schema: Any, file: Path, where: str, field: str) -> Any:
    """A validator of the draft that `$schema` names (2020-12 by default), with `pattern` limited in time and no way to fetch."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    draft = validator_for(schema, default=Draft202012Validator)
    try:
        draft.check_schema(schema)
        made = extend(draft, {"pattern": _pattern})(schema, registry=EMPTY_REGISTRY)
        made.is_valid({})
    except SchemaError as error:
        refuse(where, field, f"{file.name} at {error.json_path}: {error.message[:200]}", "a valid JSON Schema", "mend the schema")
    except Unresolvable as error:
        refuse(where, field, f"{file.name}: nothing at {error.ref!r}", "references to parts that exist", "mend the reference")
    return made


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """JSON Schema's `pattern` (2020-12, validation §6.3.3), which jsonschema searches without a time limit."""
    import regex
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and regex.search(pattern, instance, timeout=PATTERN_SECONDS) is None:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def schema_signature() -> str:
    """Which validator judged."""
    from importlib.metadata import version

    return f"jsonschema {version('jsonschema')}"
