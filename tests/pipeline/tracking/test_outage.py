"""A real MLflow server that goes away under way: the flow never waits, and every row is there once."""

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.errors import TrackingError
from pipeline.storage.store import Mark
from pipeline.tracking import retry_queue
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.flow_logger import FlowLogger
from tests.conftest import tiny
from tests.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.kill()


def tracked(server: Server, folder: Path, name: str, max_wait_s: float) -> FlowLogger:
    recipe = tiny(f"tracking.uri={server.uri}", f"tracking.max_wait_s={max_wait_s}")
    return FlowLogger(recipe, folder, name, lambda key: Mark(folder / key / "tracked"))


def row(step: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"train/loss": 1.0 / step, "train/lr": 0.1})]


def test_while_it_is_away_nothing_waits_and_when_it_is_back_every_row_is_there_once(
    server, tmp_path, monkeypatch
) -> None:
    """Away at the start; back; killed with rows under way; back again."""
    monkeypatch.setattr(retry_queue, "LAST_RETRY_S", 0.5)
    waits_s: list[float] = []
    began = time.monotonic()
    with tracked(server, tmp_path, "flow", 60) as told:
        assert time.monotonic() - began < 20  # refused at once, so known to be away
        with told.phase("finetune-8s", "phase") as sink:

            def tell(step: int) -> None:
                began = time.monotonic()
                sink(row(step))
                waits_s.append(time.monotonic() - began)

            for step in range(1, 101):
                tell(step)
            server.start()
            for step in range(101, 301):
                tell(step)
                time.sleep(0.01)
                if step == 150:
                    server.kill()
            for step in range(200, 301):  # a worker died; the next one tells again
                tell(step)
        assert not (tmp_path / "phase" / "tracked").exists()
        server.start()
        with told.registering() as (tracker, parent):
            child = tracker.find_run("phase", parent)
            loss, lr = (tracker.history(child, key) for key in ("train/loss", "train/lr"))
            assert tracker.client.get_run(child).info.status == "FINISHED"
    assert max(waits_s) < 0.1
    assert loss == [(step, 1.0 / step) for step in range(1, 301)]
    assert lr == [(step, 0.1) for step in range(1, 301)]
    assert (tmp_path / "phase" / "tracked").exists()
    assert tracker.client.get_run(parent).info.status == "FINISHED"


def test_over_http_too_a_metric_sent_twice_is_stored_once(server, tmp_path) -> None:
    server.require()
    spec = TrackingSpec(uri=server.uri)
    first = TrackingClient(spec, tmp_path)
    run = first.open_run("phase", "resent")
    rows = [(step, {"train/loss": 1.0, "val/mean_iu": math.nan}) for step in range(1, 21)]
    first.log_rows(run, rows[:15], 11)
    TrackingClient(spec, tmp_path).log_rows(run, rows, 11)  # knows nothing of what was sent
    assert [step for step, _ in first.history(run, "train/loss")] == list(range(1, 21))
    assert [step for step, _ in first.history(run, "val/mean_iu")] == list(range(1, 21))


def test_a_server_that_hangs_is_waited_for_no_longer_than_the_bound(
    server, tmp_path, caplog
) -> None:
    server.require()
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with tracked(server, tmp_path, "hung", 0.5) as told:
            assert time.monotonic() - began < 3
            with told.phase("finetune-8s", "phase of hung") as sink:
                sink(row(1))
        assert time.monotonic() - began < 6
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert "has not answered for 0.5 s; the flow goes on" in caplog.text
    assert "the same command makes up for them" in caplog.text


def test_registering_without_mlflow_says_that_nothing_is_lost(server, tmp_path) -> None:
    server.kill()

    def flow() -> None:
        with tracked(server, tmp_path, "flow", 0.5) as told:
            with told.phase("finetune-8s", "phase") as sink:
                sink(row(1))
            with told.registering():
                pytest.fail("there is nothing to register with")

    began = time.monotonic()
    with pytest.raises(TrackingError, match="the same command registers it") as error:
        flow()
    assert time.monotonic() - began < 10
    assert f"MLflow at {server.uri} is away" in str(error.value)
    assert not (tmp_path / "phase" / "tracked").exists()
