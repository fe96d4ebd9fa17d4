"""Searches with a known truth, told as an engine tells them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tuning.events import Rung, SearchBegun, TrialBegun, TrialEnded
from tuning.records import Search
from tuning.space import LR, WEIGHT_DECAY, Point, parse_space

JITTER, UPSCORE = "finetune.augment.jitter", "net.upscore"
FOUR: dict[str, Any] = {
    LR: {"log": [3.3e-5, 3e-2]},
    WEIGHT_DECAY: {"log": [1e-4, 1.0]},
    JITTER: {"uniform": [0.0, 0.5]},
    UPSCORE: {"choice": ["fixed", "learned"]},
}
OWN: Point = {LR: 1e-3, WEIGHT_DECAY: 1e-4, JITTER: 0.2, UPSCORE: "fixed"}
RUNGS = (20, 60, 200)


def peak(point: Point) -> float:
    """Mean IU falls by the square of the decades of lr from 2e-3, a little with decay."""
    off = math.log10(float(point[LR]) / 2e-3)  # type: ignore[arg-type]
    return 0.72 * math.exp(-0.6 * off**2)


def made(
    count: int,
    space: dict[str, Any] | None = None,
    truth: Callable[[Point], float] = peak,
    noise: float = 0.02,
) -> Search:
    """What the events tell."""
    told = events_of(count, space, truth, noise)
    return Search.fold(event.model_dump_json().encode() for event in told)


def events_of(
    count: int,
    space: dict[str, Any] | None = None,
    truth: Callable[[Point], float] = peak,
    noise: float = 0.02,
) -> list[Any]:
    """A search in which half of the trials are pruned at each rung; rates above 0.013 diverge."""
    searched = parse_space(space or FOUR, "made")
    rng = np.random.default_rng(5)
    begun = SearchBegun(
        recipe="demo",
        seed=5,
        space=searched.model_dump(mode="json"),
        sampler="random",
        scheduler="asha",
        rungs=RUNGS,
    )
    events: list[Any] = [begun]
    seen: dict[int, list[float]] = {step: [] for step in RUNGS}
    for number in range(count):
        point = searched.sample(rng)
        if number == 0:
            point = {key: OWN.get(key, value) for key, value in point.items()}
        events.append(TrialBegun(number=number, point=point))
        events += _told(number, point, truth(point), rng, seen, noise)
    return events


def _told(
    number: int,
    point: Point,
    top: float,
    rng: np.random.Generator,
    seen: dict[int, list[float]],
    noise: float,
) -> list[Any]:
    if float(point.get(LR, 0)) > 0.013:  # type: ignore[arg-type]
        why = "the loss became nan at step 7, on scene-17 & others; a lower lr is the remedy"
        return [TrialEnded(number=number, status="failed", reason=why, seconds=9, steps=7)]
    events: list[Any] = []
    for step in RUNGS:
        score = top * (1 - math.exp(-step / 50)) + noise * rng.standard_normal()
        score = min(1.0, max(0.0, score))
        events.append(Rung(number=number, step=step, mean_iu=score))
        seen[step].append(score)
        if step < RUNGS[-1] and number and score < np.median(seen[step]):
            why = f"mean IU {score:.3f} at step {step} is in the lower half"
            ended = TrialEnded(
                number=number, status="pruned", reason=why, seconds=step * 0.9 + 8, steps=step
            )
            return [*events, ended]
    seconds = RUNGS[-1] * 0.9 + 8
    return [
        *events,
        TrialEnded(number=number, status="finished", seconds=seconds, steps=RUNGS[-1]),
    ]
