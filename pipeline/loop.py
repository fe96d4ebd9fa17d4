"""The training loop: a step, an epoch, a phase. Reads top to bottom; knows no Ray.

Whoever computes it, a step is the same: the loss is the sum over the valid pixels of the whole
global batch divided by their number, and everything random goes by name.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from fcn.losses import count_valid, cross_entropy_sum
from fcn.metrics import Confusion
from fcn.nets import FCN
from fcn.normalise import MicroStatistics, set_batch_norm
from fcn.optim import freeze_trunk, lr_factor, parameter_groups
from pipeline.checkpoints import Cursor
from pipeline.errors import TrainingError
from pipeline.feed import MicroBatch, TrainSet, eval_feed, train_feed
from pipeline.sampler import Plan, share
from pipeline.shards import Shards
from pipeline.specs import FinetuneSpec, OptimizerSpec, PhaseSpec

Metrics = dict[str, float]


@dataclass(frozen=True)
class Team:
    """The workers that share the work: this one's rank, and sums over all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, names: Sequence[str]) -> list[str]:
        """The names that all workers hold, in the order of their ranks."""
        held: list[list[str]] = [[] for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather_object(held, list(names))
        else:
            held = [list(names)]
        return [name for part in held for name in part]


class Keeper(Protocol):
    """Where checkpoints go and come from."""

    def restore(self, net: FCN, optimizer: Optimizer) -> Cursor:
        """Put the newest checkpoint in place; the cursor says where to go on, at 0 if there is none."""

    def save(self, net: FCN, optimizer: Optimizer, cursor: Cursor, metrics: Metrics) -> None:
        """Keep a checkpoint; all workers call it, one writes."""


@dataclass
class Stepper:
    """What a step works with."""

    net: FCN
    optimizer: Optimizer
    team: Team
    spec: FinetuneSpec

    def __post_init__(self) -> None:
        mode = self.spec.normalisation
        self.net = set_batch_norm(self.net, mode)  # type: ignore[assignment]
        self.statistics = MicroStatistics(self.net) if mode == "micro" else None
        self.autocast = torch.autocast(
            self.team.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"
        )
        self.memory_format = (
            torch.channels_last if self.spec.channels_last else torch.contiguous_format
        )
        self.net.to(self.team.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.ddp: nn.Module = self.net
        if self.team.size > 1:
            with warnings.catch_warnings():
                # Its new name is not in torch 2.11. Buffers are ours to keep equal: MicroStatistics.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self.ddp = DistributedDataParallel(self.net, broadcast_buffers=False)

    def step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, int]:
        """One optimiser step on this worker's micro-batches of a global batch.

        Returns the loss per valid pixel of the whole global batch, in nats, and its images.
        """
        batches = [m.to(self.team.device, self.memory_format) for m in micro_batches]
        real = [b for b in batches if not b.void]
        valid, images, units = self._count(real)
        if self.statistics:
            self.statistics.begin()
        total = torch.zeros((), dtype=torch.float64, device=self.team.device)
        for i, batch in enumerate(batches):
            torch.manual_seed(batch.seed)
            with self._sync(last=i == len(batches) - 1), self.autocast:
                loss = cross_entropy_sum(self.ddp(batch.image), batch.label)
                # DDP averages gradients over workers; the loss is a sum over all of them.
                (loss / max(valid, 1) * self.team.size).backward()
            total += loss.detach()
        if self.statistics:
            self.statistics.finish(self.team.sum(self.statistics.weighted(len(real))), units)
        mean_loss = float(self.team.sum(total)) / max(valid, 1)
        if not math.isfinite(mean_loss):
            names = self.team.gather([name for batch in real for name in batch.ids])
            raise TrainingError(
                f"the loss became {mean_loss} at step {batches[0].step + 1}, on {', '.join(names)}; "
                "that step was not taken and nothing was saved since the last checkpoint. A lower "
                "finetune.optimizer.lr or a longer finetune.schedule.warmup_steps is the usual remedy"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, images

    def _count(self, real: Sequence[MicroBatch]) -> tuple[int, int, int]:
        """Valid pixels, images and micro-batches of the whole global batch."""
        mine = [(count_valid(b.label), len(b.label), 1) for b in real] or [(0, 0, 0)]
        totals = self.team.sum(torch.tensor(mine, device=self.team.device).sum(0)).tolist()
        return totals[0], totals[1], totals[2]

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, after the last micro-batch."""
        if last or not isinstance(self.ddp, DistributedDataParallel):
            return nullcontext()
        return self.ddp.no_sync()


@torch.inference_mode()
def count_errors(net: FCN, batches: Iterable[MicroBatch], team: Team) -> tuple[Confusion, int]:
    """Confusion matrix of some batches on one worker, and how many images were counted."""
    confusion = Confusion(net.blueprint.num_classes, team.device)
    seen = 0
    for batch in batches:
        moved = batch.to(team.device, torch.contiguous_format)
        confusion.update(moved.label, net(moved.image).argmax(1))
        seen += len(moved.ids)
    return confusion, seen


def evaluate_split(net: FCN, shards: Shards, team: Team, batch: int, num_loaders: int) -> Confusion:
    """One confusion matrix over a whole split: each image once, on one worker, summed over all.

    Raises:
        TrainingError: the images counted are not as many as the split has.
    """
    was_training = {m: m.training for m in net.modules()}
    net.eval()
    rows = share(len(shards), team.rank, team.size)
    confusion, seen = count_errors(net, eval_feed(shards, rows, batch, num_loaders), team)
    for module, mode in was_training.items():
        module.training = mode
    team.sum(confusion.counts)
    require_all_seen(int(team.sum(torch.tensor(seen, device=team.device))), len(shards))
    return confusion


def require_all_seen(seen: int, expected: int) -> None:
    """A metric over some of the images is not the metric of the split."""
    if seen != expected:
        raise TrainingError(f"{seen} images were counted in a split of {expected}; scores are void")


def build_optimizer(net: FCN, spec: OptimizerSpec, lr: float) -> Optimizer:
    """SGD with momentum or AdamW over the recipe's parameter groups."""
    groups = parameter_groups(
        net,
        lr=lr,
        weight_decay=spec.weight_decay,
        head_lr_mult=spec.head_lr_mult,
        bias_lr_mult=spec.bias_lr_mult,
        decay_biases=spec.decay_biases,
    )
    return AdamW(groups) if spec.kind == "adamw" else SGD(groups, momentum=spec.momentum)


@dataclass
class Phase:
    """One training from a net's start to the end of its schedule, from wherever it stands."""

    net: FCN
    spec: FinetuneSpec
    phase: PhaseSpec
    seed: int
    train: Shards
    val: Shards
    team: Team = field(default_factory=Team)
    num_loaders: int = 0
    emit: Callable[[int, Metrics], None] = lambda step, metrics: None
    """Called on rank 0 after each step and validation; after a resume also for those before it."""

    def __post_init__(self) -> None:
        self._history: list[tuple[int, Metrics]] = []

    def run(self, keeper: Keeper) -> Metrics:
        """Train to the end; returns the last validation's metrics."""
        if self.spec.trainable == "head":
            freeze_trunk(self.net)
        optimizer = build_optimizer(
            self.net, self.spec.optimizer, self.spec.optimizer.lr * self.phase.lr_mult
        )
        stepper = Stepper(self.net, optimizer, self.team, self.spec)
        cursor = keeper.restore(self.net, optimizer)
        step = cursor.step
        for told in cursor.history:
            self._emit(*told)
        plan = Plan(
            num_samples=len(self.train),
            global_batch=self.spec.global_batch,
            micro_batch=self.spec.micro_batch,
            epochs=self.phase.epochs,
            seed=self.seed,
        )
        metrics: Metrics = {}
        began = time.perf_counter()
        for micro_batches in self._feed(plan, step):
            factor = self._set_lr(optimizer, step, plan.num_steps)
            loss, images = stepper.step(micro_batches)
            step += 1
            now = time.perf_counter()
            self._emit(
                step,
                {
                    "train/loss": loss,
                    "train/lr": self.spec.optimizer.lr * self.phase.lr_mult * factor,
                    "perf/images_per_s": images / (now - began),
                    "perf/epoch": step / plan.steps_per_epoch,
                },
            )
            metrics = self._keep(step, plan, optimizer, keeper, metrics)
            began = time.perf_counter()
        return metrics

    def _feed(self, plan: Plan, first_step: int) -> Iterator[list[MicroBatch]]:
        dataset = TrainSet(self.train, self.spec.augment, self.seed)
        return train_feed(
            dataset, plan, first_step, self.team.rank, self.team.size, self.num_loaders
        )

    def _set_lr(self, optimizer: Optimizer, step: int, num_steps: int) -> float:
        schedule = self.spec.schedule
        factor = lr_factor(
            step,
            num_steps,
            kind=schedule.kind,
            power=schedule.power,
            warmup_steps=schedule.warmup_steps,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return factor

    def _keep(
        self,
        step: int,
        plan: Plan,
        optimizer: Optimizer,
        keeper: Keeper,
        metrics: Metrics,
    ) -> Metrics:
        """Validate and save where the recipe says so; the last step always does."""
        epoch, within = divmod(step, plan.steps_per_epoch)
        every = self.spec.checkpoint_every_steps
        if step == plan.num_steps or (within == 0 and epoch % self.spec.validate_every_epochs == 0):
            confusion = evaluate_split(
                self.net, self.val, self.team, self.spec.micro_batch, self.num_loaders
            )
            scores = confusion.scores().summary()
            metrics = {f"val/{name}": value for name, value in scores.items()}
            self._emit(step, metrics)
            keeper.save(self.net, optimizer, Cursor(step, tuple(self._history)), metrics)
        elif every and step % every == 0:
            cursor = Cursor(step, tuple(self._history))
            keeper.save(self.net, optimizer, cursor, {"val/mean_iu": -1.0})
        return metrics

    def _emit(self, step: int, metrics: Metrics) -> None:
        if self.team.rank == 0:
            self._history.append((step, metrics))
            self.emit(step, metrics)
