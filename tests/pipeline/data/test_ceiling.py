"""Bounds of mean IU by stride: exact where blocks are whole, falling with the stride elsewhere."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fcn.labels import VOID
from pipeline.data.ceiling import coarse, stride_ceilings


def test_a_label_without_detail_is_kept_and_void_takes_its_neighbours_class() -> None:
    label = np.full((40, 33), 3, np.uint8)
    label[:20] = VOID
    assert (coarse(label, 16)[20:] == 3).all()
    assert coarse(label, 16).shape == label.shape
    assert stride_ceilings([label], 5) == {32: 1.0, 16: 1.0, 8: 1.0}


def test_each_cell_is_of_the_class_that_most_of_it_has() -> None:
    label = np.zeros((32, 32), np.uint8)
    label[:, 16:] = 1
    label[4:6, 2:4] = 2  # finer than the stride
    found = coarse(label, 8)
    assert set(np.unique(found)) == {0, 1}
    assert (found[:, :12] == 0).all()
    assert (found[:, 20:] == 1).all()


def test_bounds_fall_with_the_stride_and_are_those_of_one_confusion_matrix() -> None:
    labels = []
    for turn in range(3):
        picture = Image.new("L", (150, 100), 0)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((20, 10 + turn, 90, 80), fill=1)
        draw.line((100, 0, 130 + turn, 99), fill=2, width=5)
        labels.append(np.array(picture))
    found = stride_ceilings(labels, 4, (2, 8, 16, 32))
    assert 1 > found[2] > found[8] > found[16] > found[32] > 0.3
    guess = [coarse(label, 8) for label in labels]
    iu = [
        sum(((g == k) & (t == k)).sum() for g, t in zip(guess, labels, strict=True))
        / sum(((g == k) | (t == k)).sum() for g, t in zip(guess, labels, strict=True))
        for k in range(3)
    ]
    assert found[8] == pytest.approx(np.mean(iu))
    assert np.isnan(stride_ceilings([np.full((8, 8), VOID, np.uint8)], 4)[8])
