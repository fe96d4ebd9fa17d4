"""The search as its user has it: real trials, real kills, a real MLflow store."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
from tests.conftest import TINY
from tests.server import Server
from tuning.records import Search
from tuning.shelf import Shelf, shelf_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def command(store: Path, verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tuning", verb, *arguments]


def search(store: Path, *arguments: str) -> list[str]:
    """A search of trials of 4 epochs of 3 steps, two at a time."""
    values = [f"--set={value}" for value in (*TINY, "finetune.epochs=4", f"store={store}")]
    return command(store, "search", "demo", *values, "--concurrent", "2", *arguments)


def run(line: list[str]) -> str:
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One for all, so that data and weights are made once."""
    return tmp_path_factory.mktemp("search") / "store"


def so_far(store: Path, name: str) -> Search | None:
    path = shelf_of(store, name).journal
    return Search.read(path) if path.exists() and path.stat().st_size else None


def start(line: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("w") as file:
        return subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True)


def wait_for_rungs(store: Path, name: str, count: int, process, output: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        found = so_far(store, name)
        if found and sum(len(t.rungs) for t in found.trials.values()) >= count:
            return
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)


def kill_a_trial() -> None:
    """SIGKILL to a process that trains one, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"Trainable.train" in cmdline.read_bytes():
                    os.kill(int(cmdline.parent.name), signal.SIGKILL)
                    return
        time.sleep(0.05)
    raise AssertionError("no trial is being trained")


@pytest.fixture(scope="module")
def quiet(store, tmp_path_factory) -> Iterator[TrackingClient]:
    """An undisturbed search, and the server that it told everything."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    run(search(store, "--trials", "4", "--name", "quiet", f"--set=tracking.uri={server.uri}"))
    yield TrackingClient(TrackingSpec(uri=server.uri), store)
    server.kill()


def test_a_server_is_told_everything_by_trials_side_by_side(store, quiet) -> None:
    require_all_told(quiet, shelf_of(store, "quiet"))


def test_a_search_that_is_killed_is_the_search_that_was_not(store, quiet, tmp_path) -> None:
    """Driver and Ray killed; then a trial's process; then left alone."""
    line, output = search(store, "--trials", "4", "--name", "killed"), tmp_path / "output"
    process = start(line, output)
    try:
        wait_for_rungs(store, "killed", 2, process, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(command(store, "resume", "killed", "--store", str(store)), output)
    try:
        wait_for_rungs(store, "killed", 3, process, output)
        kill_a_trial()
        assert process.wait(600) == 0, output.read_text()
    finally:
        process.kill()
    whole, killed = (shelf_of(store, name).read()[0] for name in ("quiet", "killed"))
    assert list(killed.trials) == list(whole.trials) == list(range(4))
    assert killed.ended == whole.ended
    for number, trial in whole.trials.items():
        other = killed.trials[number]
        assert (other.point, other.rungs, other.kept) == (trial.point, trial.rungs, trial.kept)
        assert (other.status, other.reason) == (trial.status, trial.reason)
    require_all_told(TrackingClient(TrackingSpec(), store), shelf_of(store, "killed"))
    require_best_runs(store, killed)


def require_all_told(tracker: TrackingClient, shelf: Shelf) -> None:
    """One run for the search, one for each trial; each step once; the page; the challenger."""
    search = shelf.read()[0]
    runs = tracker.client.search_runs([tracker.experiment])
    parent = next(r for r in runs if r.info.run_name == f"search {shelf.folder.name}")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    assert len(children) == len(search.trials)
    for child in children:
        trial = search.trials[int(child.info.run_name.removeprefix("trial "))]
        assert child.info.status == "FINISHED"
        assert child.data.tags["fcn.ended"].startswith(trial.status)
        assert child.data.tags["fcn.best"] == str(trial == search.best()).lower()
        steps = [step for step, _ in tracker.history(child.info.run_id, "train/loss")]
        assert steps == list(range(1, trial.steps + 1))
        scores = dict(tracker.history(child.info.run_id, "val/mean_iu"))
        assert {step: scores[step] for step in trial.rungs} == trial.rungs
        assert (
            float(child.data.params["finetune.optimizer.lr"])
            == trial.point["finetune.optimizer.lr"]
        )
    artifacts = {a.path for a in tracker.client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/search.html", "report/map.png", "report/curves.png"} <= artifacts
    version = tracker.client.get_model_version_by_alias("demo", "challenger")
    assert float(version.tags["mean_iu"]) == pytest.approx(search.best().mean_iu)


def require_best_runs(store: Path, killed: Search) -> None:
    """Its net is not trained again, and the gate decides on the version that is there."""
    said = run(command(store, "best", "killed", "--store", str(store), "--run"))
    assert "finetune-8s unchanged" in said
    assert "evaluate unchanged" in said
    assert "models:/demo/1 took @champion" in said
    assert f"mean IU {killed.best().mean_iu:.4f}" in said


@pytest.mark.slow
def test_trials_of_two_workers_and_one_that_fails(store, tmp_path) -> None:
    """The failure is shown with its cause, the others go on."""
    space = tmp_path / "space.yaml"
    space.write_text("finetune.optimizer.lr: {choice: [1.0e+30, 1.0e+29]}")
    said = run(
        search(
            store,
            *("--trials", "2", "--workers", "2", "--name", "wide", "--space", str(space)),
            *("--sampler", "random", "--scheduler", "none"),
        )
    )
    assert "trial 1 failed" in said
    wide = so_far(store, "wide")
    assert [t.status for t in wide.trials.values()] == ["finished", "failed"]
    assert "became nan at step" in wide.trials[1].reason
    assert wide.trials[0].rungs.keys() == {12}
