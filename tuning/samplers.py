"""Points of trials: the recipe's own first, then at random, on a grid, or by what is known."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import seed_of
from tuning.events import Sampler
from tuning.records import Trial
from tuning.schedule import Draw
from tuning.space import Choice, Distribution, Log, Point, Space

NUM_AT_RANDOM = 5
"""Trials before there is enough to learn from."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def grid_size(space: Space, num_trials: int) -> int:
    """Values of each dimension, so that all combinations and the recipe's own are that many at most."""
    sizes = itertools.takewhile(
        lambda size: size == 1 or len(space.grid(size)) < num_trials, range(1, num_trials + 1)
    )
    return max(sizes)


def num_trials(kind: Sampler, space: Space, recipe: Recipe, wanted: int) -> int:
    """A grid is whole, and never larger than wanted but for the one point that it has at least."""
    if kind != "grid":
        return wanted
    return min(wanted, len(space.grid_trials(grid_size(space, wanted), recipe)))


def sampler(kind: Sampler, space: Space, recipe: Recipe, seed: int, count: int) -> Draw:
    """What gives a trial's point; the same for the same knowledge, whoever asks and when."""
    if kind == "grid":
        points = space.grid_trials(grid_size(space, count), recipe)
        return lambda number, over: points[number]
    if kind == "tpe":
        return lambda number, over: _tpe(number, over, space, recipe, seed)
    return lambda number, over: space.trial(number, recipe, seed)


def _tpe(number: int, over: Sequence[Trial], space: Space, recipe: Recipe, seed: int) -> Point:
    """Optuna's tree of Parzen estimators over the trials that are over.

    Made anew for each trial, so that it depends on them and the seed alone.
    """
    if number == 0:
        return space.own(recipe)
    spread = {key: _distribution(d) for key, d in space.dimensions.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize",
            sampler=TPESampler(
                seed=seed_of("tpe", seed, number),
                n_startup_trials=NUM_AT_RANDOM,
                multivariate=True,
            ),
        )
        for trial in over:
            if told := _told(trial, spread):
                study.add_trial(told)
        params = study.ask(spread).params
    return {
        key: json.loads(value) if isinstance(space.dimensions[key], Choice) else value
        for key, value in params.items()
    }


def _told(trial: Trial, spread: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """A trial in Optuna's terms; None if its point is not in the space, as the recipe's need not be.

    One that failed counts as pruned before it had any score: the worst there is.
    """
    params = {
        key: json.dumps(value) if isinstance(spread[key], CategoricalDistribution) else value
        for key, value in trial.first.items()
    }
    if not all(spread[key]._contains(spread[key].to_internal_repr(params[key])) for key in spread):
        return None
    finished = trial.status == "finished"
    return create_trial(
        state=TrialState.COMPLETE if finished else TrialState.PRUNED,
        value=trial.mean_iu if finished else None,
        params=params,
        distributions=dict(spread),
        intermediate_values={} if trial.failure else dict(trial.rungs),
    )


def _distribution(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choice):
        return CategoricalDistribution([json.dumps(value) for value in distribution.choice])
    return FloatDistribution(*distribution.bounds, log=isinstance(distribution, Log))
