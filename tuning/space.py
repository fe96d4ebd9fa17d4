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
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import ConfigDict, FiniteFloat, JsonValue, RootModel, ValidationError, field_validator

from pipeline.config.recipe import Recipe, read_yaml
from pipeline.config.schema import Spec
from pipeline.data.sampler import seed_of
from pipeline.errors import RecipeError

LR, WEIGHT_DECAY = "finetune.optimizer.lr", "finetune.optimizer.weight_decay"

Point = dict[str, JsonValue]
"""A value for each dimension."""
Bounds = tuple[FiniteFloat, FiniteFloat]

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""


class _Range(Spec):
    """Values between two bounds."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        raise NotImplementedError

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way from bound to bound."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return self.at(rng.random())

    def spread(self, count: int) -> list[float]:
        """Values at equal distances, the bounds among them; the middle if only one is wanted."""
        return [self.at(f) for f in np.linspace(0, 1, count)] if count > 1 else [self.at(0.5)]

    def ends(self) -> Sequence[JsonValue]:
        """The bounds."""
        return self.bounds

    def contains(self, value: JsonValue) -> bool:
        """Whether a value lies between the bounds."""
        low, high = self.bounds
        return isinstance(value, int | float) and low <= value <= high


class Log(_Range):
    """Each decade as likely as any other."""

    log: Bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.log

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way, in decades."""
        low, high = self.log
        return float(np.clip(low * (high / low) ** fraction, low, high))


class Uniform(_Range):
    """Each value as likely as any other."""

    uniform: Bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.uniform

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way."""
        low, high = self.uniform
        return float(np.clip(low + (high - low) * fraction, low, high))


class Choice(Spec):
    """One of a few values of any kind."""

    choice: tuple[JsonValue, ...]

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        if not isinstance(values, list | tuple):
            return values
        return [float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for v in values]

    def draw(self, rng: np.random.Generator) -> JsonValue:
        """One value."""
        return self.choice[int(rng.integers(len(self.choice)))]

    def spread(self, count: int) -> list[JsonValue]:
        """All values, whatever the count."""
        return list(self.choice)

    def ends(self) -> Sequence[JsonValue]:
        """All values."""
        return self.choice

    def contains(self, value: JsonValue) -> bool:
        """Whether it is one of the values."""
        return value in self.choice


Distribution = Log | Uniform | Choice
DISTRIBUTIONS: dict[str, type[Log] | type[Uniform] | type[Choice]] = {
    "log": Log,
    "uniform": Uniform,
    "choice": Choice,
}


class Space(RootModel[dict[str, Distribution]]):
    """The dimensions of a search, in order."""

    model_config = ConfigDict(frozen=True)

    @property
    def dimensions(self) -> dict[str, Distribution]:
        """The distribution of each dotted key."""
        return self.root

    def sample(self, rng: np.random.Generator) -> Point:
        """A point; each dimension is drawn by itself."""
        return {key: distribution.draw(rng) for key, distribution in self.root.items()}

    def grid(self, points_per_dimension: int) -> list[Point]:
        """All combinations of values at equal distances; the last dimension changes fastest."""
        spreads = [d.spread(points_per_dimension) for d in self.root.values()]
        return [dict(zip(self.root, values, strict=True)) for values in itertools.product(*spreads)]

    def own(self, recipe: Recipe) -> Point:
        """The recipe's own values: the point of every search's first trial, within bounds or not."""
        return {key: _value(recipe, key) for key in self.root}

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


def _value(recipe: Recipe, key: str) -> JsonValue:
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
    """A space from plain values, as `Space.model_dump(mode="json")` and YAML give them.

    Raises:
        RecipeError: all entries that are no distribution, at once.
    """
    mistakes = [line for key, plain in tree.items() for line in _malformed(key, plain)]
    if not tree:
        mistakes = [f"  nothing to search; write for example {LR}: {{log: [1.0e-5, 1.0e-2]}}"]
    if mistakes:
        raise RecipeError("\n".join([f"{source}: {counted(mistakes)}", *mistakes]))
    return Space.model_validate(tree)


def _malformed(key: object, plain: object) -> Iterable[str]:
    kind = next(iter(plain)) if isinstance(plain, dict) and len(plain) == 1 else None
    if not isinstance(key, str) or kind not in DISTRIBUTIONS or not isinstance(plain, dict):
        yield (
            f"  {key}={json.dumps(plain, default=str)[:60]}: write {{log: [LOW, HIGH]}}, "
            "{uniform: [LOW, HIGH]} or {choice: [A, B]}"
        )
        return
    try:
        DISTRIBUTIONS[kind].model_validate(plain)
    except ValidationError:
        wanted = "a list of values" if kind == "choice" else "two finite numbers, [LOW, HIGH]"
        yield f"  {key}={json.dumps(plain, default=str)[:60]}: {kind} takes {wanted}"


def counted(mistakes: list[str]) -> str:
    """How many there are."""
    return "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
