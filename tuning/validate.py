"""Whether a search over a space makes sense for a recipe: everything that does not, at once, in words.

What weight decay does to the weights over a whole run is one number. Each step multiplies the weights
by (1 - lr x decay) beside what the gradient does: AdamW by itself (decoupled), SGD as a part of the
gradient (coupled), which momentum carries on for 1 / (1 - momentum) steps. Over a run that is
exp(-sum of lr x decay), and the sum tells whether decay acts at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from pydantic import JsonValue

from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError
from pipeline.flow import Flow
from tuning.estimators import random_point
from tuning.space import LR, WEIGHT_DECAY, Point, Space, counted, value_of

STEPS = "a trial of fewer epochs ends its schedule earlier, so at equal images seen it only looks better"
NOT_SEARCHED = {
    ("name", "store", "cluster", "tracking", "register"): "it cannot change the result",
    ("finetune.checkpoint_every_steps",): "it cannot change the result",
    (
        "evaluate",
        "finetune.validate_every_epochs",
    ): "what is measured is the same in all trials",
    ("data",): "trials that learn from or are scored on different data cannot be compared",
    ("finetune.epochs", "finetune.phases"): STEPS,
}
"""Keys, or sections, and why not."""

NUM_DRAWN = 24
"""Points that must all be valid recipes."""
INERT_FRAC = 1e-3
"""Decay that shrinks the weights by less than this over the run cannot be seen in a score."""
OPTIMIZER, HEAD = "finetune.optimizer", "finetune.optimizer.head_lr_mult"
KIND, INIT = f"{OPTIMIZER}.kind", "finetune.init"
INERT: tuple[tuple[str, str, tuple[JsonValue, ...], str], ...] = (
    (f"{OPTIMIZER}.momentum", KIND, ("adamw",), "it is for SGD and the optimiser is AdamW"),
    (f"{OPTIMIZER}.decay_biases", WEIGHT_DECAY, (0,), "there is no weight decay"),
    ("finetune.schedule.power", "finetune.schedule.kind", ("fixed",), "fixed rates have no power"),
    ("finetune.batch_norm", "net.backbone", ("vgg16", "alexnet"), "it has no batch norm"),
    ("net.skip_scale", "net.stride", (32,), "a net of stride 32 has no skips"),
    ("transplant.weights", INIT, ("scratch",), "init is scratch"),
    ("transplant.preprocessing", INIT, ("scratch",), "init is scratch"),
)
"""A key, the key that decides whether it matters, the values at which it cannot, and why."""


def check(space: Space, recipe: Recipe, num_train: int) -> None:
    """Refuse a search that would waste its trials.

    The number of images to train on decides whether weight decay acts.

    Raises:
        RecipeError: all mistakes at once.
    """
    mistakes = [line for key in space.dimensions for line in _of_dimension(key, space, recipe)]
    mistakes += [
        f"{inner} lies within {outer}, which is searched too; keep one of them"
        for inner, outer in itertools.permutations(space.dimensions, 2)
        if _within(inner, outer)
    ]
    mistakes = mistakes or [*_inert(space, recipe, num_train)] or _drawn(space, recipe)
    if mistakes:
        whole = "; for whole numbers write a choice"
        lines = [f"  {line}{whole if 'valid integer' in line else ''}" for line in mistakes]
        raise RecipeError("\n".join([f"space of {recipe.name}: {counted(lines)}", *lines]))


def _of_dimension(key: str, space: Space, recipe: Recipe) -> list[str]:
    for refused, why in NOT_SEARCHED.items():
        if any(_within(key, section) for section in refused):
            return [f"{key}: {why}; take it out of the space"]
    ends = space.dimensions[key].ends()
    return list(dict.fromkeys(line for end in ends for line in _changed(recipe, {key: end})[1]))


def _changed(recipe: Recipe, point: Point) -> tuple[Recipe, list[str]]:
    """The recipe at a point; or itself, and what it says against the point."""
    try:
        return recipe.changed(Space.overrides(point)), []
    except RecipeError as error:
        return recipe, [line.strip() for line in str(error).splitlines()[1:]]


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _drawn(space: Space, recipe: Recipe) -> list[str]:
    """Values that are allowed by themselves but not together, if the points of a few trials show it."""
    for number in range(1, 1 + NUM_DRAWN):
        point = random_point(space, recipe, 0, number)
        if complaints := _changed(recipe, point)[1]:
            where = ", ".join(Space.overrides(point))
            return [f"{line} (at {where})" for line in complaints]
    return []


def _inert(space: Space, recipe: Recipe, num_train: int) -> Iterable[str]:
    """Dimensions that cannot matter, whatever the others are."""
    searched, out = space.dimensions, "take it out of the space"
    for key, decided_by, inert, reason in INERT:
        own = [value_of(recipe, decided_by)]
        values = searched[decided_by].ends() if decided_by in searched else own
        if key in searched and all(value in inert for value in values):
            yield f"{key}: {reason}, so it cannot matter; {out}"
    fixed_head = recipe.finetune.trainable == "head" and "finetune.trainable" not in searched
    if fixed_head and HEAD in searched and LR in searched:
        yield (
            f"{HEAD}: with finetune.trainable=head only lr x head_lr_mult counts, and lr is searched; "
            f"{out}, or lr"
        )
    strongest = _strongest(space, recipe)
    if WEIGHT_DECAY in searched and shrinkage(strongest, num_train) < INERT_FRAC:
        yield (
            f"{WEIGHT_DECAY}: where it is strongest it shrinks the weights by "
            f"{arithmetic(strongest, num_train)}, less than {INERT_FRAC:g}, over the whole run; raise "
            f"its upper bound or that of the learning rate, or {out}"
        )


def _strongest(space: Space, recipe: Recipe) -> Recipe:
    """The recipe where weight decay takes most: all numbers of the optimiser at their upper ends.

    Of optimisers SGD takes more than AdamW, by its momentum; small global batches make many steps.
    """
    point: Point = {}
    for key, distribution in space.dimensions.items():
        numbers = [v for v in distribution.ends() if isinstance(v, int | float)]
        if key == KIND:
            point[key] = "sgd"
        elif key == "finetune.global_batch":
            point[key] = min(numbers)
        elif _within(key, OPTIMIZER) and len(numbers) == len(distribution.ends()):
            point[key] = max(numbers)
    return _changed(recipe, point)[0]


def known_num_train(recipe: Recipe) -> int | None:
    """Images to train on, as far as that is known without looking at the data."""
    if counts := Flow(recipe).published_counts():
        return counts["train"]
    return recipe.data.shapes.num_train if recipe.data.source == "shapes" else None


def default_space(recipe: Recipe, num_train: int) -> Space:
    """Learning rate and weight decay around the recipe's own values, log-uniform.

    The loss is per valid pixel, so a learning rate carries over between image sizes; what is left
    unknown (backbone, batch, data) is worth a factor of 30 either way: three decades, with rates that
    diverge at one end and rates that learn nothing at the other. SGD's decay is part of the gradient,
    in the loss's own units, and carries over likewise. AdamW's is not divided by the size of gradients:
    what carries over is what it takes from the weights in the run, from 0.1 % to all of them at the
    recipe's own rate, stretched to hold the recipe's own value. That also where SGD's takes nothing.
    """
    optimizer = recipe.finetune.optimizer
    lr, decay, total = optimizer.lr, optimizer.weight_decay, _sum_of_rates(recipe, num_train)
    span = (decay / 30, decay * 30)
    if optimizer.kind == "adamw" or total * span[1] < INERT_FRAC:
        span = (min(INERT_FRAC / total, decay or np.inf), max(1 / total, decay))
    spans = {LR: (lr / 30, lr * 30), WEIGHT_DECAY: span}
    # Two digits, for the eye; outwards, so that what was inside stays so.
    return Space.model_validate(
        {
            key: {"log": [_to_two(low, np.floor), _to_two(high, np.ceil)]}
            for key, (low, high) in spans.items()
        }
    )


def _to_two(value: float, towards: np.ufunc) -> float:
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{towards(round(value / step, 9)) * step:.1e}")


def shrinkage(recipe: Recipe, num_train: int) -> float:
    """Sum of lr x weight decay: about the share of the weights that decay takes, if small.

    An upper bound: of the layers that learn fastest, and as if the schedule never fell.
    """
    return _sum_of_rates(recipe, num_train) * recipe.finetune.optimizer.weight_decay


def arithmetic(recipe: Recipe, num_train: int) -> str:
    """How `shrinkage` comes about, in words."""
    tune, (steps, head, momentum) = recipe.finetune.optimizer, _factors(recipe, num_train)
    factors = [
        f"{steps:.10g} steps",
        f"lr {tune.lr:.3g}" + (f" / (1 - momentum {momentum:g})" if momentum else ""),
        *([f"head_lr_mult {head:g}"] if head != 1 else []),
        f"weight_decay {tune.weight_decay:.3g}",
    ]
    return f"{' x '.join(factors)} = {shrinkage(recipe, num_train):.1e}"


def _sum_of_rates(recipe: Recipe, num_train: int) -> float:
    steps, head, momentum = _factors(recipe, num_train)
    return steps * recipe.finetune.optimizer.lr * head / (1 - momentum)


def _factors(recipe: Recipe, num_train: int) -> tuple[float, float, float]:
    """Steps, each counted by its phase's factor on lr; the fastest layers' factor; the momentum."""
    tune = recipe.finetune.optimizer
    steps = sum(recipe.num_steps(phase, num_train) * phase.lr_mult for phase in recipe.phases)
    head = tune.head_lr_mult if recipe.finetune.trainable == "head" else max(1, tune.head_lr_mult)
    return steps, head, tune.momentum if tune.kind == "sgd" else 0.0
