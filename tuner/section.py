"""What every section of a recipe is: a typed, frozen table in which an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every recipe section. Validation never edits: a value used is a value written, or a printed default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
