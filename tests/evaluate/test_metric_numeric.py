"""Numbers in answers: which one counts, how it is read, and what is near enough."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tuner.evaluate.metric_numeric import final_number, numbers, numeric_score
from tuner.evaluate.metric_types import Answer


@pytest.mark.parametrize(("text", "found"), [
    ("so 3 + 4 = 7.", "7"), ("#### 42", "42"), ("#### 1,234", "1234"), ("costs $1,234,567.50", "1234567.50"), ("-5", "-5"), ("\u22125 °C", "-5"), ("5-3", "3"),
    ("from 10-20", "20"), ("1e3", "1e3"), ("7 #### 42 and 9", "42"), (".5", "0.5"), ("-$3", "-3"), ("12 %", "12"), ("room B2", None), ("", None), ("1,2", "2"),
    ("v1.2.3", None), ("the 3rd", "3"), ("5kg", "5"), ("#### none, but 8 before", "8"), ("8 apples ####", "8"), ("0.10", "0.1"), ("1,2345", "2345"),
])  # fmt: skip
def test_the_final_number_of_a_text(text: str, found: str | None) -> None:
    number = final_number(text)
    assert (None if number is None else number[0]) == (None if found is None else Decimal(found))


def near(said: str, *wanted: str, absolute: float = 0.0, relative: float = 0.0) -> float:
    return numeric_score(absolute, relative)(Answer(wanted, said))


def test_equal_is_equal_whatever_the_writing() -> None:
    assert near("It is 1,200.0 in all.", "#### 1200") == 1
    assert near("0.3", "0.30") == 1 and near("0.3", "0.3000001") == 0
    assert near("1234567890123456789012345678901", "1234567890123456789012345678902") == 0
    assert near("42", "41", "42") == 1 and near("none", "42") == 0 and near("42", "none") == 0


def test_the_wider_tolerance_holds_and_its_edge_is_inside() -> None:
    assert near("10.5", "10", absolute=0.5) == 1 and near("10.51", "10", absolute=0.5) == 0
    assert near("105", "100", relative=0.05) == 1 and near("-105", "-100", relative=0.05) == 1 and near("106", "100", relative=0.05) == 0
    assert near("0.31", "0.3", absolute=0.01) == 1  # in binary floating point the gap is over 0.01


def test_a_percentage_equals_the_share_and_the_bare_number_but_two_percentages_compare_as_such() -> None:
    assert near("12%", "0.12") == 1 and near("0.12", "12 %") == 1 and near("12%", "12") == 1
    assert near("12%", "0.12%") == 0 and near("0.12", "12") == 0


def test_a_number_of_a_thousand_digits_is_left_out() -> None:
    assert numbers("9" * 1000 + " and 3") == [(Decimal(3), False)]
