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
from typing import Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import SGD, AdamW, Optimizer

from fcn.losses import count_valid, cross_entropy_sum
from fcn.metrics import Confusion
from fcn.nets import FCN
from fcn.normalise import MicroStatistics, set_batch_norm
from fcn.optim import freeze_trunk, lr_factor, parameter_groups
from pipeline.config.schema import FinetuneSpec, OptimizerSpec, PhaseSpec
from pipeline.data.loader import (
    MicroBatch,
    TrainDataset,
    eval_batches,
    train_batches,
)
from pipeline.data.sampler import BatchSchedule, share
from pipeline.data.shards import Shards, fetch_ahead
from pipeline.errors import TrainingError
from pipeline.training.checkpoint import BestNet, Metrics, Row, TrainState

ControlAction = Literal["go on", "save", "leave"]


@dataclass(frozen=True)
class DistContext:
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


class CheckpointManager(Protocol):
    """Where checkpoints go and come from, and who may ask for one."""

    def restore(self, net: FCN, optimizer: Optimizer) -> TrainState:
        """Put the newest checkpoint in place; the cursor says where to go on, at 0 if there is none."""

    def save(self, net: FCN, optimizer: Optimizer, cursor: TrainState) -> None:
        """Keep a checkpoint; all workers call it, one writes."""

    def noticed(self) -> bool:
        """Whether somebody may want something; asked at every step, so it takes no time."""

    def wish(self) -> ControlAction:
        """What is wanted; called by all workers together once any of them noticed something."""


class StepStats(NamedTuple):
    """What a step tells."""

    loss: float
    """Per valid pixel of the whole global batch, in nats."""
    grad_norm: float
    images: int
    noticed: bool
    """By any worker."""


class StepTiming(NamedTuple):
    """How long a step took on one worker."""

    images: int
    """Of this worker's share."""
    wait_s: float
    """Until the loader had them."""
    whole_s: float
    """From when the loader was asked to the end of the step."""

    @property
    def wait_frac(self) -> float:
        """0: the loader is always ahead; towards 1: the worker only waits for it."""
        return self.wait_s / self.whole_s if self.whole_s else 0.0


