"""What a search is asked for, beside its recipe; the docstrings are the help of the command line."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.legal import MAX_NAME
from pipeline.config.schema import Count, Positive, Spec
from tuning.space import Space

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")

MAX_S = 1e9


class Settings(Spec):
    """How to search; with the recipe it decides which trials there are."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
    """Name of the search. Without it, the recipe's name."""
    trials: Positive = 20
    """Number of trials."""
    budget: str | None = None
    """Time to spend over all sessions, such as 2h or 1h30m. Without it, no bound."""
    space: Space | None = None
    """YAML file of what is searched. Without it, learning rate and weight decay."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How points are drawn: tpe, random or grid."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Which trials are ended early: asha, median or none."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """One of so many trials goes on from each rung of asha."""
    workers: Positive = 1
    """Number of workers of each trial."""
    concurrent: Positive | None = None
    """Number of trials side by side. Without it, as many as fit."""
    max_failed: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of failed trials above which the search ends."""
    seed: Count = 0
    """Seed of the points."""

    @field_validator("budget")
    @classmethod
    def _is_a_time(cls, budget: str | None) -> str | None:
        if budget is not None and not 0 < _seconds(budget) < MAX_S:
            raise ValueError("write a time above zero, such as 2h, 90m, 1h30m or 45s")
        return budget

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        return None if self.budget is None else _seconds(self.budget)

    def words_left(self, spent_s: float) -> str:
        """What is left of the budget, for a reader; empty without one."""
        if self.budget_s is None:
            return ""
        left_s = max(0.0, self.budget_s - spent_s)
        return f", {left_s / 60:.0f} of {self.budget_s / 60:.0f} min of the budget left"


def _seconds(text: str) -> float:
    found = DURATION.fullmatch(text.strip())
    parts = [float(part or 0) for part in found.groups()] if found else [0.0, 0.0, 0.0]
    return 3600 * parts[0] + 60 * parts[1] + parts[2]
