"""A trial in pieces is the trial in one, whatever ends a piece."""

import torch
from safetensors.torch import load_file

from fcn.weights import NET
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.state import HISTORY, History, read_best, step_of
from tests.conftest import tiny
from tuning.trial import Task, train_segment

EPOCHS = ("finetune.init=scratch", "finetune.epochs=3", "cluster.num_workers=1")


def task(shards, folder, until, *overrides, source=None) -> Task:
    """A segment of a trial of 3 epochs of 3 steps."""
    return Task(
        number=4,
        recipe=tiny(*EPOCHS, *overrides).plain(),
        until=until,
        folder=folder,
        source=source,
        train=shards["train"].files,
        val=shards["val"].files,
        num_train=len(shards["train"]),
        start=None,
        search="key",
    )


def weights(folder, phase="0") -> dict[str, torch.Tensor]:
    return load_file(Checkpoints.in_folder(folder / phase).newest()[0] / NET)


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_segments_add_up_to_the_whole_to_the_last_bit(tiny_shards, tmp_path) -> None:
    told: list = []

    def push(rows) -> bool:
        told.extend(rows)
        return False

    first = train_segment(task(tiny_shards, tmp_path / "parts", 3), push)
    again = train_segment(task(tiny_shards, tmp_path / "parts", 3), push)
    assert (first.step, first.mean_iu, first.kept) == (3, again.mean_iu, again.kept)
    last = train_segment(task(tiny_shards, tmp_path / "parts", 9), push)
    whole = train_segment(task(tiny_shards, tmp_path / "whole", 9), lambda rows: False)
    assert (last.step, last.mean_iu, last.kept) == (9, whole.mean_iu, whole.kept)
    assert equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert {step for step, metrics in told if "train/loss" in metrics} == set(range(1, 10))
    best = read_best(Checkpoints.in_folder(tmp_path / "parts" / "0").newest()[0])
    assert last.kept == best.metrics["val/mean_iu"] >= last.mean_iu


def test_a_trial_that_is_asked_to_leave_saves_and_goes_on_there(tiny_shards, tmp_path) -> None:
    asked: list = []

    def leave_at_five(rows) -> bool:
        asked.extend(step for step, metrics in rows if "train/loss" in metrics)
        return max(asked, default=0) >= 5

    left = train_segment(task(tiny_shards, tmp_path / "left", 9), leave_at_five)
    assert (left.mean_iu, left.failure) == (None, "")
    assert 5 <= left.step < 9
    assert step_of(Checkpoints.in_folder(tmp_path / "left" / "0").newest()[0]) == left.step
    done = train_segment(task(tiny_shards, tmp_path / "left", 9), lambda rows: False)
    whole = train_segment(task(tiny_shards, tmp_path / "whole", 9), lambda rows: False)
    assert (done.step, done.mean_iu) == (9, whole.mean_iu)
    assert equal(weights(tmp_path / "left"), weights(tmp_path / "whole"))


def test_a_loss_that_is_no_number_is_an_outcome_and_not_an_error(tiny_shards, tmp_path) -> None:
    outcome = train_segment(
        task(tiny_shards, tmp_path, 9, "finetune.optimizer.lr=1.0e+30"), lambda rows: False
    )
    assert outcome.mean_iu is None
    assert "became nan at step" in outcome.failure


def test_a_clone_goes_on_from_anothers_net_with_its_own_values(tiny_shards, tmp_path) -> None:
    """At a learning rate of next to nothing its net stays the one that it went on from."""
    one, other = tmp_path / "1" / "0", tmp_path / "2" / "1"
    train_segment(task(tiny_shards, one, 3), lambda rows: False)
    gentle = ("finetune.optimizer.lr=1.0e-30", "finetune.optimizer.weight_decay=0")
    outcome = train_segment(task(tiny_shards, other, 6, *gentle, source=one), lambda rows: False)
    assert outcome.step == 6
    before, after = weights(one), weights(other)
    learnt = [k for k in before if "running" not in k and "num_batches" not in k]
    assert max(float((after[k] - before[k]).abs().max()) for k in learnt) < 1e-20
    rows = dict(History.read(Checkpoints.in_folder(other / "0").newest()[0] / HISTORY).rows())
    assert rows[3]["train/lr"] > 1e-4
    assert rows[4]["train/lr"] < 1e-29


def test_a_rung_may_lie_in_any_phase(tiny_shards, tmp_path) -> None:
    """Phases of 32s and 8s, 3 and 6 steps."""
    staged = (
        "finetune.epochs=null",
        "finetune.phases=[{stride: 32, epochs: 1}, {stride: 8, epochs: 2}]",
    )
    told: list = []
    first = train_segment(task(tiny_shards, tmp_path, 3, *staged), lambda rows: False)
    assert (first.step, first.mean_iu is None) == (3, False)
    assert not (tmp_path / "1").exists()
    last = train_segment(
        task(tiny_shards, tmp_path, 6, *staged), lambda rows: bool(told.extend(rows))
    )
    assert last.step == 6
    assert [step for step, metrics in told if "train/loss" in metrics] == [4, 5, 6]
    coarse = load_file(tmp_path / "0" / "best" / NET)
    assert "score.32.weight" in coarse
    assert "score.8.weight" not in coarse
