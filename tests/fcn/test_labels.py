"""What labels mean and how they look."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcn.images import ImageError
from fcn.labels import NO_RULE, VOID, ClassTable, LabelRule, overlay, voc_colour


def test_colours_are_pascals_and_void_shows_the_photograph() -> None:
    assert [voc_colour(i) for i in (0, 1, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    table = ClassTable(("a", "b"), ((0, 0, 0), (200, 0, 0)))
    image = np.full((1, 2, 3), 100, np.uint8)
    assert overlay(image, np.array([[1, VOID]]), table).tolist() == [
        [[150, 50, 50], [100, 100, 100]]
    ]
    with pytest.raises(ValueError, match="2 class names but 1 colours"):
        ClassTable(("a", "b"), ((0, 0, 0),))


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@given(
    arrays(np.uint8, (3, 4)),
    st.dictionaries(st.integers(0, 255), st.integers(0, 4) | st.just(VOID), min_size=1),
)
def test_ids_become_what_the_table_says_or_the_label_is_refused(raw, ids) -> None:
    rule = LabelRule(5, ids=ids)
    unknown = set(raw.ravel().tolist()) - set(ids)
    if unknown:
        with pytest.raises(ImageError) as caught:
            rule.decode(png(raw))
        assert caught.value.reason == (NO_RULE if unknown == {VOID} else "unknown class")
        return
    label, notes = rule.decode(png(raw))
    assert label.tolist() == [[ids[i] for i in row] for row in raw.tolist()]
    assert notes == {}


RED, GREEN = (250, 0, 0), (0, 250, 0)


def test_colours_are_exact_and_others_are_counted_in_words() -> None:
    rule = LabelRule(2, colours={RED: 0, GREEN: 1, (0, 0, 0): VOID})
    picture = np.array([[RED, GREEN], [(0, 0, 0), GREEN]], np.uint8)
    assert rule.decode(png(picture))[0].tolist() == [[0, 1], [VOID, 1]]
    with_alpha = np.concatenate([picture, np.full((2, 2, 1), 7, np.uint8)], 2)
    assert rule.decode(png(with_alpha))[0].tolist() == [[0, 1], [VOID, 1]]
    picture[0] = (251, 0, 0)
    with pytest.raises(ImageError, match=r"\[251, 0, 0\] \(2 px\).*data\.unknown_colours=void"):
        rule.decode(png(picture))
    rest = LabelRule(2, colours=rule.colours, void_rest=True)
    assert rest.decode(png(picture)) == (pytest.approx(np.array([[VOID] * 2, [VOID, 1]])), UNKNOWN)


UNKNOWN = {"unknown_colour_px": 2}


def test_a_tolerance_moves_colours_to_the_nearest_class_and_counts_them() -> None:
    rule = LabelRule(2, colours={RED: 0, GREEN: 1}, tolerance=20)
    picture = np.array([[RED, (240, 9, 9), (10, 255, 0), GREEN]], np.uint8)
    label, notes = rule.decode(png(picture))
    assert label.tolist() == [[0, 0, 1, 1]]
    assert notes == {"moved_px": 2}


def test_a_colour_halfway_between_two_classes_is_none_of_them() -> None:
    rule = LabelRule(2, colours={(10, 0, 0): 0, (20, 0, 0): 1}, tolerance=9)
    assert rule.decode(png(np.array([[(14, 0, 0), (16, 0, 0)]], np.uint8)))[0].tolist() == [[0, 1]]
    with pytest.raises(ImageError, match=r"\[15, 0, 0\]"):
        rule.decode(png(np.array([[(15, 0, 0)]], np.uint8)))
