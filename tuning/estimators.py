"""What Optuna does for a search: it draws points, at random or where good ones lie."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import seed_of
from tuning.records import Trial
from tuning.space import Distribution, Point, Space

NUM_AT_RANDOM = 5
"""Trials before there is enough to learn from."""


def random_point(space: Space, recipe: Recipe, seed: int, number: int) -> Point:
    """The point of a random search's trial: 0 is the recipe's own."""
    if number == 0:
        return space.own(recipe)
    return _ask(space, RandomSampler(seed_of("trial", seed, number)), [])


def estimated_point(
    space: Space, recipe: Recipe, seed: int, number: int, over: Sequence[Trial]
) -> Point:
    """A point by Optuna's tree of Parzen estimators over the trials that are over; 0 as above."""
    if number == 0:
        return space.own(recipe)
    seed = seed_of("tpe", seed, number)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        sampler = TPESampler(seed=seed, n_startup_trials=NUM_AT_RANDOM, multivariate=True)
    return _ask(space, sampler, [_frozen(trial, space) for trial in over if _within(trial, space)])


def _ask(space: Space, sampler: BaseSampler, over: Sequence[FrozenTrial]) -> Point:
    """The next point of a study that is made anew, so that it follows from what is given alone."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(over)
    params = study.ask(_distributions(space)).params
    return {
        key: value if space.dimensions[key].choice is None else json.loads(value)
        for key, value in params.items()
    }


def _within(trial: Trial, space: Space) -> bool:
    """Whether its point lies in the space, as the recipe's own need not.

    Optuna cannot be asked: it takes the logarithm of a weight decay of 0.
    """
    return all(d.contains(trial.point[key]) for key, d in space.dimensions.items())


def _frozen(trial: Trial, space: Space) -> FrozenTrial:
    """A trial in Optuna's terms; one that failed counts as pruned without a score, which is worst."""
    finished = trial.status == "finished"
    return create_trial(
        state=TrialState.COMPLETE if finished else TrialState.PRUNED,
        value=trial.mean_iu if finished else None,
        params=_params(trial.point, space),
        distributions=_distributions(space),
        intermediate_values={} if trial.status == "failed" else trial.curve,
    )


def _params(point: Point, space: Space) -> dict[str, object]:
    """Values of a choice may be of any kind, which Optuna's may not: they go as JSON."""
    return {
        key: point[key] if d.choice is None else json.dumps(point[key])
        for key, d in space.dimensions.items()
    }


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {key: _distribution(d) for key, d in space.dimensions.items()}


def _distribution(distribution: Distribution) -> BaseDistribution:
    if distribution.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in distribution.choice])
    return FloatDistribution(*distribution.bounds, log=distribution.log is not None)
