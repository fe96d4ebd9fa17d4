"""Which dimension of a search mattered, and how far that can be trusted.

Optuna's fANOVA is not used for it: its shares sum to one where nothing matters too, and of a dozen
trials that are drawn again it says something else than of the trials themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tuning.records import Search
from tuning.space import Distribution

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
    reached = search.survival()
    images = max(reached, key=lambda each: (reached[each], each), default=0)
    trials = [trial for trial in search.trials.values() if images in trial.curve]
    if len(trials) < MIN_TRIALS:
        return None
    scores = np.array([trial.curve[images] for trial in trials])
    space = search.plan.space.dimensions
    # Of many dimensions one is soon above what a single one would reach by chance.
    level = 1 - 0.05 / len(space)
    found = []
    for key, distribution in space.items():
        basis = _basis(distribution, [trial.point[key] for trial in trials])
        rng = np.random.default_rng(0)  # the same page from the same records
        drawn = rng.integers(len(scores), size=(RESAMPLED, len(scores)))
        low, high = np.quantile([_share(basis[r], scores[r]) for r in drawn], (0.05, 0.95))
        chances = [_share(basis, rng.permutation(scores)) for _ in range(RESAMPLED)]
        bounds = float(low), float(high), float(np.quantile(chances, level))
        found.append(Importance(key, _share(basis, scores), *bounds))
    return Importances(images, len(trials), tuple(sorted(found, key=lambda each: -each.share)))


def coordinates(distribution: Distribution, values: Sequence[JsonValue]) -> Floats:
    """Values as numbers, to draw and to fit.

    Logarithmic ones are held at or above the lower bound: a recipe's own value may be 0. A choice's are
    the positions of its values, of unlisted ones after those.
    """
    if distribution.choice is None:
        low = distribution.bounds[0] if distribution.log else -np.inf
        return np.maximum(np.array(values, dtype=np.float64), low)
    listed = [*distribution.choice, *values]
    return np.array([float(listed.index(value)) for value in values])


def _basis(distribution: Distribution, values: Sequence[JsonValue]) -> Floats:
    """The functions of which a dimension's influence is put together, at each of the values."""
    where = coordinates(distribution, values)
    if distribution.choice is not None:
        return (where[:, None] == np.unique(where)).astype(np.float64)
    where = np.log10(where) if distribution.log else where
    return np.vander((where - where.mean()) / (where.std() or 1.0), 3)


def _share(basis: Floats, scores: Floats) -> float:
    """Share of the scores' variance that the best sum of the functions follows."""
    left = scores - basis @ np.linalg.lstsq(basis, scores, rcond=None)[0]
    total = float(((scores - scores.mean()) ** 2).sum())
    return min(1.0, max(0.0, 1 - float(left @ left) / total)) if total > 0 else 0.0
