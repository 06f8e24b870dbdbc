"""tuner: one recipe file in, one versioned LoRA adapter out, with its evidence.

Importing this package loads neither torch nor transformers; the verbs load what they need.
"""

from __future__ import annotations

from tuner.errors import Refusal

__all__ = ["Recipe", "Refusal", "check", "evaluate", "load_adapter", "run"]

_LAZY = {"Recipe": "tuner.recipe", "check": "tuner.api", "evaluate": "tuner.api", "load_adapter": "tuner.artifact.adapter", "run": "tuner.api"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
