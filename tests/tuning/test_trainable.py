"""A trial in pieces is the trial in one, whatever ends a piece. Ray's parts are stood in for."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, placement_group_table
from safetensors.torch import load_file

from fcn.weights import NET
from pipeline.stages.finetune import FinetuneInputs
from pipeline.storage.store import Store
from pipeline.training.state import step_of
from tests.conftest import tiny
from tuning.trainable import MARK_BYTES, TrialTask, WorkersTask, free_workers, run_trial

EPOCHS = ("finetune.init=scratch", "finetune.epochs=3", "cluster.num_workers=1")


class Stage:
    """What stands for Tune and the search's actor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.stop_at: int | None = None
        """The driver wants the trial to save and stop after this step."""
        self.prune_at: int | None = None
        """Tune stops the trial at its report of this step."""
        self.at_report = lambda result: None
        actor = SimpleNamespace(push=SimpleNamespace(remote=self._push))
        monkeypatch.setattr("tuning.trainable.ray.get_actor", lambda name, namespace: actor)
        monkeypatch.setattr("tuning.trainable.ray.get", lambda answers: answers)
        monkeypatch.setattr("tuning.trainable.ray.wait", lambda sent, **_: (sent, []))
        monkeypatch.setattr("tuning.trainable.tune.report", self._report)

    def _push(self, rows, number: int) -> bool:
        self.rows += rows
        return (
            self.stop_at is not None
            and max((step for step, _ in self.rows), default=0) >= self.stop_at
        )

    def _report(self, result: dict[str, Any]) -> None:
        self.at_report(result)
        self.results.append(result)
        if result["step"] == self.prune_at:
            raise SystemExit(0)

    def scores(self) -> dict[int, float]:
        return {r["images"]: r["mean_iu"] for r in self.results if "mean_iu" in r}


@pytest.fixture
def stage(monkeypatch) -> Stage:
    return Stage(monkeypatch)


def task(shards, root, *overrides: str) -> TrialTask:
    """A trial of 3 epochs of 3 steps on 22 images."""
    recipe = tiny(*EPOCHS, f"store={root}", *overrides)
    files = [shards[split].files for split in ("train", "val")]
    inputs = FinetuneInputs(recipe.phases[0], *files, 22, None, None)
    keys = tuple(f"{index}" * 16 for index in range(len(recipe.phases)))
    return TrialTask(4, recipe, Store(root), "searches/s/trials/4", inputs, keys, "key")


def weights(trial: TrialTask, phase: int = 0) -> dict[str, torch.Tensor]:
    return load_file(trial.checkpoints(phase).newest()[0] / NET)


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_every_validation_is_reported_once_its_checkpoint_is_kept(
    tiny_shards, tmp_path, stage
) -> None:
    trial = task(tiny_shards, tmp_path)

    def require_kept(result) -> None:
        assert step_of(trial.checkpoints(0).newest()[0]) == result["step"]

    stage.at_report = require_kept
    run_trial({"task": trial})
    assert [(r["images"], r["step"]) for r in stage.results] == [(22, 3), (44, 6), (66, 9)]
    assert {step for step, metrics in stage.rows if "train/loss" in metrics} == set(range(1, 10))


@pytest.mark.parametrize("how", ["stopped", "pruned", "killed"])
def test_a_trial_that_was_cut_goes_on_to_the_last_bit(tiny_shards, tmp_path, stage, how) -> None:
    whole, cut = task(tiny_shards, tmp_path / "a"), task(tiny_shards, tmp_path / "b")
    run_trial({"task": whole})
    scores = stage.scores()
    stage.results, stage.rows = [], []
    if how == "stopped":
        stage.stop_at = 5
        run_trial({"task": cut})
        assert stage.results[-1]["stopped"]
        assert 5 <= stage.results[-1]["step"] < 9
        assert step_of(cut.checkpoints(0).newest()[0]) == stage.results[-1]["step"]
    else:
        stage.prune_at = 6
        if how == "killed":  # between the checkpoint and its report
            stage.at_report = lambda result: kill(result["step"])
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run_trial({"task": cut})
    stage.stop_at = stage.prune_at = None
    stage.at_report = lambda result: None
    stage.results, stage.rows = [], []
    run_trial({"task": cut})
    assert stage.scores() == scores
    assert equal(weights(cut), weights(whole))
    assert {step for step, metrics in stage.rows if "train/loss" in metrics} == set(range(1, 10))


