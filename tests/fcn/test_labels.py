"""What labels mean and how they look."""

import numpy as np
import pytest

from fcn.labels import VOID, ClassTable, overlay, voc_colour


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
