"""stand-in until moved"""
from typing import Any

LANGUAGES: Any = ()


def language_code(record: Any) -> int:
    from tuner.data.checks.language import language_code as real

    return real(record)
