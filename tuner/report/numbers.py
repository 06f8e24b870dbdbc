"""Numbers as text: three decimals for metrics, a sign on every difference, a unit on everything else.

It refuses to round away what it does not say: intervals are printed beside their value, never without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MINUS = "−"
NONE = "none"


def value(number: float | None) -> str:
    """A metric's value or one bound of it, three decimals; one that does not exist is said to be none."""
    return NONE if number is None or not math.isfinite(number) else f"{number:.3f}".replace("-", MINUS)


def signed(number: float | None) -> str:
    """A difference or one bound of it: three decimals and its sign."""
    return NONE if number is None or not math.isfinite(number) else f"{number:+.3f}".replace("-", MINUS)


def interval(estimate: Mapping[str, Any]) -> str:
    return f"[{value(estimate['low'])}, {value(estimate['high'])}]"


def signed_interval(found: Mapping[str, Any]) -> str:
    return f"[{signed(found['low'])}, {signed(found['high'])}]"


def p_value(p: float | None) -> str:
    return NONE if p is None or not math.isfinite(p) else f"{p:.2g}"


def count(number: float) -> str:
    return f"{number:,.0f}"


def seconds(number: float) -> str:
    """Seconds below two minutes, minutes below two hours, hours above."""
    if number < 120:
        return f"{number:.1f} s"
    return f"{number / 60:.1f} min" if number < 7200 else f"{number / 3600:.1f} h"


def size(number: float) -> str:
    """Bytes as MB (10^6) or GB (10^9)."""
    return f"{number / 1e6:.1f} MB" if abs(number) < 1e9 else f"{number / 1e9:.2f} GB"


UNITS: dict[str, Callable[[float], str]] = {
    "_bytes": size, "_per_second": lambda x: f"{x:,.1f}", "_seconds": lambda x: f"{x:.3f} s", "_tokens": count, "_items": count,
}  # fmt: skip


def quantity(name: str, number: float | None) -> str:
    """A value in the unit its metric's name ends with; three decimals where it names none."""
    say = next((say for unit, say in UNITS.items() if name.endswith(unit)), value)
    return value(number) if number is None or not math.isfinite(number) else say(number).replace("-", MINUS)


def signed_quantity(name: str, number: float | None) -> str:
    """A difference of two quantities, with its sign."""
    said = quantity(name, number)
    return said if number is None or said.startswith(MINUS) or not math.isfinite(number) else f"+{said}"


def tick(number: float) -> str:
    """An axis label: as short as it can be said."""
    return f"{number:,g}".replace("-", MINUS) if abs(number) < 1e6 else f"{number:.3g}"
