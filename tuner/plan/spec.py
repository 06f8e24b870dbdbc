"""The recipe's `plan:` section: what the estimates may assume."""

from __future__ import annotations

from pydantic import Field

from tuner.section import Section


class PlanSpec(Section):
    """Assumptions of the plan; nothing here changes what is trained."""

    price_per_hour: float | None = Field(None, ge=0, description="price of this machine per hour, in your currency; adds a cost to the plan")
    price_per_kwh: float | None = Field(None, ge=0, description="price of a kilowatt-hour, in your currency; adds the energy's cost to the plan")
    watts: float | None = Field(None, gt=0, description="power the machine draws while training (W); default: the board's limit in the vendor's data sheet")
