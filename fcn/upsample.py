"""Upsampling of score maps by transposed convolution that starts as bilinear interpolation."""

from __future__ import annotations

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


UpscoreKind = Literal["fixed", "learned", "dense"]


class Upscore(nn.Module):
    """Scores (N, K, h, w) to (N, K, factor * (h - 1) + kernel, ...), without bias.

    - `fixed`: one bilinear kernel that stays so. The reference code found no significant difference.
    - `learned`: one kernel a class, which starts bilinear; the first paper learns the inner ones.
    - `dense`: the paper's full tensor: a kernel for each pair of classes, at first on the diagonal.
    """

    def __init__(self, num_classes: int, kernel: int, factor: int, kind: UpscoreKind) -> None:
        super().__init__()
        self.factor, self.kind = factor, kind
        bilinear = bilinear_kernel(kernel)
        if kind == "fixed":
            self.register_buffer("fixed", bilinear[None, None].clone(), persistent=False)
        elif kind == "learned":
            self.weight = nn.Parameter(bilinear.expand(num_classes, 1, -1, -1).clone())
        else:
            self.weight = nn.Parameter(torch.eye(num_classes)[..., None, None] * bilinear)

    def forward(self, scores: Tensor) -> Tensor:
        """Upsample scores (N, K, h, w) by the factor."""
        n, k = scores.shape[:2]
        if self.kind != "fixed":
            groups = k if self.kind == "learned" else 1
            return F.conv_transpose2d(scores, self.weight, stride=self.factor, groups=groups)
        one = scores.flatten(0, 1).unsqueeze(
            1
        )  # the classes share a kernel: fold them into the batch
        up = F.conv_transpose2d(one, self.get_buffer("fixed"), stride=self.factor)
        return up.unflatten(0, (n, k)).squeeze(2)
