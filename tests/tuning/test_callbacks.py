"""What follows when Tune has news, with real records and a real MLflow store; Tune is stood in for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress

from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
from pipeline.training.state import HISTORY, MANIFEST, History
from tests.conftest import tiny
from tests.tuning.made import LR, begin
from tuning.callbacks import SearchCallback
from tuning.logger import SearchLogger
from tuning.settings import Settings


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory) -> Path:
    """The folder of one database for all; each test has an experiment in it."""
    return tmp_path_factory.mktemp("mlflow")


class Session:
    """A session of a search: the callback, and Tune's part of it."""

    def __init__(self, root: Path, logger: SearchLogger, settings: Settings) -> None:
        recipe = tiny("finetune.epochs=3", "cluster.num_workers=1", f"store={root}")
        records = begin(root, settings, max_images=66, first_images=22)
        self.rows: dict[int, list[Any]] = {}
        self.left = 0
        actor = SimpleNamespace(
            drain=SimpleNamespace(remote=self._drain), stop=SimpleNamespace(remote=self._leave)
        )
        self.callback = SearchCallback(
            recipe, settings, records, logger, actor, Progress(disable=True)
        )
        self.records, self.settings = records, settings

    def _drain(self) -> tuple[dict[int, list[Any]], list[str]]:
        rows, self.rows = self.rows, {}
        return rows, []

    def _leave(self) -> None:
        self.left += 1

    def start(self, number: int) -> None:
        self.records.add(number, {LR: (number + 1) / 1000})
        self.callback.on_trial_start(trial=trial(number))

    def result(self, number: int, **result: Any) -> None:
        self.callback.on_trial_result(trial=trial(number), result=result)

    def score(self, number: int, epoch: int, mean_iu: float, *, done: bool = False) -> None:
        """A validation, whose checkpoint is in the store and whose metrics came before."""
        step = 3 * epoch
        rows = [(s, {"train/lr": 0.1}) for s in range(1, step + 1)]
        rows.append((step, {"val/mean_iu": mean_iu}))
        self.rows.setdefault(number, []).extend(rows[-4:])
        folder = self.records.store.files.local / self.records.checkpoints_of(number)
        folder = folder / "0" / "attempt-000001-00000000" / f"checkpoint_{step:09d}"
        folder.mkdir(parents=True)
        history = History()
        for each in rows:
            history.add(*each)
        history.write(folder / HISTORY)
        (folder / MANIFEST).write_text(f'{{"step": {step}, "files": {{}}}}')
        self.result(number, images=22 * epoch, step=step, mean_iu=mean_iu, done=done)

    def complete(self, number: int) -> None:
        self.callback.on_trial_complete(trial=trial(number))


def trial(number: int, **more: Any) -> Any:
    return SimpleNamespace(config={"number": number}, **more)


@pytest.fixture
def begun(tmp_path, mlflow, monkeypatch):
    """Makes the logger and the session of a search that goes on from the records in a folder."""
    monkeypatch.setattr("tuning.callbacks.ray.get", lambda answer: answer)
    monkeypatch.setattr("tuning.callbacks.free_workers", lambda number: None)
    recipe = tiny(f"tracking.experiment={tmp_path.name}")

    def logger() -> SearchLogger:
        return SearchLogger(recipe, mlflow, "search s", "search-key")

    def session(logger: SearchLogger, **given: Any) -> Session:
        return Session(tmp_path, logger, Settings(name="made", **given))

    return logger, session


def runs(mlflow: Path, tmp_path: Path) -> dict[str, tuple[str, list[int]]]:
    """Status and steps by the name of the run."""
    client = TrackingClient(TrackingSpec(experiment=tmp_path.name), mlflow)
    found = client.client.search_runs([client.experiment])
    steps = {r.info.run_name: client.history(r.info.run_id, "train/lr") for r in found}
    return {r.info.run_name: (r.info.status, [s for s, _ in steps[r.info.run_name]]) for r in found}


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "searches/made/trials").iterdir()}


