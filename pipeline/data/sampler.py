"""The global order as a pure function of names, and how workers share it.

Nothing here knows who computes what or what went before: the position (epoch, step) is all there is
to restore, and a restore takes the same time at any position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Optimiser steps in an epoch; the last global batch may be short."""
    return -(-num_samples // global_batch)


def smallest_micro_batch(num_samples: int, global_batch: int, micro_batch: int) -> int:
    """The number of images in the smallest micro-batch of an epoch.

    An epoch is cut into global batches, and each of them into micro-batches; either cut may leave
    a short rest.
    """
    batches = {min(num_samples, global_batch), num_samples % global_batch} - {0}
    return min(size % micro_batch or micro_batch for size in batches)


def share(count: int, rank: int, world_size: int) -> range:
    """The contiguous part of `count` things that is this worker's; parts differ by one at most."""
    return range(rank * count // world_size, (rank + 1) * count // world_size)


@dataclass(frozen=True)
class MicroBatchSpec:
    """A unit of work: its samples, and the names that its random seeds are made of."""

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
        order = epoch_order(self.num_samples, self.seed, epoch)
        return self._units(order, step, epoch, within)

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
                order, at = epoch_order(self.num_samples, self.seed, epoch), epoch
            units = self._units(order, step, epoch, within)
            mine = [units[i] for i in share(len(units), rank, world_size)]
            yield from mine or [MicroBatchSpec(step, epoch, 0, units[0].samples, void=True)]
