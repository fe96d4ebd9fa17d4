"""Near-duplicates are those that a comparison of all pairs finds, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import near
from pipeline.data.near import FLAT_BITS, NEAR_BITS, nearest

BASE = 0x0F0F_3C3C_5A5A_9966


def flipped(bits: set[int]) -> int:
    return BASE ^ sum(1 << bit for bit in bits)


hashes = st.lists(
    st.sets(st.integers(0, 63), max_size=7).map(flipped) | st.sampled_from([0, 7, 2**64 - 1]),
    max_size=12,
)


@given(hashes, hashes, st.sampled_from([1, 3, 1 << 20]))
def test_each_image_gets_the_first_of_the_nearest_within_the_bound(ours, theirs, chunk) -> None:
    expected = []
    for i, one in enumerate(ours):
        distances = [
            ((one ^ other).bit_count(), j)
            for j, other in enumerate(theirs)
            if all(FLAT_BITS <= h.bit_count() <= 64 - FLAT_BITS for h in (one, other))
        ]
        if distances and min(distances)[0] <= NEAR_BITS:
            bits, j = min(distances)
            expected.append((i, j, bits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "CHUNK_PAIRS", chunk)
        assert nearest(ours, theirs) == expected


def test_memory_does_not_grow_with_the_number_of_pairs() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 2**64, 20_000, np.uint64).tolist()
    val = [*rng.integers(0, 2**64, 999, np.uint64).tolist(), train[7] ^ 5]
    tracemalloc.start()
    found = nearest(val, train)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(999, 7, 2)]
    assert peak < 40e6  # 20 million distances of 8 bytes would be 160 MB
