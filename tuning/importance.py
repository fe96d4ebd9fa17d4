"""Which dimension of a search mattered, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tuning.records import Search
from tuning.space import Distribution, parse_space

MIN_TRIALS = 6
"""A parabola goes through any three; with fewer than twice as many nothing can be said."""
RESAMPLED = 1000
"""Resamplings and shuffles behind each interval."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """What one dimension tells about mean IU."""

    key: str
    share: float
    """Share of the variance of mean IU between trials that a parabola in this dimension (a mean for each
    value of a choice) follows; in [0, 1]."""
    low: float
    high: float
    """Between these lie 90 % of the shares when the trials are drawn again with replacement."""
    chance: float
    """If no dimension mattered, no share would exceed its chance in 95 % of searches."""


@dataclass(frozen=True)
class Importances:
    """The importance of all dimensions, greatest share first, from trials at equal images seen."""

    images: int
    num_trials: int
    dimensions: tuple[Importance, ...]


def importances(search: Search) -> Importances | None:
    """Importance at the latest validation at which as many trials as ever were scored.

    Later ones are reached by the better trials only, and what is left among those says little of the
    space. None if there are too few trials.
    """
    reached = survival(search)
    images = max(reached, key=lambda each: (reached[each], each), default=0)
    trials = [trial for trial in search.trials.values() if images in trial.curve]
    if len(trials) < MIN_TRIALS:
        return None
    scores = np.array([trial.curve[images] for trial in trials])
    space = parse_space(search.plan.space, "space").dimensions
    # Of many dimensions one is soon above what a single one would reach by chance.
    level = 1 - 0.05 / len(space)
    found = [
        _importance(key, distribution, [t.point[key] for t in trials], scores, level)
        for key, distribution in space.items()
    ]
    return Importances(images, len(trials), tuple(sorted(found, key=lambda each: -each.share)))


def survival(search: Search) -> dict[int, int]:
    """How many trials were scored, by images seen."""
    all_images = sorted({images for t in search.trials.values() for images in t.curve})
    return {n: sum(n in t.curve for t in search.trials.values()) for n in all_images}


def coordinates(
    distribution: Distribution, values: Sequence[JsonValue]
) -> tuple[Floats, list[JsonValue]]:
    """Values as numbers to draw and to fit, and the categories of a choice (else none).

    Logarithmic ones keep their unit but are held at or above the lower bound: a recipe's own value may
    be 0. A choice's are the positions of its values, of unlisted ones after those.
    """
    if distribution.choice is None:
        low = distribution.bounds[0] if distribution.log else -np.inf
        return np.maximum(np.array(values, dtype=np.float64), low), []
    categories = list(distribution.choice)
    categories += [v for i, v in enumerate(values) if v not in [*categories, *values[:i]]]
    return np.array([float(categories.index(v)) for v in values]), categories


def _importance(
    key: str, distribution: Distribution, values: Sequence[JsonValue], scores: Floats, level: float
) -> Importance:
    where, categories = coordinates(distribution, values)
    if distribution.log:
        where = np.log10(where)
    choice = bool(categories)
    rng = np.random.default_rng(0)  # the same page from the same records
    drawn = rng.integers(len(scores), size=(RESAMPLED, len(scores)))
    shares = [_share(where[rows], scores[rows], choice=choice) for rows in drawn]
    chances = [_share(where, rng.permutation(scores), choice=choice) for _ in range(RESAMPLED)]
    return Importance(
        key,
        share=_share(where, scores, choice=choice),
        low=float(np.quantile(shares, 0.05)),
        high=float(np.quantile(shares, 0.95)),
        chance=float(np.quantile(chances, level)),
    )


def _share(where: Floats, scores: Floats, *, choice: bool) -> float:
    """Share of the scores' variance that a parabola or, for a choice, a mean for each value follows."""
    if choice:
        basis = (where[:, None] == np.unique(where)).astype(np.float64)
    elif (spread := where.std()) > 0:
        basis = np.vander((where - where.mean()) / spread, 3)
    else:
        return 0.0
    left = scores - basis @ np.linalg.lstsq(basis, scores, rcond=None)[0]
    total = float(((scores - scores.mean()) ** 2).sum())
    return min(1.0, max(0.0, 1 - float(left @ left) / total)) if total > 0 else 0.0
