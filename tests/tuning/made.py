"""Searches with a known truth, recorded as a driver records them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.recipe import load_recipe
from pipeline.storage.store import Store
from tuning.estimators import random_point
from tuning.records import Records, Search, SearchPlan
from tuning.settings import Settings
from tuning.space import LR, WEIGHT_DECAY, Point, Space

JITTER, UPSCORE = "finetune.augment.jitter", "net.upscore"
FOUR: dict[str, Any] = {
    LR: {"log": [3.3e-5, 3e-2]},
    WEIGHT_DECAY: {"log": [1e-4, 1.0]},
    JITTER: {"uniform": [0.0, 0.5]},
    UPSCORE: {"choice": ["fixed", "learned"]},
}
OWN: Point = {LR: 1e-3, WEIGHT_DECAY: 1e-4, JITTER: 0.2, UPSCORE: "fixed"}
RECIPE = load_recipe("demo")
IMAGES = (100, 300, 1000)
"""Images seen at each validation; a step is 5 images."""


def plan(**changes: Any) -> SearchPlan:
    """A search of trials of 1000 images."""
    plain: dict[str, Any] = {
        "name": "made",
        "created": "2026-01-02T03:04:05+00:00",
        "recipe": "demo",
        "seed": 5,
        "data": "d1a5e5" * 8,
        "space": FOUR,
        "sampler": "random",
        "scheduler": "asha",
        "max_images": 1000,
        "max_steps": 200,
        "first_images": 100,
    }
    return SearchPlan(**(plain | changes))


def begin(root: Path, settings: Settings | None = None, **changes: Any) -> Records:
    """The records of a search in a store, from where they stand."""
    records = Records(Store(root), "made")
    recipe = load_recipe("demo", [f"store={root}"])
    records.begin(plan(**changes), recipe, settings or Settings(name="made"))
    return records


class Unwritten(Records):
    """Records that are kept in memory only."""

    def __init__(self, **changes: Any) -> None:
        self.name, self.folder, self.store = "made", "searches/made", Nowhere()  # type: ignore[assignment]
        self.search, self._written_at = Search(plan(**changes)), time.monotonic()


class Nowhere:
    """A store that forgets."""

    def write_json(self, name: str, facts: object) -> None:
        """Forget it."""


def peak(point: Point) -> float:
    """Mean IU falls by the square of the decades of lr from 2e-3."""
    off = math.log10(float(point[LR]) / 2e-3)  # type: ignore[arg-type]
    return 0.72 * math.exp(-0.6 * off**2)


def made(
    count: int,
    space: dict[str, Any] | None = None,
    truth: Callable[[Point], float] = peak,
    noise: float = 0.02,
) -> Search:
    """A search in which half of the trials are pruned at each rung; rates above 0.013 diverge."""
    records = Unwritten(space=Space.model_validate(space or FOUR))
    fill(records, count, truth, noise)
    return records.search


def fill(
    records: Records, count: int, truth: Callable[[Point], float] = peak, noise: float = 0.02
) -> None:
    """Add so many trials."""
    rng = np.random.default_rng(5)
    seen: dict[int, list[float]] = {images: [] for images in IMAGES}
    for number in range(count):
        point = random_point(records.search.plan.space, RECIPE, 5, number)
        if number == 0:
            point = {key: OWN.get(key, value) for key, value in point.items()}
        records.add(number, point)
        _train(records, number, truth(point), rng, seen, noise)


def _train(
    records: Records,
    number: int,
    top: float,
    rng: np.random.Generator,
    seen: dict[int, list[float]],
    noise: float,
) -> None:
    if float(records.search.trials[number].point.get(LR, 0)) > 0.013:  # type: ignore[arg-type]
        why = "the loss became nan at step 7, on scene-17 & others; a lower lr is the remedy"
        records.update(number, 7, 9, status="failed", reason=why)
        return
    for images in IMAGES:
        score = top * (1 - math.exp(-images / 250)) + noise * rng.standard_normal()
        score = min(1.0, max(0.0, score))
        seen[images].append(score)
        if images == IMAGES[-1]:
            records.score(number, images, images // 5, score, spent_s=50, status="finished")
        elif number and score < np.median(seen[images]):
            why = f"mean IU {score:.3f} is in the lower half"
            ended = {"status": "pruned", "reason": why}
            records.score(number, images, images // 5, score, spent_s=50, **ended)
            return
        else:
            records.score(number, images, images // 5, score, spent_s=50)
