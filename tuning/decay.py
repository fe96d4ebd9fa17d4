"""What weight decay does to the weights over a whole run, as one number.

Each step multiplies the weights by (1 - lr x decay) beside what the gradient does: AdamW by itself
(decoupled), SGD as a part of the gradient (coupled), which momentum carries on for 1 / (1 - momentum)
steps. Over a run that is exp(-sum of lr x decay), and the sum tells whether decay acts at all.
"""

from __future__ import annotations

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import steps_per_epoch

INERT_FRAC = 1e-3
"""Decay that shrinks the weights by less than this over the run cannot be seen in a score."""


def run_lr(recipe: Recipe, num_train: int) -> float:
    """The learning rates of all steps together; weight decay times this is what a run shrinks by.

    An upper bound: of the layers that learn fastest, and as if the schedule never fell.
    """
    tune = recipe.finetune.optimizer
    per_epoch = steps_per_epoch(num_train, recipe.finetune.global_batch)
    steps = sum(phase.epochs * per_epoch * phase.lr_mult for phase in recipe.phases)
    return steps * tune.lr * _head(recipe) / (1 - _momentum(recipe))


def shrinkage(recipe: Recipe, num_train: int) -> float:
    """Steps x lr x weight decay: about the share of the weights that decay takes, if small."""
    return run_lr(recipe, num_train) * recipe.finetune.optimizer.weight_decay


def arithmetic(recipe: Recipe, num_train: int) -> str:
    """How `shrinkage` comes about, in words."""
    tune = recipe.finetune.optimizer
    per_epoch = steps_per_epoch(num_train, recipe.finetune.global_batch)
    steps = " + ".join(
        f"{phase.epochs * per_epoch}" + (f" x {phase.lr_mult:g}" if phase.lr_mult != 1 else "")
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
