"""Scenes drawn from a seed: textured shapes over textured ground, with a void border around each.

Colour and texture of a shape are drawn independently of its class, and the ground has the same
palette: only form tells the classes apart, so a net has to learn it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from fcn.labels import VOID
from pipeline.config.data import ShapesSpec
from pipeline.config.schema import Split
from pipeline.data.sampler import seed_of
from pipeline.data.shards import encode_png
from pipeline.data.sources.base import Rejected, Sample
from pipeline.storage.store import fingerprint

Pixels = NDArray[np.float32]
BORDER_PX = 2
NUM_SHAPES = 4
"""disc, square, triangle, cross: classes 1 to 4; 0 is the ground."""


@dataclass(frozen=True)
class ShapesSource:
    """The embedded data set; needs no file and no network."""

    spec: ShapesSpec
    seed: int

    def samples(self) -> tuple[list[Sample], list[Rejected]]:
        """As many scenes as the recipe says."""
        counts: dict[Split, int] = {
            "train": self.spec.num_train,
            "val": self.spec.num_val,
            "test": self.spec.num_test,
        }
        names = [(split, f"{split}-{i:05d}") for split, n in counts.items() for i in range(n)]
        return [Sample(split, name, f"shapes:{name}", name) for split, name in names], []

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Draw a scene: JPEG image, PNG label."""
        rng = np.random.default_rng(seed_of("shapes", self.seed, sample.id))
        image, label = draw_scene(rng, self.spec.height_px, self.spec.width_px)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=92)
        return buffer.getvalue(), encode_png(label)

    def state(self) -> str:
        """Of the seed; the spec is in the recipe already."""
        return fingerprint("shapes", self.seed)


def draw_scene(
    rng: np.random.Generator, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and label (H, W), both uint8."""
    scene = _texture(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(2, 6)):
        shape = int(rng.integers(1, NUM_SHAPES + 1))
        inside, rim = _stencil(rng, shape, height, width)
        scene = np.where(inside[..., None], _texture(rng, height, width), scene)
        label[rim] = VOID
        label[inside & ~rim] = shape
    light = rng.uniform(0.7, 1.2)
    noisy = scene * light + rng.normal(0, 8, scene.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), label


def _texture(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Two random colours mixed by stripes, checks or clouds of random scale and direction."""
    one, two = rng.uniform(20, 235, (2, 3))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 24)
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(3)
    if kind == 0:
        mix = (np.sin(u) + 1) / 2
    elif kind == 1:
        mix = (np.sin(u) * np.sin(v) > 0).astype(np.float32)
    else:
        coarse = rng.uniform(0, 255, (height // 8 + 2, width // 8 + 2)).astype(np.uint8)
        clouds = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        mix = np.asarray(clouds, np.float32) / 255
    return (one + (two - one) * mix[..., None]).astype(np.float32)


def _stencil(
    rng: np.random.Generator, shape: int, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where a shape of random place, size and turn is, and its rim of void."""
    radius = rng.uniform(0.13, 0.3) * min(height, width)
    centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    turn = rng.uniform(0, 2 * np.pi)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    if shape == 1:
        draw.ellipse((*(centre - radius), *(centre + radius)), fill=255)
    else:
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        corners = centre + radius * (_outline(shape) @ rotation)
        draw.polygon([(float(px), float(py)) for px, py in corners], fill=255)
    grown = mask.filter(ImageFilter.MaxFilter(2 * (BORDER_PX // 2) + 1))
    shrunk = mask.filter(ImageFilter.MinFilter(2 * (BORDER_PX // 2) + 1))
    inside = np.asarray(mask) > 0
    return inside, (np.asarray(grown) > 0) & (np.asarray(shrunk) == 0)


def _outline(shape: int) -> NDArray[np.float64]:
    """Corners (n, 2) of a polygon of about unit radius."""
    if shape == 2:
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85
    if shape == 3:
        angles = np.deg2rad([90, 210, 330])
        return np.stack([np.cos(angles), np.sin(angles)], 1) * 1.25
    arm, end = 0.32, 1.1
    quarter = [(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)]
    return np.array([*quarter, *((-x, -y) for x, y in quarter)])