def test_every_step_is_logged_once_and_the_best_trial_keeps_its_checkpoints(
    begun, mlflow, tmp_path
) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        for number, top in enumerate((0.4, 0.6, 0.5)):
            made.start(number)
            for epoch in (1, 2, 3):
                made.score(number, epoch, top * epoch / 3)
            made.complete(number)
        assert folders(tmp_path) == {"0", "1", "2"}  # their workers may still be saving
        made.callback.close_all()
    assert made.callback.failure is None
    search = made.records.search
    assert [t.status for t in search.trials.values()] == ["finished"] * 3
    assert all(t.logged for t in search.trials.values())
    assert folders(tmp_path) == {"1"}
    assert runs(mlflow, tmp_path) == {
        "search s": ("FINISHED", []),
        **{f"trial {n}": ("FINISHED", list(range(1, 10))) for n in range(3)},
    }


def test_what_the_scheduler_decided_is_recorded_with_the_score(begun) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        made.start(0)
        made.score(0, 1, 0.25, done=True)
        trial = made.records.search.trials[0]
        assert (trial.status, trial.ended) == ("pruned", 0)
        assert "by asha after 33% of its training, at mean IU 0.2500" in trial.reason


def test_what_a_killed_driver_had_not_logged_is_logged_by_the_next(begun, mlflow, tmp_path) -> None:
    """A trial ended, and nothing of that had come to MLflow."""
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        made.start(0)
        for epoch in (1, 2, 3):
            made.score(0, epoch, 0.5)
    assert not made.records.search.trials[0].logged
    with open_logger() as logger:
        again = session(logger)
        again.callback.close_all()
    assert again.records.search.trials[0].logged
    assert runs(mlflow, tmp_path)["trial 0"] == ("FINISHED", list(range(1, 10)))


def test_a_session_that_ends_leaves_its_trials_to_the_next(begun, mlflow, tmp_path) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger, budget="1h")
        for number in (0, 1):
            made.start(number)
            made.score(number, 1, 0.4)
        made.records._written_at -= 3601
        made.callback.on_step_end()
        assert made.callback.ending() == "the budget is spent"
        assert made.left == 1
        made.result(0, stopped=True, step=5)
        made.complete(0)
        made.callback.on_experiment_end()  # trial 1 did not answer
    trials = made.records.search.trials
    assert [t.status for t in trials.values()] == ["stopped", "stopped"]
    assert trials[0].steps == 5
    assert folders(tmp_path) == {"0", "1"}
    statuses = {name: status for name, (status, _) in runs(mlflow, tmp_path).items()}
    assert statuses["trial 0"] == statuses["trial 1"] == "KILLED"
    with open_logger() as logger:
        again = session(logger, budget="2h")
        assert [t.number for t in again.records.search.under_way()] == [0, 1]
        assert again.callback.ending() == ""
        assert (
            again.settings.words_left(again.records.spent_s())
            == ", 60 of 120 min of the budget left"
        )


def test_a_failure_is_an_end_like_any_other_and_too_many_end_the_search(
    begun, mlflow, tmp_path
) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        for number in range(3):
            assert not made.callback.ending()
            made.start(number)
            made.result(number, failed="the loss became nan at step 3", step=2)
            made.complete(number)
    assert made.callback.halted == (
        "3 of the 3 trials that are over failed, more than the 50% of --max-failed; the last: the "
        "loss became nan at step 3"
    )
    assert runs(mlflow, tmp_path)["trial 0"][0] == "FAILED"


def test_a_trial_that_lost_too_many_processes_has_failed(begun) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        made.start(0)
        lost = {"get_error": lambda: "ActorDiedError\nthe worker died", "num_failures": 3}
        made.callback.on_trial_error(trial=trial(0, **lost))
    found = made.records.search.trials[0]
    assert found.status == "failed"
    assert "its process was lost 3 times, more than cluster.max_failures" in found.reason


def test_the_workers_of_a_lost_trial_are_freed(begun, monkeypatch) -> None:
    freed: list[int] = []
    open_logger, session = begun
    monkeypatch.setattr("tuning.callbacks.free_workers", freed.append)
    with open_logger() as logger:
        made = session(logger)
        made.start(3)
        made.callback.on_trial_recover(trial=trial(3, get_error=lambda: None))
    assert freed == [3]
    assert made.callback.failure is None


def test_an_error_in_a_callback_ends_the_search_and_is_kept(begun, monkeypatch) -> None:
    open_logger, session = begun
    with open_logger() as logger:
        made = session(logger)
        made.start(0)

        def full(name, facts) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(made.records.store, "write_json", full)
        made.score(0, 1, 0.4)
    assert made.callback.ending() == "no space left"
