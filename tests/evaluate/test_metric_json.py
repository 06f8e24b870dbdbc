"""JSON metrics: strict about what JSON is, equal to jsonschema, and bounded whatever a model says."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest

from tuner.errors import Refusal
from tuner.evaluate.metric_json import schema_score
from tuner.evaluate.metrics import METRICS, Answer


def value(name: str, answers: Sequence[Answer]) -> float:
    metric = METRICS[name]
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


def test_json_field_f1_equals_a_naive_count() -> None:
    rng = random.Random(5)

    def leaves(text: str) -> list[tuple[str, str]]:
        try:
            found = json.loads(text)
        except ValueError:
            return []
        return [(k, json.dumps(v)) for k, vs in found.items() for v in vs] if isinstance(found, dict) else []

    answers, both, said_count, wanted_count = [], 0, 0, 0
    for _ in range(60):
        wanted = json.dumps({k: [rng.choice("xyz") for _ in range(rng.randint(0, 3))] for k in "ab"})
        said = rng.choice([json.dumps({k: [rng.choice("xyz")] for k in "ab"}), "not json", wanted, "[1]"])
        answers.append(Answer((wanted,), said))
        left = leaves(wanted)
        wanted_count += len(left)
        for leaf in leaves(said):
            said_count += 1
            if leaf in left:
                left.remove(leaf)
                both += 1
    assert value("json_field_f1", answers) == pytest.approx(2 * both / (said_count + wanted_count))


def test_the_nearest_reference_counts_and_nothing_wanted_and_nothing_said_is_right() -> None:
    assert value("json_field_f1", [Answer(('{"a": 1, "b": 2}', '{"a": 3}'), '{"a": 3}')]) == 1
    assert value("json_field_f1", [Answer(("{}",), "{}")]) == 1


def test_json_exact_ignores_key_order_and_json_valid_wants_an_object_alone() -> None:
    reference = '{"a": 1, "b": [2]}'
    assert value("json_exact", [Answer((reference,), '{"b": [2], "a": 1}')]) == 1
    assert value("json_valid", [Answer((reference,), text) for text in ('{"a": 1}', "[1]", '{"a": 1} ok', "")]) == 0.25


def test_json_that_is_nested_without_end_or_says_a_key_twice_is_no_object_and_true_is_not_one() -> None:
    deep = '{"a":' + "[" * 900 + "]" * 900 + "}"
    for text in (deep, '{"a": 1, "a": 2}', '{"a": NaN}'):
        assert value("json_valid", [Answer(('{"a": 1}',), text)]) == 0
        assert value("json_field_f1", [Answer(('{"a": 1}',), text)]) == 0
    assert value("json_exact", [Answer(('{"a": 1}',), '{"a": true}')]) == 0


# --- schema ----------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object", "required": ["intent"], "additionalProperties": False,
    "properties": {"intent": {"enum": ["buy", "sell"]}, "count": {"type": "integer", "minimum": 0}, "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
                   "child": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}},
}  # fmt: skip


CHOICES: dict[str, list[object]] = {
    "intent": ["buy", "sell", "buy", "keep"], "count": [1, 0, 2, -1, "1"], "code": ["AB1", "CD23", "ab1", 3], "child": [{}, {"child": {}}, 1], "x": [1],
}  # fmt: skip


def score(folder: Path, schema: object, said: str) -> float:
    (folder / "schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema), encoding="utf-8")
    return schema_score(folder / "schema.json", "recipe", "evaluate.options.json_schema")(Answer(("",), said))


def test_schema_valid_equals_jsonschema_on_random_answers(tmp_path: Path) -> None:
    rng = random.Random(9)
    valid = 0
    for _ in range(150):
        said = {k: rng.choice(v) for k, v in CHOICES.items() if rng.random() < (0.1 if k == "x" else 0.8)}
        theirs = jsonschema.Draft202012Validator(SCHEMA).is_valid(said)
        assert score(tmp_path, SCHEMA, json.dumps(said)) == theirs
        valid += theirs
    assert 15 < valid < 100


def test_what_is_no_json_fits_no_schema_not_even_the_empty_one(tmp_path: Path) -> None:
    assert score(tmp_path, {}, "[1, null]") == 1
    assert all(score(tmp_path, {}, said) == 0 for said in ("", "{", '{"a": 1, "a": 2}', "NaN", "```json\n{}\n```"))


def test_a_deep_answer_to_a_recursive_schema_is_answered(tmp_path: Path) -> None:
    deep = '{"intent": "buy", "child": ' + '{"child": ' * 97 + "{}" + "}" * 98
    assert score(tmp_path, SCHEMA, deep) in (0.0, 1.0)
    assert score(tmp_path, SCHEMA, '{"intent": "buy", "child": {"child": {"child": {}}}}') == 1


def test_a_pattern_in_the_schema_is_bounded(tmp_path: Path) -> None:
    assert score(tmp_path, {"pattern": "^(a|aa)+$"}, json.dumps("a" * 5000 + "!")) == 0


@pytest.mark.parametrize(("schema", "said"), [
    ({"type": "strnig"}, "strnig"), ("{", "not one JSON value"), ({"$ref": "https://example.com/s.json"}, "example.com"),
    ({"$ref": "other.json"}, "other.json"), ({"$ref": "#/$defs/none"}, "none"), ({"$defs": {"a": {"$ref": "file:///etc/passwd"}}}, "file:///etc/passwd"),
])  # fmt: skip
def test_a_schema_that_is_none_or_points_outside_is_refused(schema: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"evaluate\.options\.json_schema") as refusal:
        score(tmp_path, schema, "{}")
    assert said in str(refusal.value)


def test_a_schema_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="FileNotFoundError"):
        schema_score(tmp_path / "none.json", "recipe", "evaluate.options.json_schema")
