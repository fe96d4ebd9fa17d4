"""The step is the same whoever computes it, and a run goes on where it stood."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fcn.nets import FCN, Blueprint
from pipeline.checkpoints import Cursor, load_state, save_state
from pipeline.errors import TrainingError
from pipeline.loop import Phase, Team, evaluate_split
from pipeline.shards import Shards
from pipeline.specs import PhaseSpec
from tests.conftest import tiny


class FolderKeeper:
    """Checkpoints in a folder; may stop the run after one, as a kill would."""

    def __init__(self, folder: Path, die_at: int | None = None) -> None:
        self.folder, self.die_at, self.saved = folder, die_at, []

    def restore(self, net, optimizer):
        found = sorted(self.folder.glob("step-*"))
        return load_state(found[-1], net, optimizer) if found else Cursor()

    def save(self, net, optimizer, cursor, metrics) -> None:
        self.saved.append((cursor.step, metrics))
        save_state(self.folder / f"step-{cursor.step:04d}", net, optimizer, cursor)
        if cursor.step == self.die_at:
            raise KeyboardInterrupt


def phase(shards, *overrides, team=None, double=False, emit=None) -> Phase:
    """A phase over a net with dropout; frozen batch normalisation unless overridden."""
    recipe = tiny("finetune.epochs=2", "finetune.checkpoint_every_steps=2", *overrides)
    torch.manual_seed(0)
    net = FCN(Blueprint(recipe.net.backbone, 5, 8))
    for score in net.score.values():
        torch.nn.init.normal_(score.weight, std=0.01)
    return Phase(
        net=net.double() if double else net,
        spec=recipe.finetune,
        phase=PhaseSpec(stride=8, epochs=2),
        seed=0,
        train=shards["train"],
        val=shards["val"],
        team=team or Team(),
        emit=emit or (lambda step, metrics: None),
    )


def weights(net: FCN) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def largest_difference(a, b) -> float:
    """Greatest over all tensors, relative where a tensor holds more than 1."""
    return max(
        float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp(min=1))
        for k in a
    )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_stopped_at_a_checkpoint_ends_with_the_same_bits(tiny_shards, tmp_path, kind) -> None:
    chosen = (f"finetune.optimizer.kind={kind}", "finetune.batch_norm=micro")
    whole = phase(tiny_shards, *chosen)
    keeper = FolderKeeper(tmp_path / "whole")
    whole.run(keeper)
    assert [step for step, _ in keeper.saved] == [2, 3, 4, 6]  # 3 steps an epoch, every second step
    for stop in (2, 3):  # in the middle of an epoch and at its end
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            phase(tiny_shards, *chosen).run(FolderKeeper(folder, die_at=stop))
        told = []
        resumed = phase(tiny_shards, *chosen, emit=lambda step, _, told=told: told.append(step))
        resumed.run(FolderKeeper(folder))
        assert sorted({*told}) == [1, 2, 3, 4, 5, 6]
        assert largest_difference(weights(whole.net), weights(resumed.net)) == 0


def test_a_finished_run_started_again_does_nothing(tiny_shards, tmp_path) -> None:
    phase(tiny_shards).run(FolderKeeper(tmp_path))
    rows = []
    again = phase(tiny_shards, emit=lambda step, metrics: rows.append(step))
    assert again.run(FolderKeeper(tmp_path)) == {}
    assert rows == [1, 2, 3, 3, 4, 5, 6, 6]  # what was told before, in case it did not arrive


def _one_of_several(rank: int, world_size: int, files: dict, folder: str, overrides: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    shards = {split: Shards(paths) for split, paths in files.items()}
    work = phase(shards, *overrides, team=Team(rank, world_size), double=True)
    metrics = work.run(FolderKeeper(Path(folder) / f"rank-{rank}"))
    confusion = evaluate_split(work.net, shards["test"], work.team, 2, 0)
    torch.save((weights(work.net), metrics, confusion.counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world_size", "overrides", "tolerance"),
    [
        (2, ("finetune.optimizer.kind=adamw",), 1e-10),
        # 4 micro-batches, 3 in the last step, by 3: uneven shares. Normalising the few values of a
        # coarse map divides by small deviations, which magnifies the rounding of the sums.
        (3, ("finetune.optimizer.kind=sgd", "finetune.batch_norm=micro"), 1e-8),
    ],
)
def test_several_workers_compute_what_one_computes(
    tiny_shards, tmp_path, world_size, overrides, tolerance
) -> None:
    """The whole chain: order, augmentation, dropout, uneven void, a short last batch; float64."""
    alone = phase(tiny_shards, *overrides, double=True)
    metrics = alone.run(FolderKeeper(tmp_path / "alone"))
    files = {split: shards.files for split, shards in tiny_shards.items()}
    mp.spawn(
        _one_of_several, (world_size, files, str(tmp_path), overrides), nprocs=world_size, join=True
    )
    together = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(world_size)]
    for state, theirs, counts in together:
        assert largest_difference(weights(alone.net), state) < tolerance
        assert theirs == pytest.approx(metrics)
        assert torch.equal(
            counts, evaluate_split(alone.net, tiny_shards["test"], Team(), 2, 0).counts
        )


def test_micro_batches_add_up_to_the_global_batch(tiny_shards, tmp_path) -> None:
    """Without dropout, 4 micro-batches of 2 are the same step as 2 of 4."""
    nets = []
    for micro in (2, 4):
        work = phase(
            tiny_shards, f"finetune.micro_batch={micro}", "finetune.optimizer.kind=sgd", double=True
        )
        for module in work.net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        work.run(FolderKeeper(tmp_path / str(micro)))
        nets.append(weights(work.net))
    assert largest_difference(*nets) < 1e-10


def test_metrics_are_told_for_every_step_and_are_plain_numbers(tiny_shards, tmp_path) -> None:
    rows = []
    work = phase(tiny_shards, emit=lambda step, metrics: rows.append((step, metrics)))
    work.run(FolderKeeper(tmp_path))
    losses = {step: m["train/loss"] for step, m in rows if "train/loss" in m}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    validated = {step: m["val/mean_iu"] for step, m in rows if "val/mean_iu" in m}
    assert list(validated) == [3, 6]
    assert all(type(v) is float for _, metrics in rows for v in metrics.values())


def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_images(
    tiny_shards, tmp_path
) -> None:
    work = phase(tiny_shards)
    work.net.score["8"].bias.data[0] = math.nan
    before = weights(work.net)
    keeper = FolderKeeper(tmp_path)
    with pytest.raises(TrainingError, match=r"the loss became nan at step 1, on train-0"):
        work.run(keeper)
    assert keeper.saved == []
    after = weights(work.net)
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def test_images_of_several_sizes_are_each_counted_once(tiny_shards) -> None:
    net = FCN(Blueprint("resnet18", 5, 32))
    confusion = evaluate_split(net, tiny_shards["val"], Team(), 3, 0)
    valid = sum(
        int((tiny_shards["val"].image_label(i)[1] != 255).sum())
        for i in range(len(tiny_shards["val"]))
    )
    assert int(confusion.counts.sum()) == valid


def test_loader_processes_feed_the_same_batches(tiny_shards, tmp_path) -> None:
    nets = []
    for loaders in (0, 2):
        work = phase(tiny_shards)
        work.num_loaders = loaders
        work.run(FolderKeeper(tmp_path / str(loaders)))
        nets.append(weights(work.net))
    assert largest_difference(*nets) == 0


@pytest.mark.parametrize(
    "backbone", ["vgg16", "alexnet", "googlenet", "resnet18", "resnet34", "resnet50"]
)
def test_every_backbone_trains_a_step(tiny_shards, tmp_path, backbone) -> None:
    recipe = tiny("finetune.batch_norm=micro", "finetune.optimizer.kind=sgd")
    train = {"train": tiny_shards["val"], "val": tiny_shards["test"]}
    net = FCN(Blueprint(backbone, 5, 8))
    first = next(net.backbone.trunk["8"].parameters())
    before = first.detach().clone()
    work = Phase(
        net, recipe.finetune, PhaseSpec(stride=8, epochs=2), 0, train["train"], train["val"]
    )
    metrics = work.run(FolderKeeper(tmp_path))
    assert 0 <= metrics["val/mean_iu"] <= 1
    assert not torch.equal(first, before)