@dataclass
class TrainStep:
    """What a step works with."""

    net: FCN
    optimizer: Optimizer
    team: DistContext
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

    def step(self, micro_batches: Sequence[MicroBatch], *, noticed: bool = False) -> StepStats:
        """One optimiser step on this worker's micro-batches of a global batch.

        Raises:
            TrainingError: loss or gradient is not finite; the step is not taken.
        """
        batches = [m.to(self.team.device, self.memory_format) for m in micro_batches]
        real = [b for b in batches if not b.void]
        valid, images, units, notices = self._count(real, noticed)
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
        grad_norm = float(
            get_total_norm(p.grad for p in self.net.parameters() if p.grad is not None)
        )
        if not math.isfinite(mean_loss + grad_norm):
            names = self.team.gather([name for batch in real for name in batch.ids])
            lost = not math.isfinite(mean_loss)
            what, value = ("loss", mean_loss) if lost else ("gradient", grad_norm)
            raise TrainingError(
                f"the {what} became {value} at step {batches[0].step + 1}, on {', '.join(names)}; "
                "that step was not taken and nothing was saved since the last checkpoint. A lower "
                "finetune.optimizer.lr or a longer finetune.schedule.warmup_steps is the usual remedy"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepStats(mean_loss, grad_norm, images, notices > 0)

    def _count(self, real: Sequence[MicroBatch], noticed: bool) -> list[int]:
        """Valid pixels, images and micro-batches of the whole global batch; workers with a notice."""
        mine = torch.zeros(4, dtype=torch.int64)
        for batch in real:
            mine[:3] += torch.tensor([count_valid(batch.label), len(batch.label), 1])
        mine[3] = int(noticed)
        return self.team.sum(mine.to(self.team.device)).tolist()

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, after the last micro-batch."""
        if last or not isinstance(self.ddp, DistributedDataParallel):
            return nullcontext()
        return self.ddp.no_sync()


@torch.inference_mode()
def count_errors(
    net: FCN, batches: Iterable[MicroBatch], team: DistContext
) -> tuple[Confusion, int]:
    """Confusion matrix of some batches on one worker, and how many images were counted."""
    confusion = Confusion(net.blueprint.num_classes, team.device)
    seen = 0
    for batch in batches:
        moved = batch.to(team.device, torch.contiguous_format)
        confusion.update(moved.label, net(moved.image).argmax(1))
        seen += len(moved.ids)
    return confusion, seen


def evaluate_split(
    net: FCN, shards: Shards, team: DistContext, batch: int, num_loaders: int
) -> Confusion:
    """One confusion matrix over a whole split: each image once, on one worker, summed over all.

    Raises:
        TrainingError: the images counted are not as many as the split has.
    """
    was_training = {m: m.training for m in net.modules()}
    net.eval()
    rows = share(len(shards), team.rank, team.size)
    confusion, seen = count_errors(net, eval_batches(shards, rows, batch, num_loaders), team)
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
class Trainer:
    """One training from a net's start to the end of its schedule, from wherever it stands."""

    net: FCN
    spec: FinetuneSpec
    phase: PhaseSpec
    seed: int
    train: Shards
    val: Shards
    team: DistContext = field(default_factory=DistContext)
    num_loaders: int = 0
    emit: Callable[[list[Row]], None] = lambda rows: None
    """Called on rank 0 after each step and validation; after a resume also with all that went before."""
    watch: Callable[[StepTiming], None] = lambda pace: None
    """Called on every rank after each step."""

    def run(self, keeper: CheckpointManager) -> TrainState:
        """Train to the end, or until asked to leave; the cursor says how far it came."""
        if self.spec.trainable == "head":
            freeze_trunk(self.net)
        optimizer = build_optimizer(
            self.net, self.spec.optimizer, self.spec.optimizer.lr * self.phase.lr_mult
        )
        stepper = TrainStep(self.net, optimizer, self.team, self.spec)
        cursor = keeper.restore(self.net, optimizer)
        if self.team.rank == 0:
            self.emit(cursor.history.rows())
        else:
            cursor.best = None  # rank 0 keeps it
        plan = BatchSchedule(
            num_samples=len(self.train),
            global_batch=self.spec.global_batch,
            micro_batch=self.spec.micro_batch,
            epochs=self.phase.epochs,
            seed=self.seed,
        )
        began = time.perf_counter()
        for micro_batches in self._feed(plan, cursor.step):
            fed = time.perf_counter()
            factor = self._set_lr(optimizer, cursor.step, plan.num_steps)
            taken = stepper.step(micro_batches, noticed=keeper.noticed())
            cursor.step += 1
            images = sum(len(m.ids) for m in micro_batches if not m.void)
            pace = StepTiming(images, fed - began, time.perf_counter() - began)
            self.watch(pace)
            self._tell(
                cursor,
                {
                    "train/loss": taken.loss,
                    "train/grad_norm": taken.grad_norm,
                    "train/lr": self.spec.optimizer.lr * self.phase.lr_mult * factor,
                    "perf/images_per_s": taken.images / pace.whole_s,
                    "perf/wait_frac": pace.wait_frac,
                    "perf/epoch": cursor.step / plan.steps_per_epoch,
                },
            )
            wish = keeper.wish() if taken.noticed else "go on"
            self._keep(cursor, plan, optimizer, keeper, wish)
            if wish == "leave":
                break
            began = time.perf_counter()
        return cursor

    def _feed(self, plan: BatchSchedule, first_step: int) -> Iterator[list[MicroBatch]]:
        dataset = TrainDataset(self.train, self.spec.augment, self.seed)
        fetch_ahead(self.train, self.val)
        return train_batches(
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
        cursor: TrainState,
        plan: BatchSchedule,
        optimizer: Optimizer,
        keeper: CheckpointManager,
        wish: ControlAction,
    ) -> None:
        """Validate and save where the recipe says so; the last step always does."""
        epoch, within = divmod(cursor.step, plan.steps_per_epoch)
        due = within == 0 and epoch % self.spec.validate_every_epochs == 0
        validate = due or cursor.step == plan.num_steps
        if validate:
            self._validate(cursor)
        every = self.spec.checkpoint_every_steps
        if validate or wish != "go on" or (every and cursor.step % every == 0):
            require_finite(self.net, cursor.step)
            began = time.perf_counter()
            keeper.save(self.net, optimizer, cursor)
            self._tell(cursor, {"perf/saving_s": time.perf_counter() - began})

    def _validate(self, cursor: TrainState) -> None:
        confusion = evaluate_split(
            self.net, self.val, self.team, self.spec.micro_batch, self.num_loaders
        )
        scores = confusion.scores().summary()
        metrics = {f"val/{name}": value for name, value in scores.items()}
        self._tell(cursor, metrics)
        if self.team.rank == 0 and cursor.beaten_by(metrics):
            copied = {
                k: v.detach().to("cpu", copy=True).contiguous()
                for k, v in self.net.state_dict().items()
            }
            cursor.best = BestNet(cursor.step, metrics, copied)

    def _tell(self, cursor: TrainState, metrics: Metrics) -> None:
        if self.team.rank == 0:
            cursor.history.add(cursor.step, metrics)
            self.emit([(cursor.step, metrics)])


def require_finite(net: nn.Module, step: int) -> None:
    """No checkpoint with weights that are no numbers: nothing could go on from it.

    Raises:
        TrainingError: an update overflowed.
    """
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(
                f"{name} is not finite after step {step}, so no checkpoint was written; a lower "
                "finetune.optimizer.lr is the usual remedy"
            )
