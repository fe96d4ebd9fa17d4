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
    smallest_micro_batch,
)

WORK = {
    "global_batch": st.integers(1, 8).map(lambda n: 4 * n),
    "micro_batch": st.sampled_from([1, 2, 4]),
    "epochs": st.integers(1, 3),
    "seed": st.integers(0, 9),
}
plans = st.builds(BatchSchedule, num_samples=st.integers(1, 60), **WORK)


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


@given(plans)
def test_the_smallest_micro_batch_is_that_of_the_plan(plan) -> None:
    sizes = [len(unit.samples) for unit in plan.shares(0, 0, 1)]
    assert min(sizes) == smallest_micro_batch(plan.num_samples, plan.global_batch, plan.micro_batch)


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
