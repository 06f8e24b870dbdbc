"""Numbers as text: three decimals for metrics, a sign on every difference, a unit on everything else.

It refuses to round away what it does not say: intervals are printed beside their value, never without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUS = "−"


def value(number: float) -> str:
    """A metric's value or one bound of it, three decimals."""
    return f"{number:.3f}".replace("-", MINUS)


def signed(number: float) -> str:
    """A difference or one bound of it: three decimals and its sign."""
    return f"{number:+.3f}".replace("-", MINUS)


def interval(estimate: Mapping[str, Any]) -> str:
    return f"[{value(estimate['low'])}, {value(estimate['high'])}]"


def signed_interval(found: Mapping[str, Any]) -> str:
    return f"[{signed(found['low'])}, {signed(found['high'])}]"


def p_value(p: float) -> str:
    return f"{p:.2g}"


def count(number: float) -> str:
    return f"{number:,.0f}"


def seconds(number: float) -> str:
    """Seconds below two minutes, minutes below two hours, hours above."""
    if number < 120:
        return f"{number:.1f} s"
    return f"{number / 60:.1f} min" if number < 7200 else f"{number / 3600:.1f} h"


def size(number: float) -> str:
    """Bytes as MB (10^6) or GB (10^9)."""
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.2f} GB"


def tick(number: float) -> str:
    """An axis label: as short as it can be said."""
    return f"{number:,g}".replace("-", MINUS) if abs(number) < 1e6 else f"{number:.3g}"
