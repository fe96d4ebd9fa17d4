"""Colours for classes that have none: told apart by readers with and without colour blindness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fcn.labels import Colour

FIRST: tuple[Colour, ...] = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
    *((86, 180, 233), (213, 94, 0), (240, 228, 66)),
)
"""The colours of Okabe and Ito (2008), which were chosen for this."""
BACKGROUND: Colour = (110, 110, 110)
_LEVELS = (0, 36, 73, 109, 146, 182, 219, 255)
_DEFICIENT = (  # Machado, Oliveira and Fernandes (2009), full protanopia and deuteranopia, in linear RGB
    (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
)


def safe_colours(names: Sequence[str]) -> list[Colour]:
    """A colour for each class; background is grey, and each next one the farthest from all before."""
    background = [n.lower().strip("_ ") in ("background", "bg") for n in names]
    wanted = len(names) - sum(background)
    chosen = list(FIRST[:wanted])
    if wanted > len(chosen):
        chosen += _farthest([*chosen, BACKGROUND, (0, 0, 0), (255, 255, 255)], wanted - len(chosen))
    rest = iter(chosen)
    return [BACKGROUND if is_background else next(rest) for is_background in background]


def _farthest(taken: Sequence[Colour], num: int) -> list[Colour]:
    candidates = np.array(list(product(_LEVELS, repeat=3)))
    seen = _as_seen(candidates)
    distance = np.min([_distances(seen, _as_seen(np.array([c]))) for c in taken], axis=0)
    found = []
    for _ in range(num):
        best = int(distance.argmax())
        found.append((int(candidates[best, 0]), int(candidates[best, 1]), int(candidates[best, 2])))
        distance = np.minimum(distance, _distances(seen, seen[:, best : best + 1]))
    return found


def _distances(seen: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least of the distances that the three kinds of eyes see."""
    return np.linalg.norm(seen - other, axis=2).min(0)


def _as_seen(colours: NDArray[np.integer]) -> NDArray[np.float64]:
    """Colours (n, 3) in CIELAB as three kinds of eyes see them (3, n, 3)."""
    srgb = colours / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    eyes = [linear, *(np.clip(linear @ np.array(m).T, 0, 1) for m in _DEFICIENT)]
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = np.stack(eyes) @ to_xyz.T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )
