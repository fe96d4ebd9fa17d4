"""What mean IU a net of a coarse stride can reach at best on given labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fcn.labels import VOID

STRIDES = (32, 16, 8)


def stride_ceilings(
    labels: Iterable[NDArray[np.uint8]], num_classes: int, strides: Sequence[int] = STRIDES
) -> Mapping[int, float]:
    """By stride, the mean IU of labels that were made as coarse as a net's score maps, and fine again.

    As in the paper's section 4.4 it is a bound for orientation, not a proof: of each cell of stride x
    stride pixels only the share of every class is kept, and shares are interpolated bilinearly, as nets
    do with scores. Void counts nowhere. Fractions in [0, 1]; NaN if there is no label.
    """
    counts = {stride: np.zeros((num_classes, num_classes), np.int64) for stride in strides}
    for label in labels:
        valid = label != VOID
        for stride, total in counts.items():
            pairs = num_classes * label[valid].astype(np.intp) + coarse(label, stride)[valid]
            total += np.bincount(pairs, minlength=num_classes**2).reshape(total.shape)
    return {stride: _mean_iu(total) for stride, total in counts.items()}


def coarse(label: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    """A label map (H, W) with no detail finer than a stride; void takes the class of its neighbours."""
    height, width = label.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.pad(
        label, ((0, rows * stride - height), (0, columns * stride - width)), constant_values=VOID
    )
    best = np.zeros(padded.shape, np.float32)
    found = np.zeros(padded.shape, np.uint8)
    for k in np.flatnonzero(np.bincount(label.ravel(), minlength=VOID)[:VOID]):
        there = (padded == k).astype(np.float32)
        share = cv2.resize(there, (columns, rows), interpolation=cv2.INTER_AREA)
        fine = cv2.resize(share, padded.shape[::-1], interpolation=cv2.INTER_LINEAR)
        np.copyto(found, np.uint8(k), where=fine > best)
        np.maximum(best, fine, out=best)
    return found[:height, :width]


def _mean_iu(counts: NDArray[np.int64]) -> float:
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    present = union > 0
    return float((hit[present] / union[present]).mean()) if present.any() else float("nan")
