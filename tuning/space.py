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
from typing import Any, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    RootModel,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.config.documents import read_yaml
from pipeline.config.recipe import Recipe
from pipeline.config.schema import Spec
from pipeline.errors import RecipeError

LR, WEIGHT_DECAY = "finetune.optimizer.lr", "finetune.optimizer.weight_decay"

Point = dict[str, JsonValue]
"""A value for each dimension."""
Bounds = tuple[FiniteFloat, FiniteFloat]
Model = TypeVar("Model", bound=BaseModel)

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

    @model_validator(mode="before")
    @classmethod
    def _is_one_kind(cls, plain: object) -> object:
        given = plain if isinstance(plain, dict) else {}
        kinds = [kind for kind, values in given.items() if values is not None]
        if isinstance(plain, Distribution) or (len(kinds) == 1 and kinds[0] in cls.model_fields):
            return plain
        raise ValueError("write {log: [LOW, HIGH]}, {uniform: [LOW, HIGH]} or {choice: [A, B]}")

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        if not isinstance(values, list | tuple):
            return values
        return [float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for v in values]

    @model_validator(mode="after")
    def _searches_something(self) -> Distribution:
        low, high = self.bounds
        rule = ""
        if self.choice is not None:
            if len({json.dumps(value, sort_keys=True) for value in self.choice}) < 2:
                rule = "a choice takes two different values or more; give them, or take it out"
        elif self.log and min(low, high) <= 0:
            rule = f"log bounds must be above 0; raise {min(low, high):g} or write uniform"
        elif low > high:
            rule = f"the bounds are upside down; write [{high}, {low}]"
        elif low == high:
            rule = "the bounds are equal, which searches nothing; widen them, or take it out"
        if rule:
            raise ValueError(rule)
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value, where it is no choice."""
        return self.log or self.uniform or (-np.inf, np.inf)

    def ends(self) -> Sequence[JsonValue]:
        """The bounds, or all values of a choice."""
        return self.bounds if self.choice is None else self.choice

    def spread(self, count: int) -> list[JsonValue]:
        """Values at equal distances with the bounds, the middle if one is wanted; a choice's values."""
        if self.choice is not None:
            return list(self.choice)
        values = (np.geomspace if self.log else np.linspace)(
            *self.bounds, 3 if count == 1 else count
        )
        return values[1:2].tolist() if count == 1 else values.tolist()

    def contains(self, value: JsonValue) -> bool:
        """Whether a value lies between the bounds, or is one of the choice."""
        if self.choice is not None:
            return value in self.choice
        low, high = self.bounds
        return isinstance(value, int | float) and low <= value <= high


class Space(RootModel[dict[str, Distribution]]):
    """The dimensions of a search, in order."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _has_dimensions(self) -> Space:
        if not self.root:
            raise ValueError(
                f"nothing to search; write for example {LR}: {{log: [1.0e-5, 1.0e-2]}}"
            )
        return self

    @property
    def dimensions(self) -> dict[str, Distribution]:
        """The distribution of each dotted key."""
        return self.root

    def grid(self, points_per_dimension: int) -> list[Point]:
        """All combinations of values at equal distances; the last dimension changes fastest."""
        spreads = [d.spread(points_per_dimension) for d in self.root.values()]
        return [dict(zip(self.root, values, strict=True)) for values in itertools.product(*spreads)]

    def own(self, recipe: Recipe) -> Point:
        """The recipe's own values: the point of every search's first trial, within bounds or not."""
        return {key: value_of(recipe, key) for key in self.root}

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
        RecipeError: no such file, or all its mistakes at once.
    """
    return parse(Space, read_yaml(path, "keys of a recipe with {log: ...} and the like"), path)


def parse(model: type[Model], plain: dict[str, Any], source: str) -> Model:
    """A space or the settings of a search from plain values, as YAML and the command line give them.

    Raises:
        RecipeError: all mistakes at once, each with its place, value and rule.
    """
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        lines = [_explain(mistake) for mistake in error.errors()]
        raise RecipeError("\n".join([f"{source}: {counted(lines)}", *lines])) from None


def _explain(mistake: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    place = ".".join(str(part) for part in mistake["loc"])
    value = json.dumps(mistake["input"], default=str).strip('"')[:60]
    rule = mistake["msg"].removeprefix("Value error, ")
    return f"  {place}={value}: {rule[0].lower()}{rule[1:]}"


def counted(mistakes: Sequence[str]) -> str:
    """How many there are."""
    return "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