def kill(step: int) -> None:
    if step == 6:
        raise KeyboardInterrupt


def test_a_loss_that_is_no_number_is_a_result_and_not_an_error(
    tiny_shards, tmp_path, stage
) -> None:
    run_trial({"task": task(tiny_shards, tmp_path, "finetune.optimizer.lr=1.0e+30")})
    assert "became nan at step" in stage.results[-1]["failed"]
    assert stage.results[-1]["step"] < 9


def test_too_little_memory_is_a_result_with_a_remedy(
    tiny_shards, tmp_path, stage, monkeypatch
) -> None:
    def no_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand so on")

    monkeypatch.setattr("tuning.trainable.TrialRun.train", no_memory)
    run_trial({"task": task(tiny_shards, tmp_path)})
    assert "a smaller finetune.micro_batch needs less" in stage.results[-1]["failed"]


def test_phases_follow_each_other_and_a_cut_between_them_changes_nothing(
    tiny_shards, tmp_path, stage
) -> None:
    """Phases of 32s and 8s, 3 and 6 steps; images and steps are counted over both."""
    staged = (
        "finetune.epochs=null",
        "finetune.phases=[{stride: 32, epochs: 1}, {stride: 8, epochs: 2}]",
    )
    whole, cut = (task(tiny_shards, tmp_path / name, *staged) for name in "ab")
    run_trial({"task": whole})
    assert [(r["images"], r["step"]) for r in stage.results] == [(22, 3), (44, 6), (66, 9)]
    coarse = load_file(whole.store.stored("nets", whole.keys[0]).localize() / NET)
    assert "score.32.weight" in coarse
    assert "score.8.weight" not in coarse
    stage.prune_at, scores = 3, stage.scores()
    with pytest.raises(SystemExit):
        run_trial({"task": cut})
    stage.prune_at, stage.results = None, []
    run_trial({"task": cut})
    assert stage.scores() == scores
    assert equal(weights(cut, 1), weights(whole, 1))


def test_trials_of_other_batches_are_compared_at_equal_images(tiny_shards, tmp_path, stage) -> None:
    run_trial({"task": task(tiny_shards, tmp_path, "finetune.global_batch=4")})
    assert [(r["images"], r["step"]) for r in stage.results] == [(22, 6), (44, 12), (66, 18)]


@pytest.mark.ray
def test_the_room_of_a_lost_trials_workers_is_known_by_its_mark() -> None:
    """Nobody has noted it; other trials' and what is not a trial's stays."""
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    try:
        marks = {3: 2, 13: 1, None: 1}
        groups = {
            number: placement_group(
                [{"CPU": 1} | ({"memory": MARK_BYTES + number} if number else {})] * workers
            )
            for number, workers in marks.items()
        }
        ray.get([group.ready() for group in groups.values()])
        free_workers(3)
        states = {n: placement_group_table(group)["state"] for n, group in groups.items()}
        assert states == {3: "REMOVED", 13: "CREATED", None: "CREATED"}
    finally:
        ray.shutdown()


def test_the_workers_of_a_trial_take_its_mark_along(tiny_shards, tmp_path) -> None:
    made = task(tiny_shards, tmp_path, "cluster.num_workers=2", "finetune.micro_batch=4")
    wide = WorkersTask(**vars(made.inputs.task(made.recipe)), number=7)
    assert wide.scaling().num_workers == 2
    assert wide.scaling().resources_per_worker == {"CPU": 1, "memory": MARK_BYTES + 7}
