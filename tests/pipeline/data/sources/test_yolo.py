"""YOLO: lines of outlines become classes; boxes and what is no share of the image are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn.labels import VOID
from pipeline.data.sources import open_source
from pipeline.errors import RecipeError
from tests.pipeline.data.sources.made import (
    HEIGHT,
    WIDTH,
    box,
    drawn,
    label,
    photo,
    read_all,
    recipe,
    survives,
)

CAT, DOG = (2, 3, 8, 12), (4, 1, 18, 28)
SPLITS = {s: {"images": f"images/{s}", "labels": f"labels/{s}"} for s in ("train", "val")}


def line(k: int, rectangle: tuple[int, int, int, int]) -> str:
    corners = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in box(*rectangle))
    return f"{k} {corners}\n"


@pytest.fixture
def write(tmp_path):
    """Writes the lines of sample a of train and a good, empty sample of val; returns the source."""

    def of(text: str, **data: object):
        for split, name in (("train", "a"), ("val", "v")):
            photo(tmp_path / "images" / split / f"{name}.jpg")
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / "train" / "a.txt").write_text(text)
        (tmp_path / "labels" / "val" / "v.txt").touch()
        return open_source(recipe("yolo", tmp_path, splits=SPLITS, **data))

    return of


def test_lines_are_drawn_the_smaller_on_top(write) -> None:
    source = write(line(1, CAT) + "\n" + line(2, DOG))
    found = drawn(source, source.samples()[0][0])
    np.testing.assert_array_equal(found.ids, label((2, DOG), (1, CAT)))
    assert found.overlap_px == 4 * 9


def test_numbers_of_classes_may_be_mapped(write) -> None:
    source = write(line(0, CAT) + line(7, DOG), label_map={0: "dog", 7: "void"})
    np.testing.assert_array_equal(read_all(source)["a"], label((VOID, DOG), (2, CAT)))
    with pytest.raises(RecipeError, match="rows are numbers of classes"):
        write("", label_map={"dog": "cat"})


def test_an_empty_file_says_that_nothing_is_there_and_no_file_says_nothing(write, tmp_path) -> None:
    source = write("")
    photo(tmp_path / "images" / "train" / "b.jpg")
    found = read_all(source)
    assert not found["a"].any()
    assert "no file b with an ending of .txt" in found["b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 0.5 0.5 0.2 0.2", "line 1 has 4 numbers, a box"),
        ("1 0.1 0.1 0.2", "line 1 should be a class and pairs x y"),
        ("1", "fewer than 3 points"),
        ("1 0.1 0.1", "fewer than 3 points"),
        ("1 10 20 30 40 50 60", "shares of width and height"),
        ("1 0.1 0.1 0.2 0.2 0.3 nan", "shares of width and height"),
        ("1 0.1 0.1 0.2 0.2 0.3 inf", "shares of width and height"),
        ("3 0.1 0.1 0.2 0.2 0.3 0.1", "class 3; known are 0, 1, 2"),
        ("-1 0.1 0.1 0.2 0.2 0.3 0.1", "class -1; known are"),
        ("cat 0.1 0.1 0.2 0.2 0.3 0.1", "unreadable annotations: line 1"),
    ],
)
def test_a_line_that_is_no_outline_costs_its_own_sample(write, text, reason) -> None:
    found = read_all(write(text))
    assert reason in found["a"]
    assert not found["v"].any()


def test_what_lies_outside_the_image_is_cut_off(write) -> None:
    found = read_all(write(line(1, (-4, -3, 5, 4))))
    np.testing.assert_array_equal(found["a"], label((1, (0, 0, 5, 4))))


def test_a_turned_photo_is_refused_as_nothing_says_for_which_size_its_outlines_are(
    write, tmp_path
) -> None:
    source = write(line(1, CAT))
    exif = photo(tmp_path / "x.jpg")
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.open(exif).save(tmp_path / "images" / "train" / "a.jpg", exif=tags)
    assert "orientation 6" in read_all(source)["a"]


def test_a_label_that_changes_is_seen_in_the_state(write) -> None:
    before = write(line(1, CAT)).state()
    assert write(line(2, CAT)).state() != before


@given(
    text=st.binary(max_size=80) | st.text("0123456789.-+eEnaif_ \n", max_size=80).map(str.encode)
)
def test_no_bytes_raise_anything_else(text, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("yolo")
    for split in SPLITS:
        photo(root / "images" / split / "a.png")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "a.txt").write_bytes(text)
    survives(recipe("yolo", root, splits=SPLITS))
