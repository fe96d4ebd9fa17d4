"""From shards to micro-batches: what a worker's loader processes do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn.labels import VOID
from pipeline.config.schema import AugmentSpec
from pipeline.data.augment import Augment
from pipeline.data.sampler import BatchSchedule, MicroBatchSpec, seed_of
from pipeline.data.shards import Shards


@dataclass(frozen=True)
class MicroBatch:
    """A unit of work. image: (b, 3, h, w) uint8 RGB; label: (b, h, w) int64, void = 255."""

    image: Tensor
    label: Tensor
    ids: tuple[str, ...]
    step: int = 0
    seed: int = 0
    """The seed of all randomness inside the net, which is dropout."""
    void: bool = False

    def to(self, device: torch.device, memory_format: torch.memory_format) -> MicroBatch:
        """Copy to a device; the image takes the net's memory format."""
        image = self.image.to(device, non_blocking=True, memory_format=memory_format)
        label = self.label.to(device, non_blocking=True)
        return MicroBatch(image, label, self.ids, self.step, self.seed, self.void)

    def pin_memory(self) -> MicroBatch:
        """Copy to page-locked memory, from where a GPU copies faster; PyTorch's loader calls it."""
        image, label = self.image.pin_memory(), self.label.pin_memory()
        return MicroBatch(image, label, self.ids, self.step, self.seed, self.void)


class TrainDataset(Dataset[MicroBatch]):
    """Micro-batches by their specification; augmentation is a function of (seed, epoch, id)."""

    def __init__(self, shards: Shards, augment: AugmentSpec, seed: int) -> None:
        self.shards, self.spec, self.seed = shards, augment, seed
        self._augment: Augment | None = None

    def __getitem__(self, plan: MicroBatchSpec) -> MicroBatch:
        """Read, decode and augment the samples of a micro-batch."""
        self._augment = self._augment or Augment(self.spec)
        images, labels, ids = [], [], []
        for index in plan.samples:
            name = self.shards.id(index)
            seed = seed_of("augment", self.seed, plan.epoch, name)
            image, label = self._augment(*self.shards.image_label(index), seed)
            images.append(image)
            labels.append(np.full_like(label, VOID) if plan.void else label)
            ids.append(name)
        dropout = seed_of("dropout", self.seed, plan.step, plan.micro)
        return _batch(images, labels, tuple(ids), plan.step, dropout, plan.void)


class EvalDataset(Dataset[MicroBatch]):
    """Whole images; a key is a tuple of row numbers whose images have one size."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __getitem__(self, rows: tuple[int, ...]) -> MicroBatch:
        """Read and decode some images."""
        pairs = [self.shards.image_label(row) for row in rows]
        ids = tuple(self.shards.id(row) for row in rows)
        return _batch([p[0] for p in pairs], [p[1] for p in pairs], ids)


def _batch(
    images: list[Any],
    labels: list[Any],
    ids: tuple[str, ...],
    *name: Any,  # noqa: ANN401
) -> MicroBatch:
    image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return MicroBatch(image, torch.from_numpy(np.stack(labels)).long(), ids, *name)


def train_batches(
    dataset: TrainDataset,
    plan: BatchSchedule,
    first_step: int,
    rank: int,
    world_size: int,
    num_loaders: int,
) -> Iterator[list[MicroBatch]]:
    """This worker's micro-batches of each step from `first_step` on."""
    keys = plan.shares(first_step, rank, world_size)
    for _, micro_batches in groupby(_loader(dataset, keys, num_loaders), key=lambda m: m.step):
        yield list(micro_batches)


def eval_batches(shards: Shards, rows: range, batch: int, num_loaders: int) -> Iterable[MicroBatch]:
    """The given rows once each, images of one size together, at most `batch` of them."""
    keys = [
        tuple(group[i : i + batch])
        for _, same_size in groupby(rows, key=shards.size_px)
        for group in [list(same_size)]
        for i in range(0, len(group), batch)
    ]
    return _loader(EvalDataset(shards), keys, num_loaders)


def _loader(dataset: Dataset[Any], keys: Iterable[Any], num_loaders: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,  # a key is a whole micro-batch already
        sampler=keys,
        num_workers=num_loaders,
        pin_memory=torch.cuda.is_available(),
        # fork is not safe in a process that already runs Ray's threads
        multiprocessing_context="forkserver" if num_loaders else None,
    )
