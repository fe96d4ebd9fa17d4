"""The order of all work is a pure function of names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import sampler
from pipeline.data.sampler import (
    BatchSchedule,
    epoch_order,
    seed_of,
    share,
    windowed_order,
    windows_of,
)

WORK = {
    "global_batch": st.integers(1, 8).map(lambda n: 4 * n),
    "micro_batch": st.sampled_from([1, 2, 4]),
    "epochs": st.integers(1, 3),
    "seed": st.integers(0, 9),
}
rows = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any).map(tuple)
windowed = st.tuples(rows, st.integers(1, 10)).flatmap(
    lambda cut: st.builds(
        BatchSchedule,
        num_samples=st.just(sum(cut[0])),
        rows=st.just(cut[0]),
        window=st.just(cut[1]),
        **WORK,
    )
)
plans = st.builds(BatchSchedule, num_samples=st.integers(1, 60), **WORK) | windowed


@given(plans, st.integers(1, 5))
def test_workers_compute_every_sample_of_an_epoch_once(plan, world_size) -> None:
    seen: dict[int, list[int]] = {}
    for rank in range(world_size):
        for unit in plan.shares(0, rank, world_size):
            if not unit.void:
                seen.setdefault(unit.epoch, []).extend(unit.samples)
    assert set(seen) == set(range(plan.epochs))
    assert all(sorted(samples) == list(range(plan.num_samples)) for samples in seen.values())


@given(plans, st.integers(1, 5))
def test_any_number_of_workers_computes_the_same_units_of_a_step(plan, world_size) -> None:
    for step in (0, plan.num_steps - 1):
        mine = [u for r in range(world_size) for u in plan.shares(step, r, world_size)]
        real = [u for u in mine if u.step == step and not u.void]
        assert real == plan.micro_batches(step)


@given(plans, st.integers(1, 4), st.data())
def test_every_worker_has_work_in_every_step_and_a_resume_goes_on_the_same(
    plan, world_size, data
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    whole = list(plan.shares(0, rank, world_size))
    assert sorted({u.step for u in whole}) == list(range(plan.num_steps))
    first = data.draw(st.integers(0, plan.num_steps))
    assert list(plan.shares(first, rank, world_size)) == [u for u in whole if u.step >= first]


def shard_of(plan: BatchSchedule, sample: int) -> int:
    return next(i for i in range(len(plan.rows)) if sample < sum(plan.rows[: i + 1]))


@given(windowed)
def test_samples_come_from_a_window_of_shards_at_a_time(plan) -> None:
    for epoch in range(plan.epochs):
        windows = windows_of(len(plan.rows), plan.window, plan.seed, epoch)
        came = [shard_of(plan, sample) for sample in plan.order(epoch)]
        for shards in windows:
            size = sum(plan.rows[s] for s in shards)
            assert set(came[:size]) <= set(shards)
            came = came[size:]
        assert came == []


@given(windowed)
def test_what_a_step_needs_is_known_and_is_two_windows_at_most(plan) -> None:
    for step in range(plan.num_steps):
        needed = plan.needed(step)
        assert len(needed) <= 2 * plan.window
        assert shard_of(plan, plan.micro_batches(step)[0].samples[0]) in needed[: plan.window]


def test_a_window_of_all_shards_shuffles_everything() -> None:
    order = windowed_order((3, 4, 5), 3, 0, 0).tolist()
    assert sorted(order) == list(range(12))
    assert [shard_of(BatchSchedule(12, 4, 4, 1, 0, (3, 4, 5)), s) for s in order] != sorted(order)
    assert order == windowed_order((3, 4, 5), 3, 0, 0).tolist()
    assert order != windowed_order((3, 4, 5), 3, 0, 1).tolist()


@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
def test_a_resume_does_the_same_little_work_at_any_position(monkeypatch, position) -> None:
    """One permutation, one step's units: nothing of what went before is gone through."""
    plan = BatchSchedule(num_samples=100_000, global_batch=16, micro_batch=4, epochs=50, seed=0)
    calls = []
    for name in ("epoch_order", "share"):
        real = getattr(sampler, name)
        monkeypatch.setattr(sampler, name, lambda *a, f=real, n=name: (calls.append(n), f(*a))[1])
    first = int(position * plan.num_steps)
    assert next(plan.shares(first, 1, 2)).step == first
    assert calls == ["epoch_order", "share"]


@given(st.integers(0, 100), st.integers(1, 9))
def test_shares_are_whole_and_even(count, world_size) -> None:
    parts = [share(count, rank, world_size) for rank in range(world_size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_orders_differ_by_epoch_and_seed_but_not_by_process() -> None:
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 1, 0).tolist()
    assert epoch_order(5, 0, 0).tolist() == [1, 4, 2, 0, 3]
    assert seed_of("augment", 0, 1, "a") != seed_of("augment", 0, 11, "a")
