"""A search without Ray: real trainings, a real journal, a real MLflow store."""

from pathlib import Path

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
from tests.conftest import tiny
from tuning.events import Journal, SearchBegun
from tuning.hunt import Hunt, Prepared
from tuning.records import Search
from tuning.samplers import sampler
from tuning.settings import Settings
from tuning.space import LR, Space
from tuning.told import SearchLogger
from tuning.trial import Outcome, train_segment

SPACE = Space.model_validate({LR: {"log": (1e-4, 1e-2)}})


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory) -> Path:
    """The folder of one database for all; each test has an experiment in it."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def hunting(tiny_shards, tmp_path, mlflow):
    """Makes a hunt that goes on from the journal in a folder, and its MLflow run."""
    recipe = tiny(
        *("finetune.init=scratch", "finetune.epochs=3", "cluster.num_workers=1"),
        f"tracking.experiment={tmp_path.name}",
    )
    shards = [tiny_shards[split].files for split in ("train", "val")]
    inputs = Prepared(*shards, len(tiny_shards["train"]), None)
    folder = tmp_path / "search"

    def hunt(told: SearchLogger, **given) -> Hunt:
        settings = Settings(name="s", **({"trials": 4} | given))
        begun = SearchBegun(
            recipe="demo",
            seed=0,
            space=SPACE.model_dump(mode="json"),
            sampler="random",
            scheduler=settings.scheduler,
            rungs=(3, 6, 9),
            slots=2,
        )
        journal = Journal(folder / "journal.jsonl")
        if not journal.path.stat().st_size:
            journal.append(begun)
        draw = sampler("random", SPACE, recipe, 0, 4)
        search = Search.read(journal.path)
        return Hunt(
            recipe, settings, folder, journal, search, "key", draw, told, lambda recipe: inputs
        )

    return hunt, lambda: SearchLogger(recipe, mlflow, "search s", "search-key")


def work(hunt: Hunt, segments: int = 1000) -> None:
    """Train so many segments, one after the other, as long as there are some."""
    for _ in range(segments):
        if (task := hunt.next_task()) is None:
            return
        hunt.ended(
            task, train_segment(task, lambda rows: bool(hunt.told.metrics(task.number, rows)))
        )


def runs(mlflow: Path, tmp_path: Path) -> dict[str, tuple]:
    """Status and steps by the name of the run."""
    tracker = TrackingClient(TrackingSpec(experiment=tmp_path.name), mlflow)
    found = tracker.client.search_runs([tracker.experiment])
    steps = {r.info.run_name: tracker.history(r.info.run_id, "train/lr") for r in found}
    return {r.info.run_name: (r.info.status, [s for s, _ in steps[r.info.run_name]]) for r in found}


def test_a_population_goes_on_from_its_best_and_every_step_is_told_once(
    hunting, mlflow, tmp_path
) -> None:
    hunt, told = hunting
    with told() as run:
        searching = hunt(run, scheduler="pbt")
        work(searching)
        assert searching.over()
    trials = searching.search.trials
    assert {t.status for t in trials.values()} == {"finished"}
    cloned = [t for t in trials.values() if t.clones]
    assert cloned
    for trial in cloned:
        generations = sorted(
            p.name for p in (tmp_path / "search/trials" / f"{trial.number}").iterdir()
        )
        assert generations == [str(n) for n in range(len(trial.clones) + 1)]
    assert runs(mlflow, tmp_path) == {
        "search s": ("FINISHED", []),
        **{f"trial {n}": ("FINISHED", list(range(1, 10))) for n in range(4)},
    }


def test_a_stopped_search_goes_on_and_ends_as_if_it_had_not_been(hunting, mlflow, tmp_path) -> None:
    hunt, told = hunting
    with told() as run:
        first = hunt(run, scheduler="none")
        work(first, 2)
        left = first.next_task()
        first.ended(left, train_segment(left, lambda rows: True))
        first.stopping = "the budget is spent"
        assert first.next_task() is None
        assert first.over()
        first.stop()
    assert [t.status for t in first.search.trials.values()] == ["stopped"] * 2
    assert 0 < first.search.trials[left.number].steps < 9
    assert {status for status, _ in runs(mlflow, tmp_path).values()} == {"FINISHED", "KILLED"}
    with told() as run:
        second = hunt(run, scheduler="none")
        work(second)
    assert [t.status for t in second.search.trials.values()] == ["finished"] * 4
    assert {status for status, _ in runs(mlflow, tmp_path).values()} == {"FINISHED"}
    kept = [int(p.name) for p in (tmp_path / "search/trials").iterdir()]
    assert kept == [second.search.best().number]


def test_what_a_killed_driver_had_not_told_is_told_by_the_next(hunting, mlflow, tmp_path) -> None:
    """A trial ended, and nothing of that had come to MLflow."""
    hunt, told = hunting
    with told() as run:
        first = hunt(run, trials=1)
        work(first, 2)
        task = first.next_task()
        outcome = train_segment(task, lambda rows: False)
        first.told.after = first.told.close = lambda *_: None  # all that follows is lost
        first.ended(task, outcome)
    assert first.search.trials[0].status == "finished"
    assert runs(mlflow, tmp_path)["trial 0"][0] == "RUNNING"
    with told() as run:
        work(hunt(run, trials=1))
    assert runs(mlflow, tmp_path)["trial 0"] == ("FINISHED", list(range(1, 10)))


def test_a_trial_that_loses_its_process_goes_on_until_it_has_lost_too_many(hunting) -> None:
    hunt, told = hunting
    with told() as run:
        searching = hunt(run, trials=1)
        for _ in range(3):
            task = searching.next_task()
            assert task.number == 0
            searching.lost(task, "killed")
        assert searching.over()
    trial = searching.search.trials[0]
    assert trial.status == "failed"
    assert "its process was lost 3 times, more than cluster.max_failures: killed" in trial.reason


def test_a_failure_is_an_end_like_any_other(hunting, mlflow, tmp_path) -> None:
    hunt, told = hunting
    with told() as run:
        searching = hunt(run, trials=2, max_failed=1.0)
        task = searching.next_task()
        searching.ended(task, Outcome(2, 1.5, failure="the loss became nan at step 3"))
        work(searching)
    statuses = [t.status for t in searching.search.trials.values()]
    assert statuses == ["failed", "finished"]
    assert runs(mlflow, tmp_path)["trial 0"][0] == "FAILED"
