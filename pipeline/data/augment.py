"""Joint transforms of an image and its label; a sample's draw is a pure function of its name."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network

import albumentations as A
import cv2

from fcn.labels import VOID
from pipeline.config.schema import AugmentSpec

FILL = (124, 116, 104)
"""Outside the image: about the mean of ImageNet, which every preprocessing takes to about zero."""


class Augment:
    """Scale, crop and flip of image and label together, then colour changes of the image alone."""

    def __init__(self, spec: AugmentSpec) -> None:
        height, width = spec.crop_px
        steps: list[A.BasicTransform] = []
        if spec.scale != (1.0, 1.0):
            low, high = spec.scale
            steps.append(
                A.RandomScale(
                    (low - 1, high - 1),
                    interpolation=cv2.INTER_LINEAR,
                    mask_interpolation=cv2.INTER_NEAREST_EXACT,
                    p=1,
                )
            )
        steps += [
            A.PadIfNeeded(height, width, position="random", fill=FILL, fill_mask=VOID),
            A.RandomCrop(height, width),
        ]
        if spec.flip_prob:
            steps.append(A.HorizontalFlip(p=spec.flip_prob))
        if spec.jitter:
            around = (1 - spec.jitter, 1 + spec.jitter)
            hue = (-spec.jitter / 10, spec.jitter / 10)
            steps.append(A.ColorJitter(around, around, around, hue, p=1))
        self._compose = A.Compose(steps)

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and label (H, W) to the crop's size; the same seed gives the same crop."""
        self._compose.set_random_seed(seed)
        out = self._compose(image=image, mask=label)
        return out["image"], out["mask"]
