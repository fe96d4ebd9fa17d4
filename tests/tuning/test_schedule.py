"""The schedule: what a search does next depends on what was scored, never on when."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.events import Failed, Rung, SearchBegun, SessionBegun
from tuning.pruning import below_median, clones, halving, perturbed
from tuning.records import Search
from tuning.schedule import Schedule
from tuning.space import Space

LR = "finetune.optimizer.lr"
SPACE = Space.model_validate({LR: {"log": (1e-5, 1e-2)}})


def begun(**changes) -> SearchBegun:
    plain = {
        "recipe": "demo",
        "seed": 3,
        "space": SPACE.model_dump(mode="json"),
        "sampler": "random",
        "scheduler": "asha",
        "rungs": (10, 30, 90),
        "slots": 3,
    }
    return SearchBegun(**(plain | changes))


def draw(number, over) -> dict:
    """A point that depends on what is known: on all trials that are over."""
    rng = np.random.default_rng([number, *(t.number for t in over), len(over)])
    return SPACE.sample(rng)


def score(point, step) -> float | None:
    """The true mean IU; None where the loss is not finite."""
    off = math.log10(point[LR] / 3e-4)
    return None if off > 1.3 and step > 10 else 0.7 * math.exp(-(off**2)) * step / 90


def play(first, num_trials, seed, workers=3, kills=0.0, **options) -> Search:
    """A whole search by workers of random speed, whose driver is killed now and then."""
    rng = random.Random(seed)
    search, busy = Search.fold([first.model_dump_json().encode()]), []
    while True:
        schedule = Schedule(search, num_trials, draw, **options)
        for event in schedule.decisions:
            search = tell(search, event)
        if rng.random() < kills:
            busy = []  # what was being trained is trained again
        ready = [s for s in schedule.ready() if s not in busy]
        busy += ready[: workers - len(busy)]
        if not busy:
            return search
        done = busy.pop(rng.randrange(len(busy)))
        value = score(done.point, done.until)
        if value is None:
            search = search.after(Failed(number=done.number, step=11, reason="the loss became nan"))
        else:
            search = search.after(Rung(number=done.number, step=done.until, mean_iu=value))


def tell(search, event) -> Search:
    known = search.trials.get(event.number)
    there = {
        "trial": known is not None,
        "ended": known is not None and known.status != "running",
        "cloned": known is not None and getattr(event, "step", 0) in known.clones,
    }
    return search if there[event.event] else search.after(event)


@settings(max_examples=25)
@given(
    st.sampled_from(["asha", "median", "none", "pbt"]),
    st.integers(1, 14),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_neither_speed_nor_kills_change_a_search(scheduler, num_trials, slots, seed) -> None:
    first = begun(scheduler=scheduler, slots=slots)
    quiet = play(first, num_trials, 0, workers=slots)
    wild = play(first, num_trials, seed, workers=1 + seed % 5, kills=0.2)
    assert wild == quiet
    assert len(quiet.trials) == len(quiet.ended) == num_trials


def test_more_trials_go_on_where_fewer_ended() -> None:
    few, many = (play(begun(), count, 0) for count in (9, 15))
    for number, trial in few.trials.items():
        assert many.trials[number] == trial


def test_halving_lets_the_best_third_go_on() -> None:
    search = play(begun(), 60, 0)
    at = [sum(step in t.rungs for t in search.trials.values()) for step in (10, 30, 90)]
    assert at[0] > 2 * at[1] > 2 * at[2] > 0
    assert search.count("pruned") + search.count("finished") + search.count("failed") == 60
    finished = min(t.mean_iu for t in search.finished()[-3:])
    pruned = [t for t in search.trials.values() if t.status == "pruned"]
    assert np.median([t.rungs[10] for t in pruned]) < finished / 9 * 1.01
    assert "at step 10: mean IU" in pruned[0].reason


def test_a_population_goes_on_from_its_best() -> None:
    search = play(begun(scheduler="pbt", slots=2), 8, 0)
    cloned = [t for t in search.trials.values() if t.clones]
    assert cloned
    assert all(step in (10, 30) for t in cloned for step in t.clones)
    for trial in cloned:
        for step, source in trial.clones.items():
            assert search.trials[source].rungs[step] > trial.rungs[step]
    assert all(t.point != t.first for t in cloned)
    assert {t.status for t in search.trials.values()} <= {"finished", "failed"}


def test_a_search_of_failures_is_halted_and_says_the_last() -> None:
    first = begun(scheduler="none", space={LR: {"log": (8e-3, 1e-2)}})
    search = Search.fold([first.model_dump_json().encode()])
    for number in range(3):
        schedule = Schedule(search, 20, lambda n, over: {LR: 9e-3}, max_failed_frac=0.5)
        assert not schedule.halted
        for event in schedule.decisions:
            search = tell(search, event)
        search = search.after(Failed(number=number, step=4, reason="the loss became inf"))
    schedule = Schedule(search, 20, lambda n, over: {LR: 9e-3}, max_failed_frac=0.5)
    assert schedule.ready() == []
    assert schedule.halted == (
        "3 of the 3 trials that are over failed, more than the 50% of --max-failed; "
        "the last: the loss became inf"
    )


def test_sessions_are_no_part_of_the_schedule() -> None:
    one = play(begun(), 4, 0)
    two = Search.fold([begun().model_dump_json().encode()]).after(SessionBegun(at=5.0))
    assert Schedule(two, 4, draw).ready() == Schedule(Search(begun()), 4, draw).ready()
    assert one.sessions == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_the_best_of_all_is_never_pruned(before, reduction) -> None:
    assert halving(max(before), before, reduction) is None
    assert below_median([max(before)], [[b] for b in before]) is None
    assert halving(0.5, [], reduction) is None


@pytest.mark.parametrize(("score", "goes_on"), [(0.61, False), (0.71, True), (0.8, True)])
def test_of_ten_the_best_third_begins_between_the_sixth_and_the_seventh(score, goes_on) -> None:
    why = halving(score, [i / 10 for i in range(1, 11)], 3)
    assert (why is None) == goes_on
    assert why is None or "best 1/3 of the 10 trials before it, from 0.7000 on" in why


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1), min_size=1), st.integers(0, 99))
def test_who_is_cloned_is_no_better_than_whom_it_is_cloned_from(scores, seed) -> None:
    chosen = clones(scores, seed, 10)
    assert all(scores[source] >= scores[number] for number, source in chosen.items())
    assert not set(chosen) & set(chosen.values())
    assert len(chosen) == (len(scores) > 1) * max(1, len(scores) // 4)


@given(st.floats(1e-5, 1e-2), st.integers(0, 99))
def test_a_perturbed_value_moves_within_its_bounds(lr, seed) -> None:
    moved = perturbed({LR: lr}, SPACE, seed, 10, 4)[LR]
    assert 1e-5 <= moved <= 1e-2
    assert any(math.isclose(moved, np.clip(lr * f, 1e-5, 1e-2)) for f in (0.8, 1.25))
