"""The workers of a training, as the step sees them: a rank and sums over all. It knows no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class DistContext:
    """The workers that share a training: which one this is, and sums over all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, names: Sequence[str]) -> list[str]:
        """Collect the names that all workers hold, in the order of their ranks."""
        held: list[list[str]] = [list(names)]
        if self.size > 1:
            held = [[] for _ in range(self.size)]
            dist.all_gather_object(held, list(names))
        return [name for part in held for name in part]
