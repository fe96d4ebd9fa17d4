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
from pipeline.storage.store import Store
from pipeline.tracking.client import TrackingClient
from tests.conftest import TINY
from tests.server import Server
from tuning.records import Records, Search, Trial

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


OWN_RAY = {"RAY_ADDRESS": "local"}
"""Not one that another test may have started on this machine."""


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tuning", verb, *arguments]


def search(store: Path | str, *arguments: str, concurrent: str = "1") -> list[str]:
    """A search of trials of 4 epochs of 3 steps, one at a time."""
    values = [f"--set={value}" for value in (*TINY, "finetune.epochs=4", f"store={store}")]
    return command("search", "demo", *values, "--concurrent", concurrent, *arguments)


def run(line: list[str]) -> str:
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | OWN_RAY)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One for all, so that data and weights are made once."""
    return tmp_path_factory.mktemp("search") / "store"


def so_far(store: Path | str, name: str) -> Search | None:
    records = Records(Store(store), name)
    return records.read()[0] if records.store.read_json(f"{records.folder}/search.json") else None


def start(line: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("w") as file:
        return subprocess.Popen(
            line, stdout=file, stderr=file, start_new_session=True, env=os.environ | OWN_RAY
        )


def wait_for_scores(store: Path, name: str, count: int, process, output: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        found = so_far(store, name)
        if found and sum(len(t.scores) for t in found.trials.values()) >= count:
            return
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def kill_a_process(of: bytes, group: int) -> None:
    """SIGKILL to a process of a session that does something, as soon as there is one."""
    os.kill(wait_for_process(of, group), signal.SIGKILL)


def wait_for_process(of: bytes, group: int) -> int:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                pid = int(cmdline.parent.name)
                if of in cmdline.read_bytes() and os.getsid(pid) == group:
                    return pid
        time.sleep(0.02)
    raise AssertionError(f"no process does {of.decode()}")


def without_times(trial: Trial) -> dict[str, object]:
    return trial.model_dump(exclude={"seconds"})


@pytest.fixture(scope="module")
def quiet(store, tmp_path_factory) -> Iterator[TrackingClient]:
    """An undisturbed search, and the server that got everything."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    run(search(store, "--trials", "4", "--name", "quiet", f"--set=tracking.uri={server.uri}"))
    yield TrackingClient(TrackingSpec(uri=server.uri), store)
    server.kill()


def test_a_server_gets_everything(store, quiet) -> None:
    require_all_logged(quiet, so_far(store, "quiet"))


