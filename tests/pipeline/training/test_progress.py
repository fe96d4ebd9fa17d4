"""Metrics reach the sink in order, from the driver's node, for as long as the block lasts."""

import threading
import time

import pytest
import ray

from pipeline.errors import ClusterError, TrackingError
from pipeline.training import progress
from pipeline.training.progress import NAMESPACE, MetricsForwarder, Worker, start_metrics_actor

pytestmark = pytest.mark.usefixtures("local_ray")


def test_rows_reach_the_sink_in_the_order_in_which_they_came() -> None:
    took: list[tuple[int, dict[str, float]]] = []
    with MetricsForwarder("FCN-8s", "key", 5, took.extend) as watcher:
        for step in range(1, 6):
            ray.get(watcher.actor.push.remote([(step, {"train/loss": float(step)})]))
        ray.get(watcher.actor.push.remote([(5, {"val/mean_iu": 0.5})]))
    assert took == [
        *((s, {"train/loss": float(s)}) for s in range(1, 6)),
        (5, {"val/mean_iu": 0.5}),
    ]


def test_others_see_the_newest_step_under_the_phases_name_until_it_ends() -> None:
    with MetricsForwarder("FCN-8s", "seen", 9, lambda rows: None) as watcher:
        found = ray.get_actor("metrics-seen", namespace=NAMESPACE)
        assert ray.get(found.step.remote()) == 0
        ray.get(watcher.actor.push.remote([(3, {}), (4, {})]))
        ray.get(watcher.actor.push.remote([(1, {}), (2, {})]))  # sent again after a restart
        assert ray.get(found.step.remote()) == 4
    with MetricsForwarder("FCN-8s", "seen", 9, lambda rows: None) as watcher:
        assert ray.get(watcher.actor.step.remote()) == 0


def test_a_phase_that_another_driver_trains_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(progress, "NAME_FREE_S", 0.0)
    with (
        MetricsForwarder("FCN-8s", "taken", 9, lambda rows: None),
        pytest.raises(ClusterError, match="metrics-taken is taken"),
    ):
        MetricsForwarder("FCN-8s", "taken", 9, lambda rows: None)


def test_workers_hear_that_they_are_to_leave_and_what_they_say_is_logged(caplog) -> None:
    with (
        MetricsForwarder("FCN-8s", "leaving", 9, lambda rows: None) as watcher,
        caplog.at_level("WARNING"),
    ):
        assert ray.get(watcher.actor.push.remote([(1, {})])) is False
        watcher.actor.warn.remote("a checkpoint is damaged")
        watcher.stop()
        deadline = time.monotonic() + 30
        while not ray.get(watcher.actor.push.remote([(2, {})])):
            assert time.monotonic() < deadline
    assert "a checkpoint is damaged" in caplog.text


def test_workers_of_a_smaller_group_take_the_place_of_a_larger_one() -> None:
    with MetricsForwarder("FCN-8s", "workers", 9, lambda rows: None) as watcher:
        for rank in (1, 0):
            watcher.actor.join.remote(Worker(rank, "node", 10 + rank), 2)
        assert [w.pid for w in ray.get(watcher.actor.workers.remote())] == [10, 11]
        watcher.actor.join.remote(Worker(0, "node", 20), 1)
        assert [w.pid for w in ray.get(watcher.actor.workers.remote())] == [20]


def test_workers_hear_that_they_are_to_leave_though_the_sink_hangs() -> None:
    hung, in_sink = threading.Event(), threading.Event()

    def sink(rows: list) -> None:
        in_sink.set()
        hung.wait(60)

    with MetricsForwarder("FCN-8s", "hung", 9, sink) as watcher:
        ray.get(watcher.actor.push.remote([(1, {})]))
        assert in_sink.wait(30)
        watcher.stop()
        time.sleep(1)
        assert ray.get(watcher.actor.push.remote([(2, {})])) is True
        hung.set()


def test_a_sink_that_fails_is_left_alone_and_its_error_raised_at_the_end(caplog) -> None:
    calls: list[int] = []

    def refuse(rows: list) -> None:
        calls.append(len(rows))
        raise TrackingError("401")

    def block() -> None:
        with MetricsForwarder("FCN-8s", "refused", 9, refuse) as watcher:
            for step in (1, 2):
                ray.get(watcher.actor.push.remote([(step, {})]))
                time.sleep(1.5)
            watcher.actor.warn.remote("a checkpoint is damaged")

    with pytest.raises(TrackingError, match="401"):
        block()
    assert calls == [1]
    assert "a checkpoint is damaged" in caplog.text  # the thread went on


def test_one_actor_serves_the_trials_of_a_search() -> None:
    actor = start_metrics_actor("search")
    for trial, step in ((3, 1), (4, 1), (3, 2)):
        ray.get(actor.push.remote([(step, {"train/loss": 1.0})], trial))
    rows, _ = ray.get(actor.drain.remote())
    assert {trial: [step for step, _ in of] for trial, of in rows.items()} == {3: [1, 2], 4: [1]}
    assert ray.get(actor.drain.remote()) == ({}, [])
    ray.kill(actor)


def test_an_error_of_the_block_is_not_hidden() -> None:
    with pytest.raises(KeyError), MetricsForwarder("FCN-8s", "key", 1, lambda rows: None):
        raise KeyError


def test_what_training_waits_for_is_logged_at_the_end_of_an_epoch(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    row = {"perf/epoch": 1.0, "perf/images_per_s": 4.0, "perf/wait_frac": 0.75}
    with (
        caplog.at_level("INFO"),
        MetricsForwarder("FCN-8s", "pace", 9, lambda rows: None) as watcher,
    ):
        ray.get(watcher.actor.push.remote([(1, row)]))
    assert "FCN-8s epoch 1: 4.0 images/s, loader-bound (75% of the time" in caplog.text
