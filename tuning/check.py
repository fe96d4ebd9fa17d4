"""Whether a search over a space makes sense for a recipe: all that does not, at once, in words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator

from pydantic import JsonValue

from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError
from tuning.decay import INERT_FRAC, arithmetic, shrinkage
from tuning.space import LR, WEIGHT_DECAY, Choice, Distribution, Log, Point, Space, counted

STEPS = "it changes the number of steps, and trials are scored at equal ones"
NOT_SEARCHED = {
    "name": "it is a name and cannot change the result",
    "store": "it says where results lie and cannot change them",
    "cluster": "it changes speed, never results",
    "tracking": "it says where MLflow is and cannot change the result",
    "register": "it says under which name and cannot change the result",
    "evaluate": "it says what is measured, which must be the same in all trials",
    "data": "trials that learn from or are scored on different data cannot be compared",
    "finetune.validate_every_epochs": "it says when is measured, which must be the same in all trials",
    "finetune.checkpoint_every_steps": "it cannot change the result",
    "finetune.epochs": STEPS,
    "finetune.phases": STEPS,
    "finetune.global_batch": STEPS,
}

INNER_FRAC = 0.382
"""Between the bounds, at no round value: a whole number's bounds may be valid where this is not."""


def check(space: Space, recipe: Recipe, num_train: int) -> None:
    """Refuse a search that would waste its trials.

    Args:
        space: What is to be searched.
        recipe: What it is searched for.
        num_train: Images to train on: with them the steps, and whether weight decay acts.

    Raises:
        RecipeError: all mistakes at once.
    """
    mistakes = [
        line
        for key, distribution in space.dimensions.items()
        for line in _of_dimension(key, distribution, recipe)
    ]
    mistakes += _overlaps(space)
    if not mistakes:
        mistakes = _of_space(space, recipe, num_train)
    if mistakes:
        lines = [f"  {line}" for line in mistakes]
        raise RecipeError("\n".join([f"space of {recipe.name}: {counted(lines)}", *lines]))


def check_population(space: Space, recipe: Recipe) -> None:
    """Refuse what cannot change while a net is being trained.

    Raises:
        RecipeError: all mistakes at once.
    """
    lines = [
        f"  {key}: a population changes it in the middle of a training, which only numbers of "
        "finetune.optimizer allow; search it with --scheduler asha"
        for key, distribution in space.dimensions.items()
        if not _within(key, "finetune.optimizer") or isinstance(distribution, Choice)
    ]
    if recipe.finetune.phases:
        lines.append(
            "  finetune.phases: a population trains one phase; use finetune.epochs, or --scheduler asha"
        )
    if lines:
        raise RecipeError("\n".join([f"population of {recipe.name}: {counted(lines)}", *lines]))


def _of_dimension(key: str, distribution: Distribution, recipe: Recipe) -> list[str]:
    for refused, why in NOT_SEARCHED.items():
        if _within(key, refused):
            return [f"{key}: {why}; take it out of the space"]
    if mistake := _of_distribution(distribution):
        return [f"{key}={json.dumps(distribution.model_dump(mode='json'))}: {mistake}"]
    complaints = _refusals(recipe, key, _ends(distribution))
    if not complaints and not isinstance(distribution, Choice):
        complaints = _refusals(recipe, key, [distribution.at(INNER_FRAC)])
    whole = "; for whole numbers write a choice"
    return [c + whole if "valid integer" in c else c for c in complaints]


def _refusals(recipe: Recipe, key: str, values: Iterable[JsonValue]) -> list[str]:
    complaints = [line for value in values for line in _changed(recipe, {key: value})[1]]
    return list(dict.fromkeys(complaints))


def _of_distribution(distribution: Distribution) -> str | None:
    if isinstance(distribution, Choice):
        distinct = {json.dumps(value, sort_keys=True) for value in distribution.choice}
        found = "one value" if distinct else "no value"
        rule = (
            f"a choice of {found} searches nothing; give two or more, or take it out of the space"
        )
        return rule if len(distinct) < 2 else None
    return _of_bounds(*distribution.bounds, log=isinstance(distribution, Log))


def _of_bounds(low: float, high: float, *, log: bool) -> str | None:
    if log and min(low, high) <= 0:
        return f"log bounds must be above 0; raise {min(low, high):g} or write uniform"
    if low > high:
        return f"the bounds are upside down; write [{high}, {low}]"
    if low == high:
        return (
            "the bounds are equal, so nothing is searched; widen them or take it out of the space"
        )
    return None


