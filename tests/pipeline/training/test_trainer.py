"""The step is the same whoever computes it, and a run goes on where it stood."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn.nets import FCN, Blueprint
from pipeline.config.schema import PhaseSpec
from pipeline.data.shards import Shards
from pipeline.errors import SupersededError, TrainingError
from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.distributed import DistContext
from pipeline.training.evaluation import evaluate_split
from pipeline.training.state import OPTIMIZER, read_best
from pipeline.training.trainer import Trainer
from tests.conftest import tiny


class Interrupted(LocalCheckpointManager):
    """May stop the run after a checkpoint, as a kill would, or be asked to stop before a step."""

    def __init__(self, folder: Path, die_at: int | None = None, ask_at: int | None = None) -> None:
        super().__init__(Checkpoints.in_folder(folder))
        self.die_at, self.ask_at, self.saved = die_at, ask_at, []

    def save(self, net, optimizer, state) -> None:
        self.saved.append(state.step)
        super().save(net, optimizer, state)
        if state.step == self.die_at:
            raise KeyboardInterrupt

    def noticed(self, step) -> bool:
        self.stop_requested = step == self.ask_at
        return super().noticed(step)


def newest(folder: Path) -> Path:
    return Checkpoints.in_folder(folder).newest()[0]


def phase(shards, *overrides, context=None, double=False, log_rows=None, epochs=2) -> Trainer:
    """A phase over a net with dropout; frozen batch normalisation unless overridden."""
    recipe = tiny("finetune.checkpoint_every_steps=2", *overrides)
    torch.manual_seed(0)
    net = FCN(Blueprint(recipe.net.backbone, 5, 8))
    for score in net.score.values():
        torch.nn.init.normal_(score.weight, std=0.01)
    return Trainer(
        net=net.double() if double else net,
        spec=recipe.finetune,
        phase=PhaseSpec(stride=8, epochs=epochs),
        seed=0,
        train=shards["train"],
        val=shards["val"],
        context=context or DistContext(),
        log_rows=log_rows or (lambda rows: None),
    )


def weights(net: FCN) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def largest_difference(a, b) -> float:
    """Greatest over all tensors, relative where a tensor holds more than 1."""
    return max(
        float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp(min=1))
        for k in a
    )


def optimizer_state(folder: Path) -> dict:
    return torch.load(newest(folder) / OPTIMIZER, weights_only=True)["state"]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_stopped_at_a_checkpoint_ends_with_the_same_bits(tiny_shards, tmp_path, kind) -> None:
    chosen = (f"finetune.optimizer.kind={kind}", "finetune.batch_norm=micro")
    whole = phase(tiny_shards, *chosen)
    manager = Interrupted(tmp_path / "whole")
    whole.run(manager)
    assert manager.saved == [2, 3, 4, 6]  # 3 steps an epoch, every second step
    for stop in (2, 3):  # in the middle of an epoch and at its end
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            phase(tiny_shards, *chosen).run(Interrupted(folder, die_at=stop))
        logged = []
        resumed = phase(tiny_shards, *chosen, log_rows=logged.extend)
        resumed.run(Interrupted(folder))
        assert [step for step, metrics in logged if "train/loss" in metrics] == [1, 2, 3, 4, 5, 6]
        assert largest_difference(weights(whole.net), weights(resumed.net)) == 0
        moments = [optimizer_state(f) for f in (tmp_path / "whole", folder)]
        for name, state in moments[0].items():
            assert all(torch.equal(state[key], moments[1][name][key]) for key in state)


@given(micro_batches=st.integers(min_value=1, max_value=22))
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_run_killed_inside_any_micro_batch_ends_with_the_same_bits(
    tiny_shards, tmp_path_factory, micro_batches
) -> None:
    """Between checkpoints, in the middle of a step's accumulation, wherever it happens to be."""
    folder = tmp_path_factory.mktemp("killed")
    killed, left = phase(tiny_shards, "finetune.optimizer.kind=sgd"), micro_batches

    def count_down(*_) -> None:
        nonlocal left
        left -= torch.is_grad_enabled()
        if not left:
            raise KeyboardInterrupt

    killed.net.register_forward_hook(count_down)
    with pytest.raises(KeyboardInterrupt):
        killed.run(Interrupted(folder))
    resumed = phase(tiny_shards, "finetune.optimizer.kind=sgd")
    resumed.run(Interrupted(folder))
    if "whole" not in WHOLE:
        WHOLE["whole"] = phase(tiny_shards, "finetune.optimizer.kind=sgd")
        WHOLE["whole"].run(Interrupted(tmp_path_factory.mktemp("whole")))
    assert largest_difference(weights(WHOLE["whole"].net), weights(resumed.net)) == 0


