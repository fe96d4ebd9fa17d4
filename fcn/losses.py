"""The loss as a sum, and what to divide it by: counts of pixels, or the sum of their classes' weights.

A step divides the sum over the whole global batch by the count over the whole global batch, so the
division is done where both are known: in the training step, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fcn.labels import VOID

Balance = Literal["none", "inverse", "median-frequency"]


def cross_entropy_sum(scores: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Per-pixel multinomial logistic loss summed over valid pixels, in nats (paper, section 3).

    With `weights` (K,), those of `class_weights`, each pixel counts as much as its class.

    scores: (N, K, H, W) float; label: (N, H, W) int64 in [0, K) or VOID. A batch that is all void
    gives an exact zero with zero gradients.
    """
    if scores.dtype.itemsize < 4:  # bf16 has 8 bits of mantissa: too few to sum pixels in
        scores = scores.float()
    if weights is not None:
        weights = weights.to(scores)
    return F.cross_entropy(scores, label, weights, ignore_index=VOID, reduction="sum")


def count_classes(label: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class (K,), int64: sums of integers do not depend on their order."""
    return torch.bincount(label[label != VOID], minlength=num_classes)


def class_weights(balance: Balance | Sequence[float], image_px: Tensor) -> Tensor | None:
    """Weight of each class (K,) float64, from the pixels of each class in each image (images, K).

    - `none`: None, all pixels count alike. The paper found balancing unnecessary.
    - `inverse`: all pixels / (K x pixels of the class).
    - `median-frequency`: the median of the classes' frequencies / the class's frequency, which is its
      share of the pixels of those images that show it (Eigen and Fergus, 2015).
    - numbers: themselves.

    A class without a pixel weighs 1, and no pixel does.
    """
    if balance == "none":
        return None
    if not isinstance(balance, str):
        return torch.tensor(list(balance), dtype=torch.float64)
    px = image_px.double()
    own, there = px.sum(0), px.sum(0) > 0
    if balance == "inverse":
        weights = px.sum() / (px.shape[1] * own)
    else:
        frequency = own / ((px > 0) * px.sum(1, keepdim=True)).sum(0)
        weights = frequency[there].quantile(0.5) / frequency
    return torch.where(there, weights, 1.0)
