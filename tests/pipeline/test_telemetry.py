"""Metrics reach the sink in order, once, also when it is away for a while."""

import time

import pytest
import ray

from pipeline.errors import TrackingError
from pipeline.telemetry import Watcher

pytestmark = pytest.mark.usefixtures("local_ray")


def test_rows_wait_for_a_sink_that_is_away() -> None:
    took: list[tuple[int, dict[str, float]]] = []
    refusals = 2

    def sink(rows) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise TrackingError("away")
        took.extend(rows)

    with Watcher("FCN-8s", 5, sink) as watcher:
        for step in range(1, 6):
            ray.get(watcher.telemetry.push.remote([(step, {"train/loss": float(step)})]))
            time.sleep(0.4)
    assert [step for step, _ in took] == [1, 2, 3, 4, 5]


def test_a_sink_that_stays_away_is_told_at_the_end() -> None:
    def sink(rows) -> None:
        raise TrackingError("gone")

    with pytest.raises(TrackingError, match="gone"), Watcher("FCN-8s", 1, sink) as watcher:
        ray.get(watcher.telemetry.push.remote([(1, {"train/loss": 1.0})]))


def test_an_error_of_the_block_is_not_hidden() -> None:
    with pytest.raises(KeyError), Watcher("FCN-8s", 1, lambda rows: None):
        raise KeyError
