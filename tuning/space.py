"""What is searched: dotted recipe keys and the distributions that their values come from.

    finetune.optimizer.lr: {log: [1.0e-5, 1.0e-2]}
    finetune.augment.jitter: {uniform: [0, 0.5]}
    finetune.optimizer.head_lr_mult: {choice: [1, 5, 10]}

Whether a search over a space makes sense for a recipe is `tuning.check`'s to say.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import ConfigDict, FiniteFloat, JsonValue, RootModel, ValidationError, field_validator

from pipeline.config.recipe import Recipe, read_yaml
from pipeline.config.schema import Spec
from pipeline.data.sampler import seed_of
from pipeline.errors import RecipeError
from tuning.decay import INERT_FRAC, run_lr, shrinkage

LR, WEIGHT_DECAY = "finetune.optimizer.lr", "finetune.optimizer.weight_decay"

Point = dict[str, JsonValue]
"""A value for each dimension."""
Bounds = tuple[FiniteFloat, FiniteFloat]

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""


class Log(Spec):
    """Each decade as likely as any other."""

    log: Bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.log

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way from bound to bound."""
        low, high = self.log
        return float(np.clip(low * (high / low) ** fraction, low, high))

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return self.at(rng.random())

    def spread(self, count: int) -> list[float]:
        """Values at equal distances, the bounds among them; the middle if only one is wanted."""
        return np.geomspace(*self.log, count).tolist() if count > 1 else [self.at(0.5)]


class Uniform(Spec):
    """Each value as likely as any other."""

    uniform: Bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.uniform

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way from bound to bound."""
        low, high = self.uniform
        return float(np.clip(low + (high - low) * fraction, low, high))

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return self.at(rng.random())

    def spread(self, count: int) -> list[float]:
        """Values at equal distances, the bounds among them; the middle if only one is wanted."""
        return np.linspace(*self.uniform, count).tolist() if count > 1 else [self.at(0.5)]


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


def default_space(recipe: Recipe, num_train: int) -> Space:
    """Learning rate and weight decay around the recipe's own values, log-uniform.

    The loss is per valid pixel, so a learning rate carries over between image sizes; what is left
    unknown (backbone, batch, data) is worth a factor of 30 either way: three decades, with rates that
    diverge at one end and rates that learn nothing at the other.
    """
    lr = recipe.finetune.optimizer.lr
    spans = {LR: (lr / 30, lr * 30), WEIGHT_DECAY: _decay_span(recipe, num_train)}
    return Space.model_validate({key: {"log": _round(*span)} for key, span in spans.items()})


def _decay_span(recipe: Recipe, num_train: int) -> tuple[float, float]:
    """SGD's decay is part of the gradient, in the loss's own units: it carries over as it is.

    AdamW's is not divided by the size of gradients: what carries over is what it takes from the
    weights in the run, so the span is that of 0.1 % to all (a sum of 1) at the recipe's own lr,
    stretched to hold the recipe's own value. That also where SGD's whole span would take nothing.
    """
    tune = recipe.finetune.optimizer
    own = tune.weight_decay
    if tune.kind == "sgd" and shrinkage(recipe, num_train) * 30 >= INERT_FRAC:
        return own / 30, own * 30
    total = run_lr(recipe, num_train)
    low, high = INERT_FRAC / total, 1 / total
    return (min(low, own) if own else low), max(high, own)


def _round(low: float, high: float) -> tuple[float, float]:
    """To two digits, for the eye; outwards, so that what was inside stays so."""

    def to_two(value: float, up: int) -> float:
        rounded = float(f"{value:.1e}")
        step = 10.0 ** (np.floor(np.log10(value)) - 1)
        return rounded if (rounded - value) * up >= 0 else float(f"{rounded + up * step:.1e}")

    return to_two(low, -1), to_two(high, 1)
