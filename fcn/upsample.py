"""Upsampling of score maps by transposed convolution that starts as bilinear interpolation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) float32 kernel of bilinear interpolation, for odd and even sizes (paper, 3.3)."""
    factor = (size + 1) // 2
    centre = factor - 1.0 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(ramp, ramp)


class Upscore(nn.Module):
    """Scores (N, K, h, w) to (N, K, factor * (h - 1) + kernel, ...), one kernel a class, no bias.

    Fixed kernels stay bilinear; learned ones start there. The reference code found no significant
    difference and fixes them; the first paper learns the inner ones.
    """

    def __init__(self, num_classes: int, kernel: int, factor: int, *, learned: bool) -> None:
        super().__init__()
        self.factor = factor
        weight = bilinear_kernel(kernel).expand(num_classes if learned else 1, 1, -1, -1).clone()
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("fixed", weight, persistent=False)
        self.learned = learned

    def forward(self, scores: Tensor) -> Tensor:
        """Upsample scores (N, K, h, w) by the factor."""
        if self.learned:
            return F.conv_transpose2d(
                scores, self.weight, stride=self.factor, groups=scores.shape[1]
            )
        n, k = scores.shape[:2]  # the classes share one kernel: fold them into the batch
        one = scores.flatten(0, 1).unsqueeze(1)
        up = F.conv_transpose2d(one, self.get_buffer("fixed"), stride=self.factor)
        return up.unflatten(0, (n, k)).squeeze(2)