WHOLE: dict[str, Trainer] = {}


def test_a_run_asked_to_stop_saves_where_it_stands_and_goes_on_there(tiny_shards, tmp_path) -> None:
    manager = Interrupted(tmp_path, ask_at=5)
    assert phase(tiny_shards).run(manager).step == 5
    assert manager.saved == [2, 3, 4, 5]
    resumed, whole = phase(tiny_shards), phase(tiny_shards)
    assert resumed.run(Interrupted(tmp_path)).step == 6
    whole.run(Interrupted(tmp_path / "whole"))
    assert largest_difference(weights(whole.net), weights(resumed.net)) == 0


def test_a_run_trains_up_to_a_step_and_on_to_the_next(tiny_shards, tmp_path) -> None:
    """As the trials of a search do."""
    whole = phase(tiny_shards)
    whole.run(Interrupted(tmp_path / "whole"))
    for until in (1, 4, 6):
        part = phase(tiny_shards)
        manager = LocalCheckpointManager(Checkpoints.in_folder(tmp_path / "parts"), until)
        assert part.run(manager).step == until
    assert largest_difference(weights(whole.net), weights(part.net)) == 0


class Superseded(LocalCheckpointManager):
    """Another attempt begins after a step."""

    def noticed(self, step) -> bool:
        if step == 3:
            Checkpoints.in_folder(self.checkpoints.path("")).claim()
        return super().noticed(step)


def test_a_run_that_another_one_has_taken_over_stops_at_its_next_save(
    tiny_shards, tmp_path
) -> None:
    with pytest.raises(SupersededError, match="taken over by attempt-000002"):
        phase(tiny_shards).run(Superseded(Checkpoints.in_folder(tmp_path)))
    assert [path.name for path in tmp_path.rglob("checkpoint_*")] == ["checkpoint_000000002"]


def test_a_finished_run_started_again_does_nothing(tiny_shards, tmp_path) -> None:
    phase(tiny_shards).run(Interrupted(tmp_path))
    rows, manager = [], Interrupted(tmp_path)
    assert phase(tiny_shards, log_rows=rows.extend).run(manager).step == 6
    assert manager.saved == []
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]  # what may not have arrived before


def test_the_best_net_is_kept_however_training_ends(tiny_shards, tmp_path) -> None:
    """Also across a resume, and although the checkpoint in which it was the newest is gone."""
    scores = {}

    def watch(rows) -> None:
        scores.update({step: m["val/mean_iu"] for step, m in rows if "val/mean_iu" in m})

    spoilt = ("finetune.optimizer.lr=0.01",)
    with pytest.raises(KeyboardInterrupt):
        phase(tiny_shards, *spoilt, epochs=4).run(Interrupted(tmp_path, die_at=8))
    assert not list(tmp_path.rglob("checkpoint_000000003"))
    work = phase(tiny_shards, *spoilt, epochs=4, log_rows=watch)
    work.run(Interrupted(tmp_path))
    best = read_best(newest(tmp_path))
    assert list(scores) == [3, 6, 9, 12]
    assert best.metrics["val/mean_iu"] == max(scores.values())
    assert best.step == max(scores, key=scores.get)
    work.net.load_state_dict(best.weights)
    again = evaluate_split(work.net, tiny_shards["val"], DistContext(), 2, 0).scores().summary()
    assert again["mean_iu"] == best.metrics["val/mean_iu"]


