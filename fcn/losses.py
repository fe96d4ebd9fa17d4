"""The loss as a sum and a count of pixels.

A step divides the sum over the whole global batch by the count over the whole global batch, so the
division is done where both are known: in the training step, not here.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fcn.labels import VOID


def cross_entropy_sum(scores: Tensor, label: Tensor) -> Tensor:
    """Per-pixel multinomial logistic loss summed over valid pixels, in nats (paper, section 3).

    scores: (N, K, H, W) float; label: (N, H, W) int64 in [0, K) or VOID. A batch that is all void
    gives an exact zero with zero gradients.
    """
    if scores.dtype.itemsize < 4:  # bf16 has 8 bits of mantissa: too few to sum pixels in
        scores = scores.float()
    return F.cross_entropy(scores, label, ignore_index=VOID, reduction="sum")


def count_valid(label: Tensor) -> int:
    """How many pixels are not void."""
    return int((label != VOID).sum())
