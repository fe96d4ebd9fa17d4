"""The training loop: a step, an epoch, a phase. It reads top to bottom and knows no Ray.

Whoever computes it, a step is the same: the loss is the sum over the valid pixels of the whole
global batch divided by their number, and everything random is a function of names.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer

from fcn.losses import class_weights, count_classes, cross_entropy_sum
from fcn.nets import FCN
from fcn.normalise import MicroStatistics, set_batch_norm
from fcn.optim import freeze_trunk, lr_factor, parameter_groups
from pipeline.config.schema import FinetuneSpec, OptimizerSpec, PhaseSpec
from pipeline.data.loader import MicroBatch, TrainDataset, train_batches
from pipeline.data.sampler import BatchSchedule
from pipeline.data.shards import Shards
from pipeline.errors import TrainingError
from pipeline.training.checkpoint import ControlAction
from pipeline.training.distributed import DistContext
from pipeline.training.evaluation import evaluate_split
from pipeline.training.state import BestNet, Metrics, Row, TrainState


class CheckpointManager(Protocol):
    """Where checkpoints go and come from, and who may ask the training to save or stop.

    All steps are counted as done: while the first step is computed, `step` is 1.
    """

    def restore(self, net: FCN, optimizer: Optimizer) -> TrainState:
        """Load the newest checkpoint; the state says where to go on, at step 0 if there is none."""

    def save(self, net: FCN, optimizer: Optimizer, state: TrainState) -> None:
        """Keep a checkpoint; all workers call it, one writes."""

    def noticed(self, step: int) -> bool:
        """Whether this worker has a reason to poll after a step; asked at each step, so it is cheap."""

    def poll(self, step: int) -> ControlAction:
        """What to do after a step; called by all workers together once any of them noticed something."""


class StepCounts(NamedTuple):
    """What all workers add up before a step, in one exchange."""

    images: int
    micro_batches: int
    notices: int
    """Workers whose checkpoint manager noticed something. To ask all of them at each step would take
    an exchange of its own; so the answer rides on the one that the loss needs anyway."""


class StepStats(NamedTuple):
    """What a step came to, over all workers."""

    loss: float
    """Per valid pixel of the whole global batch, in nats."""
    grad_norm: float
    images: int
    noticed: bool
    """Whether any worker's checkpoint manager noticed something."""


class StepTiming(NamedTuple):
    """How long a step took on one worker."""

    images: int
    """Images of this worker's share."""
    wait_s: float
    """Time until the loader had them."""
    whole_s: float
    """Time from when the loader was asked to the end of the step."""

    @property
    def wait_frac(self) -> float:
        """0 if the loader is always ahead, towards 1 if the worker only waits for it."""
        return self.wait_s / self.whole_s if self.whole_s else 0.0