def _one_of_several(
    rank: int,
    world_size: int,
    files: dict,
    folder: str,
    double: bool,
    epochs: int,
    overrides: tuple,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    shards = {split: Shards(paths) for split, paths in files.items()}
    context = DistContext(rank, world_size)
    work = phase(shards, *overrides, context=context, double=double, epochs=epochs)
    work.run(Interrupted(Path(folder) / f"rank-{rank}"))
    counts = [
        evaluate_split(work.net, shards[s], work.context, 2, 0).counts for s in ("val", "test")
    ]
    torch.save((weights(work.net), counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


MICRO = (
    "finetune.optimizer.kind=sgd",
    "finetune.batch_norm=micro",
    "finetune.augment.crop_px=[48, 64]",
)
WEIGHED = (
    "finetune.optimizer.kind=sgd",
    "finetune.class_weights=median-frequency",
    "finetune.max_grad_norm=0.05",
)


@pytest.mark.parametrize(
    ("world_size", "double", "epochs", "overrides", "tolerance"),
    [
        (2, True, 7, ("finetune.optimizer.kind=adamw",), 1e-10),
        # 4 micro-batches by 3 workers, 3 in the last step of an epoch: uneven shares
        (3, True, 7, ("finetune.optimizer.kind=sgd", "finetune.optimizer.lr=0.01"), 1e-10),
        (2, False, 7, ("finetune.optimizer.kind=sgd", "finetune.optimizer.lr=0.01"), 1e-4),
        # 3 micro-batches by 4 workers: one holds a filler. Normalising the few values of a coarse map
        # divides by small deviations, which magnifies rounding at each step.
        (4, True, 2, MICRO, 1e-8),
        (3, True, 2, WEIGHED, 1e-10),
    ],
)
def test_several_workers_compute_what_one_computes(
    tiny_shards, tmp_path, world_size, double, epochs, overrides, tolerance
) -> None:
    """The whole chain: order, augmentation, dropout, uneven void, short last batches."""
    chosen = ("finetune.augment.crop_px=[32, 32]", "finetune.validate_every_epochs=4", *overrides)
    alone = phase(tiny_shards, *chosen, double=double, epochs=epochs)
    assert alone.run(Interrupted(tmp_path / "alone")).step == 3 * epochs
    files = {split: shards.files for split, shards in tiny_shards.items()}
    work = (world_size, files, str(tmp_path), double, epochs, chosen)
    mp.spawn(_one_of_several, work, nprocs=world_size, join=True)
    splits = [
        evaluate_split(alone.net, tiny_shards[s], DistContext(), 2, 0).counts
        for s in ("val", "test")
    ]
    for rank in range(world_size):
        state, counts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert largest_difference(weights(alone.net), state) < tolerance
        assert all(map(torch.equal, counts, splits))


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
        work.run(Interrupted(tmp_path / str(micro)))
        nets.append(weights(work.net))
    assert largest_difference(*nets) < 1e-10


def test_metrics_are_logged_for_every_step_and_are_plain_numbers(tiny_shards, tmp_path) -> None:
    rows = []
    phase(tiny_shards, log_rows=rows.extend).run(Interrupted(tmp_path))
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
    manager = Interrupted(tmp_path)
    with pytest.raises(TrainingError, match=r"the loss became nan at step 1, on train-0"):
        work.run(manager)
    assert manager.saved == []
    after = weights(work.net)
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def test_images_of_several_sizes_are_each_counted_once(tiny_shards) -> None:
    net = FCN(Blueprint("resnet18", 5, 32))
    confusion = evaluate_split(net, tiny_shards["val"], DistContext(), 3, 0)
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
        work.run(Interrupted(tmp_path / str(loaders)))
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
    work = Trainer(
        net, recipe.finetune, PhaseSpec(stride=8, epochs=2), 0, train["train"], train["val"]
    )
    best = work.run(Interrupted(tmp_path)).best
    assert 0 <= best.metrics["val/mean_iu"] <= 1
    assert not torch.equal(first, before)
