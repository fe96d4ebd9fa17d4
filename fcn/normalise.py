"""Batch normalisation whose result does not depend on how many workers compute it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

BatchNorm = Literal["frozen", "micro", "sync"]


def set_batch_norm(net: nn.Module, mode: BatchNorm) -> nn.Module:
    """Put a net in training mode with its batch normalisation in one of three modes.

    - `frozen`: statistics stay those of the pretrained weights; gains and shifts are trained. Any
      number of workers computes the same step. The choice for transplanted nets.
    - `micro`: each micro-batch is normalised by its own statistics; `MicroStatistics` averages them
      over the global batch. Any number of workers computes the same step. The choice from scratch.
    - `sync`: statistics of what all workers hold at that moment (torch.nn.SyncBatchNorm; CUDA only).
      The step depends on how many workers share the global batch.
    """
    if mode == "sync":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net.train()
    if mode == "frozen":
        for layer in _layers(net):
            layer.eval()
    return net


def _layers(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class MicroStatistics:
    """Running statistics of a global batch, gathered micro-batch by micro-batch.

    Before a step every layer starts to average afresh; after it the averages (weighted by this
    worker's micro-batches, summed over workers by the caller) are blended into the running ones.
    """

    def __init__(self, net: nn.Module, momentum: float = 0.1) -> None:
        self.layers = [
            layer for layer in _layers(net) if layer.training and layer.track_running_stats
        ]
        self.momentum = momentum

    def _buffers(self) -> list[Tensor]:
        return [b for m in self.layers for b in (m.running_mean, m.running_var) if b is not None]

    def __bool__(self) -> bool:
        """Return whether the net has a layer that gathers statistics; VGG16 and AlexNet have none."""
        return bool(self.layers)

    def begin(self) -> None:
        """Remember the running statistics and average from nothing."""
        self._before = [b.clone() for b in self._buffers()]
        self._seen = [layer.get_buffer("num_batches_tracked").clone() for layer in self.layers]
        for layer in self.layers:
            layer.momentum = None  # torch then keeps the plain mean of all batches since the reset
            layer.reset_running_stats()

    def weighted(self, num_micro_batches: int) -> Tensor:
        """This worker's averages times its micro-batches, as one vector to be summed over workers."""
        flat = torch.cat([b.flatten() for b in self._buffers()])
        return flat * num_micro_batches if num_micro_batches else torch.zeros_like(flat)

    def finish(self, total: Tensor, num_micro_batches: int) -> None:
        """Blend the sum over all workers' micro-batches into the running statistics."""
        sizes = [b.numel() for b in self._buffers()]
        for buffer, before, part in zip(
            self._buffers(), self._before, (total / num_micro_batches).split(sizes), strict=True
        ):
            buffer.copy_(torch.lerp(before, part.view_as(before), self.momentum))
        for layer, seen in zip(self.layers, self._seen, strict=True):
            layer.get_buffer("num_batches_tracked").copy_(seen + num_micro_batches)
