"""Outlines into pixels: which centres are inside, what is on top, and of which size the map is."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn.images import ImageError
from fcn.labels import VOID, LabelRule
from pipeline.data.sources.drawing import (
    Region,
    draw,
    ellipse_ring,
    polygon,
    size_to_draw,
    targets,
)

SIZE = (20, 30)
COORDINATES = st.floats(-50, 80, allow_nan=False) | st.integers(-5, 35).map(float)
RINGS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=12)


def whole(region: Region, size=SIZE) -> np.ndarray:
    """The mask of a region in the whole image."""
    return draw([region], 0, size).ids > 0


def centre_is_inside(ring, x: float, y: float) -> bool:
    """By the count of edges that a ray to the left crosses, one pixel at a time."""
    inside = False
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        (xa, ya), (xb, yb) = sorted([(x0, y0), (x1, y1)], key=lambda p: p[1])
        if ya <= y < yb and xa + (y - ya) * ((xb - xa) / (yb - ya)) <= x:
            inside = not inside
    return inside


@given(RINGS)
def test_a_polygon_holds_the_pixels_whose_centres_are_inside(ring) -> None:
    found = whole(polygon(1, [ring], SIZE))
    expected = [[centre_is_inside(ring, x + 0.5, y + 0.5) for x in range(30)] for y in range(20)]
    np.testing.assert_array_equal(found, expected)


@given(st.tuples(COORDINATES, COORDINATES))
def test_polygons_that_share_edges_neither_overlap_nor_leave_a_gap(point) -> None:
    x, y = np.clip(point[0], 0, 30), np.clip(point[1], 0, 20)
    corners = [(0, 0), (30, 0), (30, 20), (0, 20)]
    parts = [
        polygon(k + 1, [[corners[k], corners[(k + 1) % 4], (x, y)]], SIZE)
        for k in range(4)  # the image cut from a point to its corners
    ]
    label = draw(parts, VOID, SIZE)
    assert label.overlap_px == 0
    assert (label.ids != VOID).all()


@given(st.lists(st.tuples(st.integers(0, 2) | st.just(VOID), RINGS), max_size=5))
def test_random_polygons_give_classes_and_void_alone(outlines) -> None:
    label = draw([polygon(k, [ring], SIZE) for k, ring in outlines], 0, SIZE)
    assert label.ids.shape == SIZE
    assert label.ids.dtype == np.uint8
    assert set(np.unique(label.ids)) <= {0, 1, 2, VOID}
    assert 0 <= label.overlap_px <= label.ids.size


def test_a_rectangle_on_whole_pixels_is_exactly_those_pixels() -> None:
    found = whole(polygon(1, [[(3, 2), (7, 2), (7, 5), (3, 5)]], SIZE))
    assert found.sum() == 12
    assert found[2:5, 3:7].all()


def test_an_ellipse_has_its_area_and_turns_clockwise() -> None:
    upright = whole(polygon(1, [ellipse_ring(100, 100, 60, 20)], (200, 200)), (200, 200))
    assert upright.sum() == pytest.approx(np.pi * 60 * 20, rel=0.002)
    turned = whole(polygon(1, [ellipse_ring(100, 100, 60, 20, 30)], (200, 200)), (200, 200))
    assert turned.sum() == pytest.approx(upright.sum(), rel=0.002)
    assert turned[125, 143]  # 30 degrees below the right, for y points down
    assert not turned[75, 143]


def test_the_smaller_region_is_on_top_and_what_was_under_it_is_counted() -> None:
    small, large = [(2, 2), (5, 2), (5, 5), (2, 5)], [(0, 0), (20, 0), (20, 10), (0, 10)]
    for order in (1, -1):
        regions = [polygon(1, [small], SIZE), polygon(2, [large], SIZE)][::order]
        label = draw(regions, 0, SIZE)
        assert label.overlap_px == 9
        assert (label.ids[2:5, 2:5] == 1).all()
        assert (label.ids == 2).sum() == 200 - 9
    assert draw([polygon(1, [small], SIZE), polygon(1, [large], SIZE)], 0, SIZE).overlap_px == 0


@pytest.mark.parametrize(
    ("rings", "reason"),
    [
        ([], "outline without points"),
        ([[]], "fewer than 3 points"),
        ([[(1, 1), (2, 2)]], "fewer than 3 points"),
        ([[(1, 1), (2, 2), (float("nan"), 3)]], "coordinates out of the image"),
        ([[(1, 1), (2, 2), (1e9, 3)]], "coordinates out of the image"),
    ],
)
def test_an_outline_that_encloses_nothing_or_lies_nowhere_is_refused(rings, reason) -> None:
    with pytest.raises(ImageError, match=reason):
        polygon(1, rings, SIZE)


def test_all_names_without_a_class_are_told_with_the_known_ones() -> None:
    rule = LabelRule(num_classes=2, names={"ground": 0, "cat": 1, "kitten": 1, "smudge": VOID})
    assert targets(["kitten", "smudge", "ground"], rule) == [1, VOID, 0]
    with pytest.raises(ImageError, match=r"'bird', 'cow'; known are ground, cat, kitten, smudge"):
        targets(["cow", "cat", "bird"], rule)


def photo(orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_a_map_is_drawn_at_the_size_that_its_annotations_are_for() -> None:
    assert size_to_draw(photo(), None) == (20, 30)
    assert size_to_draw(photo(), (20, 30)) == (20, 30)
    assert size_to_draw(photo(6), (30, 20)) == (30, 20)  # as it is shown
    assert size_to_draw(photo(6), (20, 30)) == (20, 30)  # as it is stored
    with pytest.raises(ImageError, match=r"image is 30x20 px, its annotations are for 60x40"):
        size_to_draw(photo(), (40, 60))
    with pytest.raises(ImageError, match="orientation 6, and its annotations do not say"):
        size_to_draw(photo(6), None)
