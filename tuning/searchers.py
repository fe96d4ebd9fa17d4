"""Which points are tried: the recipe's own first, then at random, on a grid, or by what is known.

A point is a function of its trial's number, of the seed and of the trials that are over. So a search
that was killed goes on with the points that it would have had.
"""

# ruff: noqa: ANN401 - the signatures are those of Searcher

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import seed_of
from pipeline.errors import RecipeError
from tuning.records import Records, Trial
from tuning.space import Distribution, Point, Space

NUM_AT_RANDOM = 5
"""Trials before there is enough to learn from."""

Suggest = Callable[[int, Sequence[Trial]], Point]
"""The point of a trial, from its number and the trials that are over."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
                    self.records.end(trial.number, "failed", str(error))
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

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """Nothing: the records know it already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are what a session begins from, not Tune's files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def suggest_by(kind: str, space: Space, recipe: Recipe, seed: int, num_trials: int) -> Suggest:
    """The points of a sampler; number 0 is the recipe's own."""
    if kind == "grid":
        points = grid_points(space, recipe, num_trials)
        return lambda number, over: points[number]
    if kind == "tpe":
        return lambda number, over: _tpe(number, over, space, recipe, seed)
    return lambda number, over: space.trial(number, recipe, seed)


def grid_points(space: Space, recipe: Recipe, num_trials: int) -> list[Point]:
    """The recipe's own point and the finest whole grid with it that has so many points at most.

    A grid has one point at least.
    """
    sizes = itertools.takewhile(
        lambda size: size == 1 or len(space.grid(size)) < num_trials, range(1, num_trials + 1)
    )
    return space.grid_trials(max(sizes), recipe)[:num_trials]


def _tpe(number: int, over: Sequence[Trial], space: Space, recipe: Recipe, seed: int) -> Point:
    """Optuna's tree of Parzen estimators over the trials that are over, in a study made anew."""
    if number == 0:
        return space.own(recipe)
    distributions = {key: _distribution(d) for key, d in space.dimensions.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize",
            sampler=TPESampler(
                seed=seed_of("tpe", seed, number), n_startup_trials=NUM_AT_RANDOM, multivariate=True
            ),
        )
        study.add_trials([_frozen(t, distributions) for t in over if _within(t, space)])
        params = study.ask(distributions).params
    return {
        key: json.loads(value) if space.dimensions[key].choice is not None else value
        for key, value in params.items()
    }


def _within(trial: Trial, space: Space) -> bool:
    """Whether its point lies in the space, as the recipe's own need not.

    Optuna cannot be asked: it takes the logarithm of a weight decay of 0.
    """
    return all(d.contains(trial.point[key]) for key, d in space.dimensions.items())


def _frozen(trial: Trial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A trial in Optuna's terms; one that failed counts as pruned without a score, which is worst."""
    finished = trial.status == "finished"
    choices = {k for k, d in distributions.items() if isinstance(d, CategoricalDistribution)}
    return create_trial(
        state=TrialState.COMPLETE if finished else TrialState.PRUNED,
        value=trial.mean_iu if finished else None,
        params={k: json.dumps(v) if k in choices else v for k, v in trial.point.items()},
        distributions=dict(distributions),
        intermediate_values={} if trial.status == "failed" else trial.curve,
    )


def _distribution(distribution: Distribution) -> BaseDistribution:
    if distribution.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in distribution.choice])
    return FloatDistribution(*distribution.bounds, log=distribution.log is not None)
