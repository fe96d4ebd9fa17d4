"""What a search is asked for, beside its recipe and space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from pipeline.config.recipe import Recipe
from pipeline.config.schema import Count, Positive, Spec
from pipeline.data.sampler import steps_per_epoch
from pipeline.errors import RecipeError
from pipeline.flow import Flow
from tuning.events import Sampler, Scheduler

MAX_HALVINGS = 3
"""More rungs than these would prune on a few percent of the training."""
NUM_INTERVALS = 5
"""Rungs of a search that does not halve."""
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Settings(Spec):
    """How to search; decides, with recipe and space, which trials there are."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    trials: Positive = 20
    budget: str | None = None
    """Time to spend, for example 2h; no end if not given."""
    sampler: Sampler = "tpe"
    scheduler: Scheduler = "asha"
    reduction: Annotated[int, Field(ge=2)] = 3
    """Halving lets one of so many trials go on."""
    seed: Count = 0
    workers: Positive = 1
    """Of each trial."""
    concurrent: Positive | None = None
    """Trials side by side; as many as fit if not given."""
    max_failed: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed trials above which the search stops."""
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
        """In seconds."""
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
    """A duration such as 2h, 90m, 1h30m or 45s; ValueError if it is none, or zero."""
    found = DURATION.fullmatch(text.strip())
    hours, minutes, rest = (float(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not total:
        raise RecipeError(
            f"--budget {text}: write a time above zero, such as 2h, 90m, 1h30m or 45s"
        )
    return total


def known_num_train(recipe: Recipe) -> int | None:
    """Images to train on, as far as that is known without looking at the data."""
    counts = Flow(recipe).published_counts()
    if counts:
        return counts["train"]
    return recipe.data.shapes.num_train if recipe.data.source == "shapes" else None


def rungs_of(recipe: Recipe, num_train: int, settings: Settings) -> tuple[int, ...]:
    """The steps at which trials are scored: validations that the recipe asks for anyway, the last too.

    Halving wants them at 1/reduction, 1/reduction^2 and so on of the whole training.
    """
    due = sorted(_validations(recipe, num_train))
    end = due[-1]
    if settings.scheduler == "none":
        return (end,)
    if settings.scheduler == "asha":
        wanted = [end / settings.reduction**k for k in range(1, MAX_HALVINGS + 1)]
        wanted = [step for step in wanted if step >= due[0] / 2]
    else:
        wanted = [end * k / NUM_INTERVALS for k in range(1, NUM_INTERVALS)]
    nearest = {min(due, key=lambda step: abs(step - target)) for target in wanted}
    return tuple(sorted({*nearest, end}))


def _validations(recipe: Recipe, num_train: int) -> Iterator[int]:
    """Steps after which a trial is validated, counted over all its phases."""
    per_epoch = steps_per_epoch(num_train, recipe.finetune.global_batch)
    every, offset = recipe.finetune.validate_every_epochs, 0
    for phase in recipe.phases:
        for epoch in range(1, phase.epochs + 1):
            if epoch % every == 0 or epoch == phase.epochs:
                yield offset + epoch * per_epoch
        offset += phase.epochs * per_epoch
