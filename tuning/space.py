"""What is searched: dotted recipe keys and the distributions that their values come from.

    finetune.optimizer.lr: {log: [1.0e-5, 1.0e-2]}
    finetune.augment.jitter: {uniform: [0, 0.5]}
    finetune.optimizer.head_lr_mult: {choice: [1, 5, 10]}

`tuning.validate` checks whether a search over a space makes sense for a recipe.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ConfigDict, FiniteFloat, JsonValue, RootModel, ValidationError, field_validator

from pipeline.config.documents import read_yaml
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Spec
from pipeline.data.sampler import seed_of
from pipeline.errors import RecipeError

LR, WEIGHT_DECAY = "finetune.optimizer.lr", "finetune.optimizer.weight_decay"

Point = dict[str, JsonValue]
"""A value for each dimension."""
Bounds = tuple[FiniteFloat, FiniteFloat]

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""


class Distribution(Spec):
    """Where the values of a dimension come from; exactly one of the three is given."""

    log: Bounds | None = None
    """Each decade between the bounds is as likely as any other."""
    uniform: Bounds | None = None
    """Each value between the bounds is as likely as any other."""
    choice: tuple[JsonValue, ...] | None = None
    """One of a few values of any kind."""

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        if not isinstance(values, list | tuple):
            return values
        return [float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for v in values]

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value, where it is no choice."""
        return self.log or self.uniform or (-np.inf, np.inf)

    def ends(self) -> Sequence[JsonValue]:
        """The bounds, or all values of a choice."""
        return self.bounds if self.choice is None else self.choice

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way from bound to bound, in decades if it is logarithmic."""
        low, high = self.bounds
        value = low * (high / low) ** fraction if self.log else low + (high - low) * fraction
        return float(np.clip(value, low, high))

    def draw(self, rng: np.random.Generator) -> JsonValue:
        """One value."""
        if self.choice is None:
            return self.at(rng.random())
        return self.choice[int(rng.integers(len(self.choice)))]

    def spread(self, count: int) -> list[JsonValue]:
        """Values at equal distances with the bounds, the middle if one is wanted; a choice's values."""
        if self.choice is not None:
            return list(self.choice)
        return [self.at(f) for f in np.linspace(0, 1, count)] if count > 1 else [self.at(0.5)]

    def contains(self, value: JsonValue) -> bool:
        """Whether a value lies between the bounds, or is one of the choice."""
        if self.choice is not None:
            return value in self.choice
        low, high = self.bounds
        return isinstance(value, int | float) and low <= value <= high


class Space(RootModel[dict[str, Distribution]]):
    """The dimensions of a search, in order."""

    model_config = ConfigDict(frozen=True)

    @property
    def dimensions(self) -> dict[str, Distribution]:
        """The distribution of each dotted key."""
        return self.root

    def plain(self) -> dict[str, Any]:
        """As YAML has it; `parse_space` reads it."""
        return self.model_dump(mode="json", exclude_none=True)

    def sample(self, rng: np.random.Generator) -> Point:
        """A point; each dimension is drawn by itself."""
        return {key: distribution.draw(rng) for key, distribution in self.root.items()}

    def grid(self, points_per_dimension: int) -> list[Point]:
        """All combinations of values at equal distances; the last dimension changes fastest."""
        spreads = [d.spread(points_per_dimension) for d in self.root.values()]
        return [dict(zip(self.root, values, strict=True)) for values in itertools.product(*spreads)]

    def own(self, recipe: Recipe) -> Point:
        """The recipe's own values: the point of every search's first trial, within bounds or not."""
        return {key: value_of(recipe, key) for key in self.root}

    def trial(self, number: int, recipe: Recipe, seed: int) -> Point:
        """The point of a random search's trial: 0 is the recipe's own.

        A pure function, so that a search that goes on after a kill has the points it would have had.
        """
        if number == 0:
            return self.own(recipe)
        return self.sample(np.random.default_rng(seed_of("trial", seed, number)))

    def grid_trials(self, points_per_dimension: int, recipe: Recipe) -> list[Point]:
        """The points of a grid search's trials: the recipe's own, then the grid without it."""
        own = self.own(recipe)
        return [own, *(point for point in self.grid(points_per_dimension) if point != own)]

    @staticmethod
    def overrides(point: Point) -> list[str]:
        """The point as `KEY=VALUE`, as `--set` takes it; floats survive to the last bit."""
        return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def value_of(recipe: Recipe, key: str) -> JsonValue:
    """The value of a dotted key."""
    value: Any = recipe.plain()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read_space(path: str) -> Space:
    """A space from a YAML file.

    Raises:
        RecipeError: all entries that are no distribution, at once.
    """
    return parse_space(read_yaml(path, "keys of a recipe with {log: ...} and the like"), path)


def parse_space(tree: dict[str, Any], source: str) -> Space:
    """A space from plain values, as `Space.plain` and YAML give them.

    Raises:
        RecipeError: all entries that are no distribution, at once.
    """
    mistakes = [line for key, plain in tree.items() if (line := _malformed(key, plain))]
    if not tree:
        mistakes = [f"  nothing to search; write for example {LR}: {{log: [1.0e-5, 1.0e-2]}}"]
    if mistakes:
        raise RecipeError("\n".join([f"{source}: {counted(mistakes)}", *mistakes]))
    return Space.model_validate(tree)


def _malformed(key: object, plain: object) -> str:
    entry = f"  {key}={json.dumps(plain, default=str)[:60]}"
    kind = next(iter(plain)) if isinstance(plain, dict) and len(plain) == 1 else None
    if not isinstance(key, str) or kind not in Distribution.model_fields:
        return (
            f"{entry}: write {{log: [LOW, HIGH]}}, {{uniform: [LOW, HIGH]}} or {{choice: [A, B]}}"
        )
    try:
        Distribution.model_validate(plain)
    except ValidationError:
        wanted = "a list of values" if kind == "choice" else "two finite numbers, [LOW, HIGH]"
        return f"{entry}: {kind} takes {wanted}"
    return ""


def counted(mistakes: list[str]) -> str:
    """How many there are."""
    return "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
