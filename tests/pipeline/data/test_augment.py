"""Image and label move together, and by the same name in the same way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.labels import VOID
from pipeline.config.schema import AugmentSpec
from pipeline.data.augment import Augment

SPEC = AugmentSpec(crop_px=(40, 48), scale=(0.5, 2.0), flip_prob=0.5, jitter=0.3)


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(8, 90), st.integers(8, 90)))
@settings(max_examples=40)
def test_a_seed_gives_one_crop_and_no_new_labels(seed, size) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    label = rng.choice([0, 3, VOID], size).astype(np.uint8)
    augment = Augment(SPEC)
    one, two = augment(image, label, seed), augment(image, label, seed)
    assert (one[0] == two[0]).all()
    assert (one[1] == two[1]).all()
    assert one[0].shape == (40, 48, 3)
    assert one[1].shape == (40, 48)
    assert set(np.unique(one[1])) <= {0, 3, VOID}


def test_the_label_stays_on_its_pixels() -> None:
    """The image shows its own label, so what is cut from both must still agree (but for edges)."""
    label = np.kron(np.random.default_rng(1).integers(0, 4, (6, 6)), np.ones((16, 16))).astype(
        np.uint8
    )
    image = np.repeat(label[..., None] * 60, 3, 2).astype(np.uint8)
    augment = Augment(AugmentSpec(crop_px=(64, 64), scale=(0.75, 1.75), flip_prob=0.5))
    for seed in range(25):
        out, moved = augment(image, label, seed)
        inside = moved != VOID
        near = np.abs(out[..., 0].astype(int) - 60 * moved.astype(int)) < 30
        assert near[inside].mean() > 0.9


def test_what_lies_outside_the_image_is_void() -> None:
    augment = Augment(AugmentSpec(crop_px=(30, 30), flip_prob=0))
    _, label = augment(np.zeros((10, 20, 3), np.uint8), np.ones((10, 20), np.uint8), 0)
    assert (label == 1).sum() == 200
    assert (label == VOID).sum() == 700


@pytest.mark.parametrize("seeds", [(1, 2)])
def test_seeds_differ(seeds) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    a, b = (Augment(SPEC)(image, image[..., 0], seed)[0] for seed in seeds)
    assert (a != b).any()
