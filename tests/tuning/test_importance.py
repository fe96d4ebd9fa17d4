"""What mattered is found, what did not is not, and too little is said to be too little."""

import numpy as np
import pytest

from tests.tuning.made import FOUR, IMAGES, JITTER, UPSCORE, made
from tuning.importance import MIN_TRIALS, importances
from tuning.space import LR, WEIGHT_DECAY


def test_a_peak_in_the_middle_is_found() -> None:
    found = importances(made(40))
    assert found.images == IMAGES[0]
    first = found.dimensions[0]
    assert first.key == LR
    assert first.share > 0.6 > first.chance
    assert first.low < first.share < first.high
    rest = {i.key: i for i in found.dimensions[1:]}
    assert set(rest) == {WEIGHT_DECAY, JITTER, UPSCORE}
    assert all(i.share < i.chance for i in rest.values())


def test_a_choice_that_matters_is_found() -> None:
    space = {UPSCORE: {"choice": ["fixed", "learned"]}, JITTER: FOUR[JITTER]}
    found = importances(made(20, space, lambda p: 0.4 + 0.3 * (p[UPSCORE] == "learned")))
    assert found.dimensions[0].key == UPSCORE
    assert found.dimensions[0].share > 0.7


def test_a_slope_explains_everything() -> None:
    space = {JITTER: FOUR[JITTER], WEIGHT_DECAY: FOUR[WEIGHT_DECAY]}
    found = importances(made(20, space, lambda p: 0.7 - p[JITTER], noise=0.0))
    assert found.dimensions[0].key == JITTER
    assert found.dimensions[0].share == pytest.approx(1)


def test_where_nothing_matters_a_bar_crosses_its_tick_in_few_searches(monkeypatch) -> None:
    """At the level of one search in twenty; 8 of 30 would be one chance in ten thousand."""
    monkeypatch.setattr("tuning.importance.RESAMPLED", 160)  # for speed
    crossed = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores = iter(rng.uniform(0.3, 0.7, 12).tolist())
        found = importances(made(12, truth=lambda p, s=scores: next(s), noise=0.0))
        crossed += any(i.share > i.chance for i in found.dimensions)
    assert crossed < 8


def test_too_few_trials_say_nothing() -> None:
    assert importances(made(MIN_TRIALS - 1)) is None
    assert importances(made(0)) is None


def test_equal_scores_have_no_variance_to_share() -> None:
    found = importances(made(10, {JITTER: FOUR[JITTER]}, lambda p: 0.5, noise=0.0))
    assert [i.share for i in found.dimensions] == [0.0]
