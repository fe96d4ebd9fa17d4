"""Upsampling of score maps by transposed convolution that starts as bilinear interpolation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) float32 kernel of bilinear interpolation, for odd and even sizes (paper, 3.3)."""
    factor = (size + 1) // 2
    centre = factor - 1.0 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(ramp, ramp)


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Autocast switched off; a meta device has none."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


UpscoreKind = Literal["fixed", "learned", "dense"]


class Upscore(nn.Module):
    """Scores (N, K, h, w) to (N, K, factor * (h - 1) + kernel, ...), without bias.

    - `fixed`: one bilinear kernel that stays so. The reference code found no significant difference.
    - `learned`: one kernel a class, which starts bilinear; the first paper learns the inner ones.
    - `dense`: the paper's full tensor: a kernel for each pair of classes, at first on the diagonal.
    """

    def __init__(self, num_classes: int, kernel: int, factor: int, kind: UpscoreKind) -> None:
        super().__init__()
        self.kernel, self.factor, self.kind = kernel, factor, kind
        if kind == "learned":
            self.weight = nn.Parameter(
                bilinear_kernel(kernel).expand(num_classes, 1, -1, -1).clone()
            )
        elif kind == "dense":
            diagonal = torch.eye(num_classes)[..., None, None]
            self.weight = nn.Parameter(diagonal * bilinear_kernel(kernel))

    def forward(self, scores: Tensor) -> Tensor:
        """Upsample scores (N, K, h, w) by the factor; bf16 of autocast is no precision for that."""
        with _full_precision(scores.device.type):
            if scores.dtype.itemsize < 4:
                scores = scores.float()
            if self.kind == "fixed":
                return self._interpolate(scores)
            groups = len(self.weight) if self.kind == "learned" else 1
            return F.conv_transpose2d(scores, self.weight, stride=self.factor, groups=groups)

    def _interpolate(self, scores: Tensor) -> Tensor:
        # The bilinear kernel is an outer product, so its transposed convolution is two small matrix
        # products, along height and along width: the same sums, several times as fast.
        height, width = scores.shape[2:]
        tall = scores.transpose(2, 3) @ self._spread(height, scores).T
        return tall.transpose(2, 3) @ self._spread(width, scores).T

    def _spread(self, size: int, like: Tensor) -> Tensor:
        """(factor * (size - 1) + kernel, size): column i is the profile from row factor * i on."""
        reach = (self.kernel + 1) // 2
        centre = reach - 1.0 if self.kernel % 2 else reach - 0.5
        long = self.factor * (size - 1) + self.kernel
        rows = torch.arange(long, device=like.device, dtype=torch.float64)
        columns = self.factor * torch.arange(size, device=like.device)
        away = (rows[:, None] - columns - centre).abs() / reach
        return (1 - away).clamp(min=0).to(like.dtype)
