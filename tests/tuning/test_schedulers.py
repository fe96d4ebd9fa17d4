"""Which trials go on: Tune's own rules, over all sessions."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tests.tuning.made import Unwritten, plan
from tuning.records import Records
from tuning.schedulers import Remembering, first_rung, scheduler_of

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
EVERY = 100


def asked(scheduler, number: int, images: int, mean_iu: float) -> str:
    """What Tune is answered; its own trial id is another in each session."""
    trial = SimpleNamespace(config={"number": number}, trial_id=f"{random.random()}")
    return scheduler.on_trial_result(None, trial, {"images": images, "mean_iu": mean_iu})


def play(records: Records, num_trials: int, seed: int, kills: float = 0.0) -> None:
    """Three trials side by side at random speeds; now and then a session is killed."""
    rng = random.Random(seed)
    whole = records.search.plan.max_images

    def session() -> TrialScheduler:
        scheduler = scheduler_of(records.search.plan)
        if isinstance(scheduler, Remembering):
            scheduler.remember(records.search)
        return scheduler

    scheduler, order = session(), random.Random(seed)
    while len(records.search.over()) < num_trials:
        if rng.random() < kills:
            scheduler = session()
        running = [t.number for t in records.search.under_way()]
        if len(running) < 3 and len(records.search.trials) < num_trials:
            running.append(len(records.search.trials))
            records.add(running[-1], {})
        number = order.choice(running)
        images = max(records.search.trials[number].curve, default=0) + EVERY
        mean_iu = truth(number, images)
        action = CONTINUE
        if not isinstance(scheduler, FIFOScheduler) or isinstance(scheduler, Remembering):
            action = asked(scheduler, number, images, mean_iu)
        changes = {"status": "finished"} if images >= whole else {}
        if not changes and action == STOP:
            changes = {"status": "pruned"}
        records.score(number, images, images // 5, mean_iu, **changes)


def truth(number: int, images: int) -> float:
    """Each trial's curve, by its number."""
    top = np.random.default_rng(number).uniform(0.2, 0.8)
    return float(top * images / (images + 200))


@given(st.sampled_from(["asha", "median"]), st.integers(0, 2**32 - 1))
def test_one_that_was_fed_earlier_sessions_decides_as_one_that_saw_them(kind, seed) -> None:
    """Kills at any moment: the same trials are pruned at the same scores."""
    quiet, killed = (Unwritten(scheduler=kind) for _ in range(2))
    play(quiet, 12, seed)
    play(killed, 12, seed, kills=0.3)
    assert killed.search.trials == quiet.search.trials


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_the_recipes_own_trial_is_never_pruned(kind) -> None:
    scheduler = scheduler_of(plan(scheduler=kind))
    records = Unwritten()
    for number in range(1, 9):
        records.add(number, {})
        records.score(number, 100, 20, 0.5)
        records.score(number, 300, 60, 0.6)
    scheduler.remember(records.search)
    assert asked(scheduler, 9, 300, 0.1) == STOP
    assert asked(scheduler, 0, 300, 0.1) == CONTINUE


@pytest.mark.parametrize(("score", "goes_on"), [(0.61, False), (0.71, True), (0.8, True)])
def test_of_ten_the_best_third_begins_between_the_sixth_and_the_seventh(score, goes_on) -> None:
    records = Unwritten()
    for number in range(1, 11):
        records.add(number, {})
        records.score(number, 100, 20, number / 10)
    scheduler = scheduler_of(plan())
    scheduler.remember(records.search)
    assert asked(scheduler, 11, 100, score) == (CONTINUE if goes_on else STOP)


def test_a_score_that_is_reported_again_counts_once() -> None:
    """As by a trial that lost its process: what was decided stands."""
    scheduler = scheduler_of(plan())
    scheduler.remember(Unwritten().search)
    assert asked(scheduler, 1, 100, 0.5) == CONTINUE
    assert asked(scheduler, 2, 100, 0.9) == CONTINUE
    assert asked(scheduler, 1, 100, 0.5) == CONTINUE
    assert asked(scheduler, 3, 100, 0.6) == STOP


def test_halving_lets_the_best_third_go_on() -> None:
    records = Unwritten()
    play(records, 60, seed=1)
    trials = records.search.trials.values()
    at = [sum(images in t.curve for t in trials) for images in (100, 400, 1000)]
    assert at[0] == 60
    assert at[0] > 1.5 * at[1] > 1.5 * at[2] > 0
    lost = [t.curve[100] for t in trials if t.status == "pruned"]
    kept = [t.curve[100] for t in trials if t.status == "finished"]
    assert np.median(lost) < np.median(kept)


def test_without_pruning_all_come_to_their_ends() -> None:
    records = Unwritten(scheduler="none")
    play(records, 5, seed=0)
    assert records.search.counts()["finished"] == 5


@pytest.mark.parametrize(
    ("max_images", "first_images", "reduction", "rung"),
    [(400, 100, 3, 100), (600, 100, 3, 100), (2700, 100, 3, 100), (10_000, 100, 3, 400)],
)
def test_the_first_rung_is_a_validation_near_a_power_of_the_reduction(
    max_images, first_images, reduction, rung
) -> None:
    made = plan(max_images=max_images, first_images=first_images, reduction=reduction)
    assert first_rung(made) == rung


def test_a_search_of_one_validation_has_a_scheduler() -> None:
    assert scheduler_of(plan(max_images=100, first_images=100))
