"""Images that are nearly the same, by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 4
"""Two images are near-duplicates if their hashes of 64 bits differ in at most so many."""
FLAT_BITS = 4
"""A hash with fewer bits set, or unset, is of an image without structure, which is like many others."""
CHUNK_PAIRS = 1 << 20
"""Distances that are in memory at a time."""


class Nearest(NamedTuple):
    """An image, the one of others that is nearest to it, both by position, and their distance."""

    ours: int
    theirs: int
    bits: int


def nearest(hashes: Sequence[int], others: Sequence[int]) -> list[Nearest]:
    """Of each image that has a near-duplicate among others, the nearest one; the first if several are.

    Images without structure are left out. Time grows with the product of the numbers, memory does not.
    """
    ours, theirs = np.array(hashes, np.uint64), np.array(others, np.uint64)
    mine, known = _structured(ours), _structured(theirs)
    if not len(known):
        return []
    found = []
    among = theirs[known]
    step = max(1, CHUNK_PAIRS // len(among))
    for start in range(0, len(mine), step):
        rows = mine[start : start + step]
        distance = np.bitwise_count(ours[rows, None] ^ among)
        best = distance.argmin(1)
        bits = distance[np.arange(len(rows)), best]
        found += [
            Nearest(int(rows[i]), int(known[best[i]]), int(bits[i]))
            for i in np.flatnonzero(bits <= NEAR_BITS)
        ]
    return found


def _structured(hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Positions of the hashes that are not nearly all zeros or all ones."""
    bits = np.bitwise_count(hashes)
    return np.flatnonzero((bits >= FLAT_BITS) & (bits <= 64 - FLAT_BITS))
