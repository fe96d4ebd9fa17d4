"""Which trials go on: pure rules over scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median

import numpy as np

from pipeline.data.sampler import seed_of
from tuning.space import Choice, Point, Space

MIN_FOR_MEDIAN = 3
"""Of fewer trials a median says little."""
TRUNCATION_FRAC = 0.25
"""Of a population, the worst so many go on from the nets of as many of the best."""
STEPS = (0.8, 1.25)
"""Factors by which a clone's values move."""


def halving(score: float, before: Sequence[float], reduction: int) -> str | None:
    """Why a trial is pruned at a rung where others scored before it; None if it goes on.

    It goes on if it is in the best 1/reduction of those before it (asynchronous successive halving by
    stopping, Li et al. 2018): it never waits for others to come.
    """
    if not before:
        return None
    needed = float(np.quantile(before, 1 - 1 / reduction))
    if score >= needed:
        return None
    best = f"the best 1/{reduction} {_before(len(before))}"
    return f"mean IU {score:.4f} is not among {best}, from {needed:.4f} on"


def below_median(own: Sequence[float], before: Sequence[Sequence[float]]) -> str | None:
    """Why a trial is pruned at a rung, given its scores so far and those of others; None if it goes on.

    It goes on unless its best score so far is below the median of the others' means so far (the median
    stopping rule, Golovin et al. 2017).
    """
    if len(before) < MIN_FOR_MEDIAN:
        return None
    needed = median(mean(scores) for scores in before)
    if max(own) >= needed:
        return None
    return (
        f"mean IU {max(own):.4f} at best is below the median {_before(len(before))}, {needed:.4f}"
    )


def _before(count: int) -> str:
    return "of the trial before it" if count == 1 else f"of the {count} trials before it"


def clones(scores: Mapping[int, float], seed: int, step: int) -> dict[int, int]:
    """Who of a population goes on from whose net: each of the worst quarter from one of the best.

    That is truncation selection (Jaderberg et al. 2017). Of equals the lower number is the better.
    """
    ranked = sorted(scores, key=lambda number: (-scores[number], number))
    cut = min(max(1, int(len(ranked) * TRUNCATION_FRAC)), len(ranked) // 2)
    rng = np.random.default_rng(seed_of("clones", seed, step))
    worst = sorted(ranked[len(ranked) - cut :])
    return {number: ranked[int(rng.integers(cut))] for number in worst}


def perturbed(point: Mapping[str, object], space: Space, seed: int, *where: int) -> Point:
    """A point beside another: each number times 0.8 or 1.25, within its bounds; choices stay."""
    rng = np.random.default_rng(seed_of("perturb", seed, *where))
    moved: Point = {}
    for key, distribution in space.dimensions.items():
        value = point[key]
        factor = STEPS[int(rng.integers(2))]
        if isinstance(distribution, Choice) or not isinstance(value, int | float):
            moved[key] = value  # type: ignore[assignment]
        else:
            moved[key] = float(np.clip(value * factor, *distribution.bounds))
    return moved
