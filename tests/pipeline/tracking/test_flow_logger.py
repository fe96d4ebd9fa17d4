"""What a flow tells MLflow, on a real store: how runs end, and what the next command makes up for."""

import signal
from pathlib import Path

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.flow import Flow
from pipeline.storage.store import Mark
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.flow_logger import FlowLogger
from pipeline.tracking.run_logger import status_after
from pipeline.training.state import History
from tests.conftest import tiny

HISTORY = [*((step, {"train/loss": 1.0 / step}) for step in range(1, 7)), (6, {"val/mean_iu": 0.5})]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """With an MLflow database, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    TrackingClient(TrackingSpec(), folder)
    return folder


def told(store: Path, name: str) -> FlowLogger:
    return FlowLogger(tiny(), store, name, lambda key: Mark(store / "marks" / key))


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
            told(store, status) as tracked,
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
    data = {
        "folder": "moved",
        "files": {"train": [], "val": []},
        "counts": {"train": 22, "val": 7},
        "class_px": {},
        "rows": {},
        "num_seen": 29,
        "num_quarantined": 0,
        "digest": "0123",
    }
    with flow.store.publish(ingest.kind, ingest.key, data) as draft:
        (draft / "quarantine.csv").write_text("")
    net = {"folder": "moved", "steps": 6, "metrics": {"val/mean_iu": 0.5}}
    with flow.store.publish(phase.kind, phase.key, net) as draft:
        history = History()
        for row in HISTORY:
            history.add(*row)
        history.write(draft / "history.arrow")
    return Flow(flow.recipe)


def test_the_next_command_tells_what_a_phase_had_to_tell_and_the_one_after_nothing(
    store, finished
) -> None:
    phase = finished.steps["finetune-8s"]
    tracker = TrackingClient(TrackingSpec(), store)
    begun = tracker.open_run("finetune-8s", phase.key, tracker.open_run("demo", phase.key))
    tracker.log_rows(begun, HISTORY[:4], 1)  # MLflow went away after these

    report = finished.run("finetune")
    assert [how for _, how, _ in report.steps] == ["unchanged", "unchanged"]
    assert tracker.find_phase(phase.key) == begun
    assert tracker.history(begun, "train/loss") == [(s, 1.0 / s) for s in range(1, 7)]
    assert tracker.history(begun, "val/mean_iu") == [(6, 0.5)]
    assert tracker.client.get_run(begun).info.status == "FINISHED"
    assert report.tracking == tracker.uri

    assert Flow(finished.recipe).run("finetune").tracking is None


def test_a_net_of_an_earlier_version_has_nothing_to_tell(store, finished) -> None:
    phase = finished.steps["finetune-8s"]
    finished.mark(phase.key).remove()
    (finished.store.folder(phase.kind, phase.key) / "history.arrow").unlink()
    assert finished.run("finetune").tracking is None


def test_how_long_to_wait_changes_no_fingerprint() -> None:
    keys = [
        [step.key for step in Flow(tiny(f"tracking.max_wait_s={s}")).steps.values()] for s in (1, 9)
    ]
    assert keys[0] == keys[1]
