"""The global order as a pure function of names, and how workers share it.

Nothing here knows who computes what or what went before: the cursor (epoch, step) is all there is to
restore, and a restore takes the same time at any position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def seed_of(*names: int | str) -> int:
    """A 32-bit seed from names, the same on every machine and in every process."""
    text = "/".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch."""
    return np.random.default_rng(seed_of("order", seed, epoch)).permutation(num_samples)


def windows_of(num_shards: int, window: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Shards in the order of an epoch, cut into windows; the last may be short."""
    shards = np.random.default_rng(seed_of("shards", seed, epoch)).permutation(num_shards)
    return [shards[start : start + window] for start in range(0, num_shards, window)]


def windowed_order(rows: Sequence[int], window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch that needs no more than two windows of shards at a time.

    Args:
        rows: Samples of each shard.
        window: Shards whose samples are shuffled together.
        seed: Of the run.
        epoch: From 0.
    """
    rng = np.random.default_rng(seed_of("order", seed, epoch))
    starts = np.cumsum([0, *rows])
    parts = [
        rng.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards]))
        for shards in windows_of(len(rows), window, seed, epoch)
    ]
    return np.concatenate(parts)


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Optimiser steps in an epoch; the last global batch may be short."""
    return -(-num_samples // global_batch)


def share(count: int, rank: int, world_size: int) -> range:
    """The contiguous part of `count` things that is this worker's; parts differ by one at most."""
    return range(rank * count // world_size, (rank + 1) * count // world_size)


@dataclass(frozen=True)
class MicroBatchSpec:
    """A unit of work: which samples, and by what name its randomness goes."""

    step: int
    """Optimiser step, counted from the start of the phase."""
    epoch: int
    micro: int
    """Position within the global batch."""
    samples: tuple[int, ...]
    void: bool = False
    """A filler for a worker without a share: its labels are all void, its gradient zero."""


@dataclass(frozen=True)
class BatchSchedule:
    """The work of a whole phase."""

    num_samples: int
    global_batch: int
    micro_batch: int
    epochs: int
    seed: int
    rows: tuple[int, ...] = ()
    """Samples of each shard; for windows."""
    window: int | None = None
    """Shards whose samples are shuffled together; all if not given."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return steps_per_epoch(self.num_samples, self.global_batch)

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the phase."""
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, step: int) -> list[MicroBatchSpec]:
        """All units of a step, whoever computes them."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._units(self.order(epoch), step, epoch, within)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch."""
        if self.window is None:
            return epoch_order(self.num_samples, self.seed, epoch)
        return windowed_order(self.rows, self.window, self.seed, epoch)

    def needed(self, step: int) -> list[int]:
        """The shards of the window in which a step begins and of the one after it, in their order."""
        if self.window is None:
            return list(range(len(self.rows)))
        epoch, within = divmod(step, self.steps_per_epoch)
        windows = windows_of(len(self.rows), self.window, self.seed, epoch)
        ends = np.cumsum([sum(self.rows[s] for s in shards) for shards in windows])
        at = int(np.searchsorted(ends, within * self.global_batch, side="right"))
        if epoch + 1 < self.epochs:
            windows += windows_of(len(self.rows), self.window, self.seed, epoch + 1)
        return [int(shard) for shards in windows[at : at + 2] for shard in shards]

    def _units(
        self, order: NDArray[np.int64], step: int, epoch: int, within: int
    ) -> list[MicroBatchSpec]:
        batch = order[within * self.global_batch : (within + 1) * self.global_batch].tolist()
        chunks = [batch[i : i + self.micro_batch] for i in range(0, len(batch), self.micro_batch)]
        return [MicroBatchSpec(step, epoch, m, tuple(chunk)) for m, chunk in enumerate(chunks)]

    def shares(self, first_step: int, rank: int, world_size: int) -> Iterator[MicroBatchSpec]:
        """This worker's units from a step to the end of the phase; at least one in every step."""
        order, at = np.empty(0, np.int64), -1
        for step in range(first_step, self.num_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != at:
                order, at = self.order(epoch), epoch
            units = self._units(order, step, epoch, within)
            mine = [units[i] for i in share(len(units), rank, world_size)]
            yield from mine or [MicroBatchSpec(step, epoch, 0, units[0].samples, void=True)]
