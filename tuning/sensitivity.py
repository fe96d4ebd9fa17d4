"""Which dimension of a search mattered, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tuning.records import Search
from tuning.space import Choice, Distribution, Log, parse_space

MIN_TRIALS = 6
"""A parabola goes through any three; with fewer than twice as many nothing can be said."""
RESAMPLED = 1000
"""Resamplings and shuffles behind each interval."""

Floats = NDArray[np.float64]
Measure = Callable[[Floats, Floats], float]


@dataclass(frozen=True)
class Influence:
    """What one dimension tells about mean IU."""

    key: str
    share: float
    """Of the variance of mean IU between trials that a parabola in this dimension (a mean for each
    value of a choice) follows; in [0, 1]."""
    low: float
    high: float
    """Between these lie 90 % of the shares when the trials are drawn again with replacement."""
    chance: float
    """If no dimension mattered, no share would exceed its chance in 95 % of searches."""
    rank_correlation: float | None
    """Spearman's: +1 where more is always better, -1 where less is; None for a choice."""


@dataclass(frozen=True)
class Sensitivity:
    """The influence of all dimensions, greatest share first."""

    step: int
    """All compared trials were scored at this step."""
    num_trials: int
    influences: tuple[Influence, ...]


def sensitivity(search: Search) -> Sensitivity | None:
    """Influences on mean IU at the latest step at which as many trials as ever were scored.

    Later steps are reached by the better trials only, and what is left among those says little of the
    space. None if there are too few trials.
    """
    step = shared_step(search)
    trials = [t for t in search.trials.values() if step in t.rungs]
    if step is None or len(trials) < MIN_TRIALS:
        return None
    scores = np.array([t.rungs[step] for t in trials])
    space = parse_space(search.begun.space, "journal").dimensions
    # Of many dimensions one is soon above what a single one would reach by chance.
    level = 1 - 0.05 / len(space)
    influences = [
        _influence(key, distribution, [t.point[key] for t in trials], scores, level)
        for key, distribution in space.items()
    ]
    order = sorted(influences, key=lambda influence: -influence.share)
    return Sensitivity(step, len(trials), tuple(order))


def shared_step(search: Search) -> int | None:
    """The latest step at which as many trials were scored as at any."""
    reached = survival(search)
    return max(reached, key=lambda step: (reached[step], step), default=None)


def survival(search: Search) -> dict[int, int]:
    """How many trials were scored at each step."""
    steps = sorted({step for t in search.trials.values() for step in t.rungs})
    return {step: sum(step in t.rungs for t in search.trials.values()) for step in steps}


def coordinates(
    distribution: Distribution, values: Sequence[JsonValue]
) -> tuple[Floats, list[JsonValue]]:
    """Values as numbers to draw and to fit, and the categories of a choice (else none).

    Logarithmic ones keep their unit but are held at or above the lower bound: a recipe's own value may
    be 0. A choice's are the positions of its values, of unlisted ones after those.
    """
    if not isinstance(distribution, Choice):
        low = distribution.bounds[0] if isinstance(distribution, Log) else -np.inf
        return np.maximum(np.array(values, dtype=np.float64), low), []
    categories = list(distribution.choice)
    categories += [v for i, v in enumerate(values) if v not in [*categories, *values[:i]]]
    return np.array([float(categories.index(v)) for v in values]), categories


def _influence(
    key: str, distribution: Distribution, values: Sequence[JsonValue], scores: Floats, level: float
) -> Influence:
    where, categories = coordinates(distribution, values)
    if isinstance(distribution, Log):
        where = np.log10(where)
    measure = _share_of_means if categories else _share_of_parabola
    rng = np.random.default_rng(0)  # the same page from the same journal
    count = len(scores)
    drawn = [rng.integers(count, size=count) for _ in range(RESAMPLED)]
    shares = [measure(where[rows], scores[rows]) for rows in drawn]
    chances = [measure(where, rng.permutation(scores)) for _ in range(RESAMPLED)]
    return Influence(
        key,
        share=measure(where, scores),
        low=float(np.quantile(shares, 0.05)),
        high=float(np.quantile(shares, 0.95)),
        chance=float(np.quantile(chances, level)),
        rank_correlation=None if categories else _rank_correlation(where, scores),
    )


def _share_of_parabola(where: Floats, scores: Floats) -> float:
    spread = where.std()
    if spread == 0:
        return 0.0
    scaled = (where - where.mean()) / spread
    basis = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)
    fit = basis @ np.linalg.lstsq(basis, scores, rcond=None)[0]
    return _share(fit, scores)


def _share_of_means(where: Floats, scores: Floats) -> float:
    fit = np.empty_like(scores)
    for value in np.unique(where):
        fit[where == value] = scores[where == value].mean()
    return _share(fit, scores)


def _share(fit: Floats, scores: Floats) -> float:
    total = float(((scores - scores.mean()) ** 2).sum())
    left = float(((scores - fit) ** 2).sum())
    return min(1.0, max(0.0, 1 - left / total)) if total > 0 else 0.0


def _rank_correlation(where: Floats, scores: Floats) -> float:
    a, b = (ranks - ranks.mean() for ranks in (_ranks(where), _ranks(scores)))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else 0.0


def _ranks(values: Floats) -> Floats:
    """Positions in ascending order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.take(np.cumsum(counts) - (counts - 1) / 2, inverse)
