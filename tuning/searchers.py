"""Which points are tried: the recipe's own first, then at random, on a grid, or by what is known.

A point is a function of its trial's number, of the seed and of the trials that are over. So a search
that was killed goes on with the points that it would have had.
"""

# ruff: noqa: ANN401 - the signatures are those of Searcher

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError
from tuning.estimators import estimated_point, random_point
from tuning.records import Records, SearchPlan, Trial
from tuning.space import Point, Space

Suggest = Callable[[int, Sequence[Trial]], Point]
"""The point of a trial, from its number and the trials that are over."""


class TrialSearcher(Searcher):
    """What Tune asks for trials: first those that were under way when a session ended, then new ones."""

    def __init__(
        self,
        records: Records,
        suggest: Suggest,
        num_trials: int,
        config_of: Callable[[Trial], dict[str, Any]],
        ending: Callable[[], str],
    ) -> None:
        super().__init__()
        self.records, self.suggest_point, self.num_trials = records, suggest, num_trials
        self.config_of, self.ending = config_of, ending
        self.failure: Exception | None = None  # Tune would take it for one of the trial's
        self._waiting = [trial.number for trial in records.search.under_way()]

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, or that there is none."""
        try:
            while not self.ending() and (trial := self._next()) is not None:
                try:
                    return {"number": trial.number, **self.config_of(trial)}
                except RecipeError as error:
                    self.records.update(trial.number, status="failed", reason=str(error))
        except Exception as failure:  # noqa: BLE001 - raised when Tune has ended
            self.failure = failure
        return Searcher.FINISHED

    def _next(self) -> Trial | None:
        if self._waiting:
            return self.records.update(self._waiting.pop(0), status="running", reason="")
        search = self.records.search
        number = len(search.trials)
        if number >= self.num_trials:
            return None
        return self.records.add(number, self.suggest_point(number, search.over()))

    def _nothing(self, *args: Any, **info: Any) -> None:
        """The records are what a session begins from, not Tune's files."""

    on_trial_complete = save = restore = _nothing

    def __getstate__(self) -> dict[str, Any]:
        return {}


def suggest_by(plan: SearchPlan, recipe: Recipe) -> Suggest:
    """The points of a search's sampler; number 0 is the recipe's own."""
    given = (plan.space, recipe, plan.seed)
    if plan.sampler == "grid":
        points = grid_points(plan.space, recipe, plan.grid_trials)
        return lambda number, over: points[number]
    if plan.sampler == "tpe":
        return lambda number, over: estimated_point(*given, number, over)
    return lambda number, over: random_point(*given, number)


def grid_points(space: Space, recipe: Recipe, at_most: int) -> list[Point]:
    """The recipe's own point and the finest whole grid that has so many points at most with it.

    A grid has one point at least.
    """
    own = space.own(recipe)
    points: list[Point] = []
    for size in range(1, at_most + 1):
        finer = [own, *(point for point in space.grid(size) if point != own)]
        if points and len(finer) > at_most:
            break
        points = finer
    return points[:at_most]
