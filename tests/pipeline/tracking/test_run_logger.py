"""What a flow logs on a real MLflow store: in order and once, while MLflow is away too."""

import logging
import signal
import time
from pathlib import Path

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.errors import OutageError, TrackingError
from pipeline.flow import Flow
from pipeline.results import QUARANTINE, REPORT
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Marker
from pipeline.tracking import run_logger
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.run_logger import FlowLogger, status_after
from pipeline.training.state import History
from tests.conftest import a_dataset, tiny

HISTORY = [*((step, {"train/loss": 1.0 / step}) for step in range(1, 7)), (6, {"val/mean_iu": 0.5})]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """With an MLflow database, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    TrackingClient(TrackingSpec(), folder)
    return folder


def logger(store: Path, name: str) -> FlowLogger:
    return FlowLogger(tiny(), store, name, lambda key: Marker(ObjectStore(store), f"marks/{key}"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(signal.SIGTERM), "KILLED"),
        (ValueError("a bug"), "FAILED"),
    ],
)
def test_what_ends_a_flow_is_the_status_of_its_runs(store, error, status) -> None:
    def flow() -> None:
        with (
            logger(store, status) as tracked,
            tracked.phase("finetune-8s", f"{status}-phase") as sink,
        ):
            sink(HISTORY[:2])
            raise error

    with pytest.raises(type(error)):
        flow()
    tracker = TrackingClient(TrackingSpec(), store)
    parent = tracker.find_run(status)
    child = tracker.find_run(f"{status}-phase", parent)
    for run in (parent, child):
        assert tracker.client.get_run(run).info.status == status
    assert [step for step, _ in tracker.history(child, "train/loss")] == [1, 2]
    assert not (store / "marks" / f"{status}-phase").exists()


def test_a_run_that_ended_by_itself_is_finished() -> None:
    assert status_after(None) == "FINISHED"


@pytest.fixture
def finished(store) -> Flow:
    """A flow that trained while MLflow was away: its results are there and no mark."""
    flow = Flow(tiny("finetune.init=scratch", f"store={store}"))
    ingest, phase = flow.steps["ingest"], flow.steps["finetune-8s"]
    pixels = {"train": [22] * 5, "val": [7] * 5}
    data = a_dataset(class_px=pixels).model_dump(mode="json")
    with flow.store.publish(ingest.stage.folder, ingest.key, data) as draft:
        for name in (QUARANTINE, REPORT):
            (draft / name).write_text("")
    net = {"folder": "moved", "steps": 6, "metrics": {"val/mean_iu": 0.5}}
    with flow.store.publish(phase.stage.folder, phase.key, net) as draft:
        history = History()
        for row in HISTORY:
            history.add(*row)
        history.write(draft / "history.arrow")
    return Flow(flow.recipe)


def test_the_next_command_logs_what_mlflow_lacks_of_a_phase_and_the_one_after_nothing(
    store, finished
) -> None:
    phase = finished.steps["finetune-8s"]
    tracker = TrackingClient(TrackingSpec(), store)
    begun = tracker.open_run("finetune-8s", phase.key, tracker.open_run("demo", phase.key))
    tracker.log_rows(begun, HISTORY[:4])  # MLflow went away after these

    report = finished.run("finetune")
    assert [how for _, how, _ in report.steps] == ["unchanged", "unchanged"]
    assert tracker.find_phase(phase.key) == begun
    assert tracker.history(begun, "train/loss") == [(s, 1.0 / s) for s in range(1, 7)]
    assert tracker.history(begun, "val/mean_iu") == [(6, 0.5)]
    assert tracker.client.get_run(begun).info.status == "FINISHED"
    assert report.tracking == tracker.uri

    assert Flow(finished.recipe).run("finetune").tracking is None


class Away:
    """An MLflow that refuses the connection until it is set to come back."""

    def __init__(self) -> None:
        self.back = False
        self.attempts = 0
        self.took: list[int] = []

    def take(self, number: int) -> None:
        self.attempts += 1
        if not self.back:
            raise OutageError("MLflow at here is away (connection refused)")
        self.took.append(number)


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(run_logger, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(run_logger, "WAIT_S", 0.2)


def test_what_is_asked_during_an_outage_is_done_in_order_and_logged_twice(
    store, impatient, caplog
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    server = Away()
    with logger(store, "in order") as runs:
        began = time.monotonic()
        for number in range(200):
            runs.do(lambda _, number=number: server.take(number))
        runs.after(lambda: server.took.append(-1))
        assert time.monotonic() - began < 0.5
        assert 1 <= server.attempts < 10
        assert not runs.wait(0.3)
        assert server.took == []
        server.back = True
        assert runs.wait(10)
        assert server.took == [*range(200), -1]
    texts = [text for text in caplog.messages if "away" in text]
    assert len(texts) == 2
    assert "away (connection refused) since" in texts[0]
    assert "the flow goes on" in texts[0]
    assert "is back" in texts[1]


def test_attempts_become_rarer_while_it_is_away(store, impatient) -> None:
    server = Away()
    with logger(store, "rarer") as runs:
        runs.do(lambda _: server.take(1))
        assert not runs.wait(1)
        assert 3 <= server.attempts <= 6  # after 0.05, 0.1, 0.2, 0.4 s
        server.back = True


def test_rows_of_an_outage_are_sent_together_when_it_is_over(store, impatient) -> None:
    server = Away()
    with logger(store, "together") as runs, runs.phase("finetune-8s", "together-phase") as sink:
        runs.do(lambda _: server.take(1))
        for step in range(1, 51):
            sink([(step, {"train/loss": 1.0 / step})])
        assert len(runs._waiting) == 2
        server.back = True
        assert runs.wait(10)
    tracker = TrackingClient(TrackingSpec(), store)
    loss = tracker.history(tracker.find_phase("together-phase"), "train/loss")
    assert loss == [(step, 1.0 / step) for step in range(1, 51)]


def test_a_refusal_is_raised_by_all_later_calls_but_runs_are_closed(store, impatient) -> None:
    def refuse(_: TrackingClient) -> None:
        raise TrackingError("401")

    def flow() -> None:
        with logger(store, "refused") as runs, runs.phase("finetune-8s", "refused-phase"):
            with pytest.raises(TrackingError, match="401"):
                runs.do(refuse)
            for call in (
                runs.check,
                lambda: runs.do(lambda _: pytest.fail("carried out")),
                lambda: runs.after(lambda: pytest.fail("done")),
                lambda: runs.log_rows(runs.run, HISTORY),
            ):
                with pytest.raises(TrackingError, match="401"):
                    call()
            runs.history("finetune-8s", "refused-phase", HISTORY)

    with pytest.raises(TrackingError, match="401"):
        flow()
    tracker = TrackingClient(TrackingSpec(), store)
    for run in (tracker.find_run("refused"), tracker.find_phase("refused-phase")):
        assert tracker.client.get_run(run).info.status == "FAILED"
    assert not (store / "marks" / "refused-phase").exists()


def test_the_end_says_how_much_is_left_and_sets_no_marker(store, impatient, caplog) -> None:
    server = Away()
    began = time.monotonic()
    with logger(store, "left") as runs:
        with runs.phase("finetune-8s", "left-phase") as sink:
            runs.do(lambda _: server.take(1))
            sink(HISTORY[:2])
        runs.history("finetune-8s", "left-phase", HISTORY)
    assert time.monotonic() - began < 10
    assert "5 operations wait; the same command makes up for them" in caplog.text
    assert not (store / "marks" / "left-phase").exists()


def test_a_phase_is_complete_and_marked_once_its_history_is_logged(store) -> None:
    with logger(store, "whole") as runs:
        with runs.phase("finetune-8s", "whole-phase") as sink:
            sink(HISTORY[:3])  # the others were lost on their way
        assert not (store / "marks" / "whole-phase").exists()
        runs.history("finetune-8s", "whole-phase", HISTORY)
        assert (store / "marks" / "whole-phase").exists()
    tracker = TrackingClient(TrackingSpec(), store)
    child = tracker.find_phase("whole-phase")
    assert [step for step, _ in tracker.history(child, "train/loss")] == list(range(1, 7))
    assert tracker.client.get_run(child).info.status == "FINISHED"
