"""What a search is asked for, beside its recipe and its space."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipeline.config.legal import MAX_NAME
from pipeline.config.schema import Count, Positive, Spec
from pipeline.errors import RecipeError

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")

MAX_S = 1e9


class Settings(Spec):
    """How to search; with recipe and space it decides which trials there are."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
    trials: Positive = 20
    budget: str | None = None
    """Time to spend, for example 2h; no limit if not given."""
    sampler: Literal["random", "grid", "tpe"] = "tpe"
    scheduler: Literal["asha", "median", "none"] = "asha"
    reduction: Annotated[int, Field(ge=2)] = 3
    """Halving lets one of so many trials go on."""
    seed: Count = 0
    workers: Positive = 1
    """Workers of each trial."""
    concurrent: Positive | None = None
    """Trials side by side; as many as fit if not given."""
    max_failed: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed trials above which the search ends."""
    space: dict[str, Any] = Field(default_factory=dict)
    """As YAML has it; learning rate and weight decay if empty."""

    @field_validator("budget")
    @classmethod
    def _is_a_time(cls, budget: str | None) -> str | None:
        if budget is not None:
            seconds(budget)
        return budget

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        return None if self.budget is None else seconds(self.budget)


def parse_settings(plain: dict[str, Any]) -> Settings:
    """Settings from plain values.

    Raises:
        RecipeError: all mistakes at once.
    """
    try:
        return Settings.model_validate(plain)
    except ValidationError as error:
        lines = [_explain(mistake) for mistake in error.errors()]
        raise RecipeError("\n".join(["the search cannot be made like this:", *lines])) from None


def _explain(mistake: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    option = str(mistake["loc"][0]).replace("_", "-")
    rule = mistake["msg"].removeprefix("Value error, ")
    return f"  --{option} {mistake['input']}: {rule[0].lower()}{rule[1:]}"


def seconds(text: str) -> float:
    """A duration such as 2h, 90m, 1h30m or 45s.

    Raises:
        RecipeError: it is none, or zero.
    """
    found = DURATION.fullmatch(text.strip())
    hours, minutes, rest = (float(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not 0 < total < MAX_S:
        raise RecipeError(
            f"--budget {text}: write a time above zero, such as 2h, 90m, 1h30m or 45s"
        )
    return total
