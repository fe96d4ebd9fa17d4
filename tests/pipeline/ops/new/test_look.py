"""What is measured of labels: ceilings of strides, flatness, colours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.ops.new.look import _runs, flatness, stride_ceilings
from pipeline.ops.new.palette import safe_colours
from tests.pipeline.ops.new.folders import ids, noise, save


def test_a_stride_allows_everything_of_large_blocks_and_little_of_thin_lines() -> None:
    blocks = np.zeros((128, 128), np.uint8)
    blocks[:, 64:] = 1
    lines = np.zeros((128, 128), np.uint8)
    lines[::16, :] = 1
    coarse, fine = stride_ceilings([blocks], 2), stride_ceilings([lines], 2)
    assert min(coarse.values()) > 0.98
    assert coarse[8] >= coarse[32]
    assert fine[32] < 0.6


def test_void_is_not_scored_and_absent_classes_do_not_count() -> None:
    label = np.full((64, 64), 255, np.uint8)
    label[:32, :32] = 3
    assert stride_ceilings([label], 5) == {32: 1.0, 16: 1.0, 8: 1.0}


def test_label_maps_are_flatter_than_photographs(tmp_path) -> None:
    for name in ("a.png", "b.jpg"):
        save(tmp_path / name, noise(0))
    save(tmp_path / "c.png", ids(0))
    (tmp_path / "d.png").write_text("no image")
    assert flatness(tmp_path / "c.png") > 0.9
    assert max(flatness(tmp_path / name) for name in ("a.png", "b.jpg", "d.png")) < 0.3


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))
)
def test_values_are_counted_by_their_runs(values) -> None:
    found, px = _runs(values)
    expected = np.unique(values, return_counts=True)
    assert (found, px) == (expected[0].tolist(), expected[1].tolist())


@pytest.mark.parametrize("num", [2, 8, 40, 255])
def test_classes_have_colours_of_their_own(num) -> None:
    names = ["background", *(f"class_{i}" for i in range(1, num))]
    colours = safe_colours(names)
    assert len(set(colours)) == num
    assert len(set(colours[0])) == 1  # grey