def test_a_search_that_is_killed_is_the_search_that_was_not(store, quiet, tmp_path) -> None:
    """Driver and Ray killed; then a trial's process; then SIGTERM; then left alone."""
    line, output = search(store, "--trials", "4", "--name", "killed"), tmp_path / "output"
    process = start(line, output)
    try:
        wait_for_scores(store, "killed", 2, process, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    resume = command("resume", "killed", "--store", str(store))
    process = start(resume, output)
    try:
        kill_a_process(b"Trainable.train", process.pid)
        wait_for_scores(store, "killed", 5, process, output)
        process.terminate()
        assert process.wait(200) != 0
        assert "lost its process and goes on" in one_line(output)
        assert "stopped by SIGTERM; the same command goes on" in one_line(output)
        process = start(resume, output)
        assert process.wait(600) == 0, output.read_text()
    finally:
        process.kill()
    whole, killed = so_far(store, "quiet"), so_far(store, "killed")
    assert [without_times(t) for t in killed.trials.values()] == [
        without_times(t) for t in whole.trials.values()
    ]
    require_all_logged(TrackingClient(TrackingSpec(), store), killed)
    require_best_runs(store, killed)


def one_line(output: Path) -> str:
    return re.sub(r"\s+", " ", output.read_text())


def require_all_logged(client: TrackingClient, search: Search) -> None:
    """One run for the search, one for each trial; each step once; the page; the challenger."""
    runs = client.client.search_runs([client.experiment])
    parent = next(r for r in runs if r.info.run_name == f"search {search.plan.name}")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    assert len(children) == len(search.trials) == 4
    for child in children:
        trial = search.trials[int(child.info.run_name.removeprefix("trial "))]
        assert child.info.status == "FINISHED"
        assert child.data.tags["fcn.ended"].startswith(trial.status)
        assert child.data.tags["fcn.best"] == str(trial == search.best()).lower()
        steps = [step for step, _ in client.history(child.info.run_id, "train/loss")]
        assert steps == list(range(1, trial.steps + 1))
        scores = dict(client.history(child.info.run_id, "val/mean_iu"))
        assert scores == {score.step: score.mean_iu for score in trial.scores}
        assert (
            float(child.data.params["finetune.optimizer.lr"])
            == trial.point["finetune.optimizer.lr"]
        )
    artifacts = {a.path for a in client.client.list_artifacts(parent.info.run_id, "report")}
    plan = search.plan
    page = f"report/search-{plan.name}-{plan.created[:10]}-{plan.data[:8]}.html"
    assert {page, "report/map.png", "report/curves.png"} <= artifacts
    version = client.client.get_model_version_by_alias("demo", "challenger")
    assert float(version.tags["mean_iu"]) == pytest.approx(search.best().mean_iu)


def require_best_runs(store: Path, killed: Search) -> None:
    """Its net is not trained again, and the gate decides on the version that is there."""
    said = run(command("best", "killed", "--store", str(store), "--run"))
    assert "finetune-8s unchanged" in said
    assert "evaluate unchanged" in said
    assert "models:/demo/1 took @champion" in said
    assert f"mean IU {killed.best().mean_iu:.4f}" in said


def test_the_example_of_the_documentation_runs(store) -> None:
    """A scheduler and a searcher of one's own."""
    text = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    tiny = [*TINY, "finetune.epochs=4", f"store={store}"]
    small = {
        'load_recipe("demo")': f'load_recipe("demo", {tiny!r})',
        "trials=20": "trials=3, concurrent=1",
        "20_000": "88",
        "1_000": "22",
    }
    for old, new in small.items():
        assert old in code
        code = code.replace(old, new)
    run([sys.executable, "-c", code])
    found = so_far(store, "own")
    assert (found.plan.sampler, found.plan.scheduler) == ("halves", "Halving")
    rates = [trial.point["finetune.optimizer.lr"] for trial in found.trials.values()]
    assert len(rates) == 3
    assert rates[0] / 2 in rates


@pytest.mark.slow
def test_a_search_in_a_bucket_goes_on_after_a_kill(s3, tmp_path) -> None:
    """Two trials side by side, of which one fails; the failure is shown with its cause."""
    space = tmp_path / "space.yaml"
    space.write_text("finetune.optimizer.lr: {choice: [1.0e+30, 1.0e+29]}")
    output = tmp_path / "output"
    line = search(
        s3,
        *("--trials", "2", "--name", "away", "--space", str(space), "--sampler", "random"),
        concurrent="2",
    )
    process = start(line, output)
    try:
        wait_for_scores(s3, "away", 1, process, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = run(line)
    assert "trial 1 failed" in said or so_far(s3, "away").trials[1].status == "failed"
    found = so_far(s3, "away")
    assert [t.status for t in found.trials.values()] == ["finished", "failed"]
    assert "became nan at step" in found.trials[1].reason
    assert len(found.trials[0].scores) == 4


@pytest.mark.slow
def test_trials_of_two_workers_survive_a_killed_worker_and_a_killed_process(
    store, tmp_path
) -> None:
    """On two cores: a trial whose workers were not freed would block the next for ever."""
    arguments = ("--trials", "3", "--workers", "2", "--sampler", "random", "--seed", "3")
    run(search(store, *arguments, "--name", "whole"))
    best = so_far(store, "whole").best().number
    begun = [*(store / f"searches/whole/trials/{best}/0").glob("attempt-*")]
    assert len(begun) == 1  # its workers were started once
    line = search(store, *arguments, "--name", "wide")
    output = tmp_path / "output"
    process = start(line, output)
    try:
        wait_for_process(
            b"TrainController", process.pid
        )  # it reserves room; no worker is there yet
        kill_a_process(b"Trainable.train", process.pid)
        wait_for_scores(store, "wide", 1, process, output)
        kill_a_process(b"RayTrainWorker", process.pid)
        wait_for_scores(store, "wide", 2, process, output)
        kill_a_process(b"Trainable.train", process.pid)
        assert process.wait(900) == 0, output.read_text()
        assert "lost its process and goes on" in one_line(output)
    finally:
        process.kill()
    whole, wide = so_far(store, "whole"), so_far(store, "wide")
    assert [without_times(t) for t in wide.trials.values()] == [
        without_times(t) for t in whole.trials.values()
    ]
    assert wide.trials[0].status == "finished"
