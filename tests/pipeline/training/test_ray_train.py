"""A phase trained by Ray's workers: up to a step, taken over by another attempt, asked to stop."""

import dataclasses
import os
import signal

import pyarrow as pa
import pytest

from pipeline import cluster
from pipeline.config.schema import PhaseSpec
from pipeline.data.shards import Row, Shards, write_shard
from pipeline.errors import ClusterError, DataError, SupersededError
from pipeline.signals import STOPS, deferred
from pipeline.storage.object_store import ObjectStore
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.progress import MetricsForwarder
from pipeline.training.ray_train import TrainingTask, train
from pipeline.training.state import HISTORY, History, step_of
from tests.conftest import tiny

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS = 30


def task(shards, until: int | None = None) -> TrainingTask:
    """Ten epochs of three steps by two workers; a checkpoint after each step."""
    recipe = tiny(
        "finetune.init=scratch",
        "finetune.augment.crop_px=[32, 32]",
        "finetune.checkpoint_every_steps=1",
        "cluster.max_failures=3",
    )
    phase = PhaseSpec(stride=32, epochs=10)
    return TrainingTask(recipe, phase, None, shards["train"], shards["val"], until)


def test_an_attempt_that_is_taken_over_stops_and_ray_does_not_try_it_again(
    local_ray, tiny_shards, tmp_path
) -> None:
    files = ObjectStore(tmp_path)
    older, newer = Checkpoints(files, "k"), Checkpoints(files, "k")
    steps: list[int] = []

    def log_rows(rows) -> None:
        steps.extend(step for step, metrics in rows if "train/loss" in metrics)
        saved = any(
            tmp_path.rglob("manifest.json")
        )  # the older attempt has a checkpoint to go on from
        if saved and newer.attempt is None:
            newer.claim()

    with pytest.raises(SupersededError, match="taken over by attempt-000002"):
        train(task(tiny_shards), older, MetricsForwarder("test", "older", STEPS, log_rows))
    assert steps == list(range(1, len(steps) + 1))  # a second try would send the first rows again
    assert len(steps) < STEPS
    reached = step_of(newer.newest()[0])
    assert 1 <= reached < len(steps)

    # What Ray wrote down about the checkpoints of another attempt is never read again.
    for path in tmp_path.rglob("checkpoint_manager_snapshot.json"):
        path.write_text('{"cut sho')
    last = Checkpoints(files, "k")
    found = train(
        task(tiny_shards, until=reached + 2), last, MetricsForwarder("test", "last", STEPS, id)
    )
    assert step_of(found) == reached + 2
    assert found.parent.name == last.attempt
    rows = History.read(found / HISTORY).rows()
    losses = [step for step, metrics in rows if "train/loss" in metrics]
    assert losses == list(range(1, reached + 3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_training_after_a_checkpoint_and_ray_keeps_no_handler(
    local_ray, tiny_shards, tmp_path, number
) -> None:
    begun: list[int] = []

    def log_rows(rows) -> None:
        if rows and not begun:
            begun.append(rows[0][0])
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    before = [signal.getsignal(each) for each in STOPS]
    forwarder = MetricsForwarder("test", f"signal-{number}", STEPS, log_rows)
    with deferred(forwarder.stop) as asked:
        last = train(task(tiny_shards), Checkpoints.in_folder(tmp_path), forwarder)
    assert 1 <= step_of(last) < STEPS
    assert asked.by == number
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_damaged_image_ends_the_training_with_its_name(local_ray, tiny_shards, tmp_path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(tiny_shards["train"].files[0]))).read_all()
    rows = [Row(**row) for row in table.to_pylist()]
    other = bytes([*rows[5].image[:-20], 0, *rows[5].image[-19:]])
    rows[5] = dataclasses.replace(rows[5], image=other)
    write_shard(tmp_path / "x.arrow", rows, "train", tiny().data.class_table())
    damaged = {**tiny_shards, "train": Shards([tmp_path / "x.arrow"])}
    whole = task(damaged)
    once = dataclasses.replace(whole, recipe=whole.recipe.changed(["cluster.max_failures=0"]))
    forwarder = MetricsForwarder("test", "damaged", STEPS, id)
    with pytest.raises(DataError) as caught:
        train(once, Checkpoints.in_folder(tmp_path / "c"), forwarder)
    for words in (rows[5].id, "sha256 differs", "remove"):
        assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_workers_for_which_nothing_comes_free_are_an_error_with_the_arithmetic(
    local_ray, tiny_shards, tmp_path, monkeypatch
) -> None:
    """Two workers fit on this Ray's two CPUs, but somebody has one of them."""
    import ray

    monkeypatch.setenv(cluster.START, "2")
    monkeypatch.setattr(cluster, "BUSY_S", cluster.START_S)

    class Holder:
        def ready(self) -> bool:
            return True

    holder = ray.remote(Holder).options(num_cpus=1).remote()
    assert ray.get(holder.ready.remote())
    forwarder = MetricsForwarder("test", "busy", STEPS, id)
    try:
        with pytest.raises(ClusterError) as caught:
            train(task(tiny_shards), Checkpoints.in_folder(tmp_path / "c"), forwarder)
    finally:
        ray.kill(holder)
    for words in (
        "within 2 s",
        "needs 2 of 1 CPU",
        "2 workers of 1 CPU fit",
        "1 CPU of it is free",
    ):
        assert words in str(caught.value)
