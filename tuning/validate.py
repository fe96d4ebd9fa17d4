"""Whether a search over a space makes sense for a recipe: everything that does not, at once, in words.

What weight decay does to the weights over a whole run is one number. Each step multiplies the weights
by (1 - lr x decay) beside what the gradient does: AdamW by itself (decoupled), SGD as a part of the
gradient (coupled), which momentum carries on for 1 / (1 - momentum) steps. Over a run that is
exp(-sum of lr x decay), and the sum tells whether decay acts at all.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import numpy as np
from pydantic import JsonValue

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import seed_of
from pipeline.errors import RecipeError
from pipeline.flow import Flow
from tuning.space import LR, WEIGHT_DECAY, Distribution, Point, Space, counted, value_of

STEPS = "a trial of fewer epochs ends its schedule earlier, so at equal images seen it only looks better"
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
}

INNER_FRAC = 0.382
"""Between the bounds, at no round value: a whole number's bounds may be valid where this is not."""
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
    mistakes = [
        line
        for key, distribution in space.dimensions.items()
        for line in _of_dimension(key, distribution, recipe)
    ]
    mistakes += [
        f"{inner} lies within {outer}, which is searched too; keep one of them"
        for inner, outer in itertools.permutations(space.dimensions, 2)
        if _within(inner, outer)
    ]
    if not mistakes:
        mistakes = [*_inert(space, recipe, num_train)] or _drawn(space, recipe)
    if mistakes:
        lines = [f"  {line}" for line in mistakes]
        raise RecipeError("\n".join([f"space of {recipe.name}: {counted(lines)}", *lines]))


def _of_dimension(key: str, distribution: Distribution, recipe: Recipe) -> list[str]:
    for refused, why in NOT_SEARCHED.items():
        if _within(key, refused):
            return [f"{key}: {why}; take it out of the space"]
    if mistake := _of_distribution(distribution):
        return [
            f"{key}={json.dumps(distribution.model_dump(mode='json', exclude_none=True))}: {mistake}"
        ]
    complaints = _refusals(recipe, key, distribution.ends())
    if not complaints and distribution.choice is None:
        complaints = _refusals(recipe, key, [distribution.at(INNER_FRAC)])
    whole = "; for whole numbers write a choice"
    return [c + whole if "valid integer" in c else c for c in complaints]


def _refusals(recipe: Recipe, key: str, values: Iterable[JsonValue]) -> list[str]:
    complaints = [line for value in values for line in _changed(recipe, {key: value})[1]]
    return list(dict.fromkeys(complaints))


def _of_distribution(distribution: Distribution) -> str:
    if distribution.choice is not None:
        distinct = {json.dumps(value, sort_keys=True) for value in distribution.choice}
        found = "one value" if distinct else "no value"
        rule = (
            f"a choice of {found} searches nothing; give two or more, or take it out of the space"
        )
        return rule if len(distinct) < 2 else ""
    low, high = distribution.bounds
    rule = ""
    if distribution.log and min(low, high) <= 0:
        rule = f"log bounds must be above 0; raise {min(low, high):g} or write uniform"
    elif low > high:
        rule = f"the bounds are upside down; write [{high}, {low}]"
    elif low == high:
        rule = (
            "the bounds are equal, which searches nothing; widen them or take it out of the space"
        )
    return rule


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
    for number in range(NUM_DRAWN):
        point = space.sample(np.random.default_rng(seed_of("check", 0, number)))
        if complaints := _changed(recipe, point)[1]:
            where = ", ".join(Space.overrides(point))
            return [f"{line} (at {where})" for line in complaints]
    return []


def _inert(space: Space, recipe: Recipe, num_train: int) -> Iterable[str]:
    """Dimensions that cannot matter, whatever the others are."""
    searched = set(space.dimensions)
    for key, decided_by, inert, reason in INERT:
        dimension = space.dimensions.get(decided_by)
        values = dimension.ends() if dimension else [value_of(recipe, decided_by)]
        if key in searched and all(value in inert for value in values):
            yield f"{key}: {reason}, so it cannot matter; take it out of the space"
    if (
        recipe.finetune.trainable == "head"
        and {HEAD, LR} <= searched
        and "finetune.trainable" not in searched
    ):
        yield (
            f"{HEAD}: with finetune.trainable=head only lr x head_lr_mult counts, and lr is searched; "
            "take one of them out of the space"
        )
    strongest = _strongest(space, recipe)
    if WEIGHT_DECAY in searched and shrinkage(strongest, num_train) < INERT_FRAC:
        yield (
            f"{WEIGHT_DECAY}: where it is strongest it shrinks the weights by "
            f"{arithmetic(strongest, num_train)}, less than {INERT_FRAC:g}, over the whole run; raise "
            "its upper bound or that of the learning rate, or take it out of the space"
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


def run_lr(recipe: Recipe, num_train: int) -> float:
    """The learning rates of all steps together; weight decay times this is what a run shrinks by.

    An upper bound: of the layers that learn fastest, and as if the schedule never fell.
    """
    tune = recipe.finetune.optimizer
    steps = sum(recipe.num_steps(phase, num_train) * phase.lr_mult for phase in recipe.phases)
    return steps * tune.lr * _head(recipe) / (1 - _momentum(recipe))


def shrinkage(recipe: Recipe, num_train: int) -> float:
    """Steps x lr x weight decay: about the share of the weights that decay takes, if small."""
    return run_lr(recipe, num_train) * recipe.finetune.optimizer.weight_decay


def arithmetic(recipe: Recipe, num_train: int) -> str:
    """How `shrinkage` comes about, in words."""
    tune = recipe.finetune.optimizer
    steps = " + ".join(
        f"{recipe.num_steps(phase, num_train)}"
        + (f" x {phase.lr_mult:g}" if phase.lr_mult != 1 else "")
        for phase in recipe.phases
    )
    head, momentum = _head(recipe), _momentum(recipe)
    factors = [
        f"({steps}) steps" if "+" in steps else f"{steps} steps",
        f"lr {tune.lr:.3g}" + (f" / (1 - momentum {momentum:g})" if momentum else ""),
        *([f"head_lr_mult {head:g}"] if head != 1 else []),
        f"weight_decay {tune.weight_decay:.3g}",
    ]
    return f"{' x '.join(factors)} = {shrinkage(recipe, num_train):.1e}"


def _head(recipe: Recipe) -> float:
    """The factor on lr of the layers that learn fastest."""
    mult = recipe.finetune.optimizer.head_lr_mult
    return mult if recipe.finetune.trainable == "head" else max(1.0, mult)


def _momentum(recipe: Recipe) -> float:
    tune = recipe.finetune.optimizer
    return tune.momentum if tune.kind == "sgd" else 0.0