@dataclass
class TrainStep:
    """One optimiser step over this worker's share of a global batch."""

    net: FCN
    optimizer: Optimizer
    context: DistContext
    spec: FinetuneSpec
    class_weights: Tensor | None = None
    """How much a pixel of each class counts, (K,) float64; None: all alike."""

    def __post_init__(self) -> None:
        mode = self.spec.normalisation
        self.net = set_batch_norm(self.net, mode)  # type: ignore[assignment]
        self.statistics = MicroStatistics(self.net) if mode == "micro" else None
        self.autocast = torch.autocast(
            self.context.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"
        )
        self.memory_format = (
            torch.channels_last if self.spec.channels_last else torch.contiguous_format
        )
        self.net.to(self.context.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.ddp: nn.Module = self.net
        if self.context.size > 1:
            with warnings.catch_warnings():
                # Its new name is not in torch 2.11. Buffers are ours to keep equal: MicroStatistics.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self.ddp = DistributedDataParallel(self.net, broadcast_buffers=False)

    def step(self, micro_batches: Sequence[MicroBatch], *, noticed: bool = False) -> StepStats:
        """Take one step; all workers call it together.

        Raises:
            TrainingError: loss or gradient is not finite; the step is not taken.
        """
        counts, denominator = self._count(micro_batches, noticed)
        if self.statistics:
            self.statistics.begin()
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for i, micro_batch in enumerate(micro_batches):
            batch = micro_batch.to(self.context.device, self.memory_format)
            torch.manual_seed(batch.seed)  # dropout does not depend on who computes the micro-batch
            with self._sync(last=i == len(micro_batches) - 1):
                with self.autocast:
                    scores = self.ddp(batch.image)
                    loss = cross_entropy_sum(scores, batch.label, self.class_weights)
                # The loss is divided here, once: by the valid pixels of the whole global batch (or what
                # their classes weigh), so that gradients simply add up over micro-batches. DDP takes the
                # mean over workers where a sum is wanted, hence the factor. `backward` stays outside
                # autocast, as torch asks.
                (loss / denominator * self.context.size).backward()
            total += loss.detach()
        if self.statistics:
            num_real = sum(not m.void for m in micro_batches)
            sums = self.context.sum(self.statistics.weighted(num_real))
            self.statistics.finish(sums, counts.micro_batches)
        mean_loss = float(self.context.sum(total)) / denominator
        norm = get_total_norm(p.grad for p in self.net.parameters() if p.grad is not None)
        grad_norm = float(norm)
        if not math.isfinite(mean_loss + grad_norm):  # the same on all workers: all of them raise
            raise self._not_finite(mean_loss, grad_norm, micro_batches)
        if self.spec.max_grad_norm:
            clip_grads_with_norm_(self.net.parameters(), self.spec.max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepStats(mean_loss, grad_norm, counts.images, counts.notices > 0)

    def _count(
        self, micro_batches: Sequence[MicroBatch], noticed: bool
    ) -> tuple[StepCounts, float]:
        """Counts of the whole global batch, and what its valid pixels weigh; 1 if there are none.

        Fillers, which are all void, count for nothing.
        """
        real = [m for m in micro_batches if not m.void]
        # Counted before the copy to the device: reading a count back from there would wait for it.
        mine = StepCounts(
            images=sum(len(m.ids) for m in real),
            micro_batches=len(real),
            notices=int(noticed),
        )
        num_classes = self.net.blueprint.num_classes
        class_px = torch.zeros(num_classes, dtype=torch.int64)
        for micro_batch in real:
            class_px += count_classes(micro_batch.label, num_classes)
        every = torch.cat([torch.tensor(mine), class_px]).to(self.context.device)
        sums = self.context.sum(every).cpu()
        class_px = sums[len(mine) :]
        weighed = class_px if self.class_weights is None else class_px * self.class_weights
        return StepCounts(*sums[: len(mine)].tolist()), float(weighed.sum()) or 1.0

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, in the last micro-batch's `backward`."""
        if last or not isinstance(self.ddp, DistributedDataParallel):
            return nullcontext()
        return self.ddp.no_sync()

    def _not_finite(
        self, loss: float, grad_norm: float, micro_batches: Sequence[MicroBatch]
    ) -> TrainingError:
        mine = [name for m in micro_batches if not m.void for name in m.ids]
        names = ", ".join(self.context.gather(mine))
        lost = not math.isfinite(loss)
        what, value = ("loss", loss) if lost else ("gradient", grad_norm)
        return TrainingError(
            f"the {what} became {value} at step {micro_batches[0].step + 1}, on {names}; "
            "that step was not taken and nothing was saved since the last checkpoint. A lower "
            "finetune.optimizer.lr or a longer finetune.schedule.warmup_steps is the usual remedy"
        )


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
    """The training of one phase, from wherever its newest checkpoint stands to its end."""

    net: FCN
    spec: FinetuneSpec
    phase: PhaseSpec
    seed: int
    train: Shards
    val: Shards
    context: DistContext = field(default_factory=DistContext)
    num_loaders: int = 0
    log_rows: Callable[[list[Row]], None] = lambda rows: None
    """Called on rank 0 after each step and validation; after a resume also with all rows before."""
    log_timing: Callable[[StepTiming], None] = lambda timing: None
    """Called on every rank after each step."""

    def run(self, manager: CheckpointManager) -> TrainState:
        """Train to the end, or until asked to stop; the state says how far it came.

        Raises:
            TrainingError: a loss, a gradient or a weight is not finite.
        """
        self._prepare()
        state = manager.restore(self.net, self._optimizer)
        if self.context.rank == 0:
            self.log_rows(state.history.rows())
        else:
            state.best = None  # rank 0 keeps it
        asked = time.perf_counter()
        for micro_batches in self._micro_batches(state.step):
            loaded = time.perf_counter()
            lr_frac = self._set_lr(state.step)
            stats = self._step.step(micro_batches, noticed=manager.noticed(state.step + 1))
            state.step += 1
            images = sum(len(m.ids) for m in micro_batches if not m.void)
            timing = StepTiming(images, loaded - asked, time.perf_counter() - asked)
            self.log_timing(timing)
            self._log(state, self._metrics(state.step, lr_frac, stats, timing))
            action = manager.poll(state.step) if stats.noticed else "continue"
            self._validate_and_save(state, manager, action)
            if action == "stop":
                break
            asked = time.perf_counter()
        return state

    def _prepare(self) -> None:
        if self.spec.trainable == "head":
            freeze_trunk(self.net)
        self._lr = self.spec.optimizer.lr * self.phase.lr_mult
        self._optimizer = build_optimizer(self.net, self.spec.optimizer, self._lr)
        weights = None
        if self.spec.class_weights != "none":
            weights = class_weights(self.spec.class_weights, torch.tensor(self.train.class_px()))
        self._step = TrainStep(self.net, self._optimizer, self.context, self.spec, weights)
        self._schedule = BatchSchedule(
            num_samples=len(self.train),
            global_batch=self.spec.global_batch,
            micro_batch=self.spec.micro_batch,
            epochs=self.phase.epochs,
            seed=self.seed,
        )

    def _micro_batches(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """This worker's share of each step from the first one on."""
        dataset = TrainDataset(self.train, self.spec.augment, self.seed)
        rank, size = self.context.rank, self.context.size
        return train_batches(dataset, self._schedule, first_step, rank, size, self.num_loaders)

    def _set_lr(self, step: int) -> float:
        """Set the learning rates of a step; return them as a fraction of the schedule's highest."""
        schedule = self.spec.schedule
        factor = lr_factor(
            step,
            self._schedule.num_steps,
            kind=schedule.kind,
            power=schedule.power,
            warmup_steps=schedule.warmup_steps,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return factor

    def _metrics(self, step: int, lr_frac: float, stats: StepStats, timing: StepTiming) -> Metrics:
        return {
            "train/loss": stats.loss,
            "train/grad_norm": stats.grad_norm,
            "train/lr": self._lr * lr_frac,
            "perf/images_per_s": stats.images / timing.whole_s,
            "perf/wait_frac": timing.wait_frac,
            "perf/epoch": step / self._schedule.steps_per_epoch,
        }

    def _validate_and_save(
        self, state: TrainState, manager: CheckpointManager, action: ControlAction
    ) -> None:
        """Validate and save where the recipe says so; the last step always does both."""
        epoch, within = divmod(state.step, self._schedule.steps_per_epoch)
        due = within == 0 and epoch % self.spec.validate_every_epochs == 0
        validate = due or state.step == self._schedule.num_steps
        if validate:
            self._validate(state)
        every = self.spec.checkpoint_every_steps
        if validate or action != "continue" or (every and state.step % every == 0):
            require_finite(self.net, state.step)
            began = time.perf_counter()
            manager.save(self.net, self._optimizer, state)
            self._log(state, {"perf/saving_s": time.perf_counter() - began})

    def _validate(self, state: TrainState) -> None:
        confusion = evaluate_split(
            self.net, self.val, self.context, self.spec.micro_batch, self.num_loaders
        )
        scores = confusion.scores().summary()
        metrics = {f"val/{name}": value for name, value in scores.items()}
        self._log(state, metrics)
        if self.context.rank == 0 and state.beaten_by(metrics):
            copied = {
                k: v.detach().to("cpu", copy=True).contiguous()
                for k, v in self.net.state_dict().items()
            }
            state.best = BestNet(state.step, metrics, copied)

    def _log(self, state: TrainState, metrics: Metrics) -> None:
        if self.context.rank == 0:
            state.history.add(state.step, metrics)
            self.log_rows([(state.step, metrics)])


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
