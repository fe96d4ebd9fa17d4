"""From an image of any size to its label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fcn.images import AS_STORED, InputRule
from fcn.nets import FCN


def predict(net: FCN, image: NDArray[np.uint8], rule: InputRule = AS_STORED) -> NDArray[np.uint8]:
    """Label map (H, W) uint8 of an RGB image (H, W, 3) uint8.

    The net sees the image at the size of the rule; the label map has the image's own.

    Raises:
        ValueError: not an array of that shape and type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    return predict_at(net, rule.shrink(image), image.shape[:2])


@torch.inference_mode()
def predict_at(net: FCN, seen: NDArray[np.uint8], size_px: Sequence[int]) -> NDArray[np.uint8]:
    """Label map (h, w) uint8 of a size, of an image (H, W, 3) uint8 as the net sees it."""
    device = next(net.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(seen)).to(device).permute(2, 0, 1)[None]
    scores = scores_at(net.eval()(pixels), size_px)
    return scores[0].argmax(0).to(torch.uint8).cpu().numpy()


def scores_at(scores: Tensor, size_px: Sequence[int]) -> Tensor:
    """Scores (N, K, H, W) at a height and width in px: bilinear where they have another size."""
    height, width = size_px
    if scores.shape[2:] == (height, width):
        return scores
    return interpolate(scores, (height, width), mode="bilinear", align_corners=False)
