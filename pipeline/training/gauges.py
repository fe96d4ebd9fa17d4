"""How fast workers are and what they wait for, for Ray's metrics (Prometheus) and for the log."""

from __future__ import annotations

import torch
from ray.util.metrics import Counter, Gauge

from pipeline.training.distributed import DistContext
from pipeline.training.state import Row
from pipeline.training.trainer import StepTiming

LOADER_BOUND = 0.2
"""If waiting takes more than this part of the time, more loaders help more than a faster device."""
TAGS = ("run", "phase", "rank")


class WorkerGauges:
    """One worker's speed; Ray exports it from the worker's node as `ray_fcn_...`."""

    def __init__(self, run: str, phase: str, context: DistContext) -> None:
        self.device = context.device
        self._tags = {"run": run, "phase": phase, "rank": str(context.rank)}
        self._images = Counter("fcn_images", "Trained on by this worker.", TAGS)
        self._speed = Gauge("fcn_images_per_s", "Of this worker; the sum is the run's.", TAGS)
        self._step = Gauge("fcn_step_seconds", "The last step, the wait for it included.", TAGS)
        self._wait = Gauge("fcn_loader_wait_fraction", "Part of the step.", TAGS)
        self._memory = Gauge("fcn_gpu_memory_bytes", "The most that tensors took so far.", TAGS)

    def show(self, timing: StepTiming) -> None:
        """The step that was just done."""
        if timing.images:  # a worker may have had none of the step's
            self._images.inc(timing.images, self._tags)
        self._speed.set(timing.images / timing.whole_s, self._tags)
        self._step.set(timing.whole_s, self._tags)
        self._wait.set(timing.wait_frac, self._tags)
        if self.device.type == "cuda":
            self._memory.set(torch.cuda.max_memory_allocated(self.device), self._tags)


class EpochThroughput:
    """What an epoch's steps add up to, from the rows of rank 0."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._waits_s: list[float] = []

    def add(self, rows: list[Row]) -> str | None:
        """A sentence about the last epoch that ends in these rows, if one does."""
        sentence = None
        for _, metrics in rows:
            if "perf/wait_frac" not in metrics:
                continue
            time_s = 1 / metrics["perf/images_per_s"]  # for an image
            self._times_s.append(time_s)
            self._waits_s.append(time_s * metrics["perf/wait_frac"])
            if metrics["perf/epoch"].is_integer():
                sentence = f"epoch {metrics['perf/epoch']:.0f}: {self._sum_up()}"
                self._times_s, self._waits_s = [], []
        return sentence

    def _sum_up(self) -> str:
        speed = len(self._times_s) / sum(self._times_s)
        return f"{speed:.1f} images/s, {verdict(sum(self._waits_s) / sum(self._times_s))}"


def verdict(wait_frac: float) -> str:
    """What would make it faster."""
    part = f"{wait_frac:.0%} of the time is spent waiting for the loader"
    if wait_frac < LOADER_BOUND:
        return f"compute-bound ({part})"
    return f"loader-bound ({part}); raise cluster.loader_workers"
