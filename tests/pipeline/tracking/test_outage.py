"""A real MLflow server that goes away on the way: no training waits, and every row is there once."""

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline.config.schema import TrackingSpec
from pipeline.errors import TrackingError
from pipeline.storage.files import Marker
from pipeline.storage.object_store import ObjectStore
from pipeline.tracking import run_logger
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.run_logger import FlowLogger
from tests.conftest import tiny
from tests.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.kill()


def logger(server: Server, folder: Path, name: str) -> FlowLogger:
    recipe = tiny(f"tracking.uri={server.uri}")
    return FlowLogger(
        recipe, folder, name, lambda key: Marker(ObjectStore(folder), f"{key}/tracked")
    )


def row(step: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"train/loss": 1.0 / step, "train/lr": 0.1})]


def steps(server: Server, folder: Path, phase: str) -> list[int]:
    tracker = TrackingClient(TrackingSpec(uri=server.uri), folder)
    return [step for step, _ in tracker.history(tracker.find_phase(phase), "train/loss")]


@pytest.fixture
def patient(monkeypatch) -> None:
    monkeypatch.setattr(run_logger, "LAST_PAUSE_S", 0.5)
    monkeypatch.setattr(run_logger, "WAIT_S", 60.0)


def test_away_at_the_start_nothing_waits_and_when_it_is_back_metrics_are_in_step(
    server, tmp_path, patient
) -> None:
    waits_s: list[float] = []
    began = time.monotonic()
    with logger(server, tmp_path, "begun") as runs, runs.phase("finetune-8s", "early") as sink:
        assert time.monotonic() - began < 20  # refused at once, so known to be away
        for step in range(1, 101):
            began = time.monotonic()
            sink(row(step))
            waits_s.append(time.monotonic() - began)
        assert max(waits_s) < 5
        assert sum(waits_s) < 10
        server.start()
        assert runs.wait(30)
        assert steps(server, tmp_path, "early") == list(range(1, 101))
        sink(row(101))
        assert steps(server, tmp_path, "early") == list(range(1, 102))


def test_killed_with_rows_on_their_way_every_row_is_there_once_when_it_is_back(
    server, tmp_path, patient
) -> None:
    server.require()
    with logger(server, tmp_path, "flow") as runs:
        with runs.phase("finetune-8s", "phase") as sink:
            for step in range(1, 201):
                sink(row(step))
                if step == 50:
                    server.kill()
            for step in range(100, 201):  # a worker died; the next one sends again
                sink(row(step))
        runs.history("finetune-8s", "phase", [r for step in range(1, 201) for r in row(step)])
        assert not (tmp_path / "phase" / "tracked").exists()
        server.start()
        with runs.registering() as (registry, parent):
            tracker = registry.tracking
            child = tracker.find_run("phase", parent)
            loss, lr = (tracker.history(child, key) for key in ("train/loss", "train/lr"))
            assert tracker.client.get_run(child).info.status == "FINISHED"
    assert loss == [(step, 1.0 / step) for step in range(1, 201)]
    assert lr == [(step, 0.1) for step in range(1, 201)]
    assert (tmp_path / "phase" / "tracked").exists()
    assert tracker.client.get_run(parent).info.status == "FINISHED"


def test_over_http_too_a_metric_sent_twice_is_stored_once(server, tmp_path, monkeypatch) -> None:
    server.require()
    tracker = TrackingClient(TrackingSpec(uri=server.uri), tmp_path)
    run = tracker.open_run("phase", "resent")
    rows = [(step, {"train/loss": 1.0, "val/mean_iu": math.nan}) for step in range(1, 21)]
    send = tracker.client.log_batch

    def lose_the_answer(*args, **kwargs) -> None:
        send(*args, **kwargs)
        raise requests.ConnectionError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", lose_the_answer)
        with pytest.raises(requests.ConnectionError):
            tracker.log_rows(run, rows[:15])
    time.sleep(0.01)
    tracker.log_rows(run, rows)
    assert [step for step, _ in tracker.history(run, "train/loss")] == list(range(1, 21))
    assert [step for step, _ in tracker.history(run, "val/mean_iu")] == list(range(1, 21))


def test_of_a_server_that_hangs_each_attempt_costs_a_timeout_and_most_calls_nothing(
    server, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(run_logger, "WAIT_S", 0.5)
    server.require()
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with logger(server, tmp_path, "hung") as runs:
            assert time.monotonic() - began < 5  # two attempts of a request, then known to be away
            with runs.phase("finetune-8s", "phase of hung") as sink:
                began = time.monotonic()
                for step in range(1, 101):
                    sink(row(step))
                assert time.monotonic() - began < 5
            began = time.monotonic()
        assert time.monotonic() - began < 12
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert "the flow goes on" in caplog.text
    assert "the same command makes up for them" in caplog.text


def test_registering_without_mlflow_says_that_nothing_is_lost(
    server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(run_logger, "WAIT_S", 0.5)
    server.kill()

    def flow() -> None:
        with logger(server, tmp_path, "flow") as runs:
            with runs.phase("finetune-8s", "phase") as sink:
                sink(row(1))
            with runs.registering():
                pytest.fail("there is nothing to register with")

    began = time.monotonic()
    with pytest.raises(TrackingError, match="the same command registers it") as error:
        flow()
    assert time.monotonic() - began < 10
    assert f"MLflow at {server.uri} is away" in str(error.value)
    assert not (tmp_path / "phase" / "tracked").exists()
