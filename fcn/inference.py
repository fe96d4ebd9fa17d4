"""From an image of any size to its label map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fcn.nets import FCN


@torch.inference_mode()
def predict(net: FCN, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label map (H, W) uint8 of an RGB image (H, W, 3) uint8.

    Raises:
        ValueError: not an array of that shape and type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    device = next(net.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    return net.eval()(pixels)[0].argmax(0).to(torch.uint8).cpu().numpy()