def _changed(recipe: Recipe, point: Point) -> tuple[Recipe, list[str]]:
    """The recipe at a point; or itself, and what it says against the point."""
    try:
        return recipe.changed(Space.overrides(point)), []
    except RecipeError as error:
        return recipe, [line.strip() for line in str(error).splitlines()[1:]]


def _overlaps(space: Space) -> list[str]:
    pairs = itertools.permutations(space.dimensions, 2)
    return [
        f"{inner} lies within {outer}, which is searched too; keep one of them"
        for inner, outer in pairs
        if _within(inner, outer)
    ]


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _of_space(space: Space, recipe: Recipe, num_train: int) -> list[str]:
    """What is wrong only in the light of the other dimensions."""
    corners: list[Recipe] = []
    for point in _corner_points(space):
        corner, complaints = _changed(recipe, point)
        if complaints:
            where = ", ".join(Space.overrides(point))
            return [f"{line} (at {where})" for line in complaints]
        corners.append(corner)
    mistakes = [
        f"{key}: inert, {reasons[0]}; take it out of the space"
        for key, rule in INERT.items()
        if key in space.dimensions and all(reasons := [rule(corner) for corner in corners])
    ]
    return [*mistakes, *_of_decay(space, corners, num_train), *_of_head(space, corners)]


def _of_decay(space: Space, corners: list[Recipe], num_train: int) -> Iterable[str]:
    if WEIGHT_DECAY not in space.dimensions:
        return
    strongest = max(corners, key=lambda corner: shrinkage(corner, num_train))
    if shrinkage(strongest, num_train) < INERT_FRAC:
        yield (
            f"{WEIGHT_DECAY}: inert, at its strongest it shrinks the weights by "
            f"{arithmetic(strongest, num_train)}, less than {INERT_FRAC:g}, over the whole run; raise "
            "its upper bound or that of the learning rate, or take it out of the space"
        )


def _of_head(space: Space, corners: list[Recipe]) -> Iterable[str]:
    head = "finetune.optimizer.head_lr_mult"
    if {head, LR} <= set(space.dimensions) and all(
        corner.finetune.trainable == "head" for corner in corners
    ):
        yield (
            f"{head}: with finetune.trainable=head only lr x head_lr_mult counts, and lr is searched; "
            "take one of them out of the space"
        )


Rule = Callable[[Recipe], str | None]


def _when(holds: Callable[[Recipe], bool], reason: str) -> Rule:
    return lambda recipe: reason if holds(recipe) else None


INERT: dict[str, Rule] = {
    "finetune.optimizer.momentum": _when(
        lambda r: r.finetune.optimizer.kind == "adamw", "it is for SGD and the optimiser is AdamW"
    ),
    "finetune.optimizer.decay_biases": _when(
        lambda r: r.finetune.optimizer.weight_decay == 0, "there is no weight decay"
    ),
    "finetune.schedule.power": _when(
        lambda r: r.finetune.schedule.kind == "fixed", "a fixed schedule has no power"
    ),
    "finetune.batch_norm": _when(
        lambda r: r.net.backbone in ("vgg16", "alexnet"), "this backbone has no batch normalisation"
    ),
    "net.skip_scale": _when(lambda r: r.net.stride == 32, "a net of stride 32 has no skips"),
    "transplant.weights": _when(lambda r: r.finetune.init == "scratch", "init is scratch"),
    "transplant.preprocessing": _when(lambda r: r.finetune.init == "scratch", "init is scratch"),
}
"""Why a key cannot matter under a recipe; None if it can. It is inert if it is so in all corners."""

TOGETHER = (
    *("optimizer.kind", "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum"),
    *("optimizer.head_lr_mult", "schedule.kind", "trainable", "init", "epochs", "phases"),
    *("global_batch", "micro_batch", "batch_norm"),
)
CORNER_KEYS = (*(f"finetune.{key}" for key in TOGETHER), "net.stride", "net.backbone")
"""The keys that decide whether others matter or are allowed."""


def _corner_points(space: Space) -> Iterator[Point]:
    """All combinations of the ends of those dimensions that others depend on."""
    searched = {
        key: list(_ends(distribution))
        for key, distribution in space.dimensions.items()
        if any(_within(needed, key) for needed in CORNER_KEYS)
    }
    for values in itertools.product(*searched.values()):
        yield dict(zip(searched, values, strict=True))


def _ends(distribution: Distribution) -> Iterable[JsonValue]:
    """The bounds; all values of a choice."""
    return distribution.choice if isinstance(distribution, Choice) else distribution.bounds
