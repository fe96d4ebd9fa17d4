"""LabelMe: shapes become classes; images beside their JSON, apart from it, or inside."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import open_source
from tests.pipeline.data.sources.made import (
    HEIGHT,
    WIDTH,
    box,
    drawn,
    label,
    mutations,
    photo,
    read_all,
    recipe,
    survives,
)

CAT, DOG = (2, 3, 8, 12), (4, 1, 18, 28)
BESIDE = {s: {"images": s, "labels": s} for s in ("train", "val")}


def shape(points: object, name: str = "cat", kind: object = "polygon", **more: object):
    return {"label": name, "points": points, "shape_type": kind, "group_id": None, **more}


def tree(*shapes: object, **changes: object) -> dict[str, object]:
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.jpg",
        **size,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Writes sample a of train and a good sample of val; returns the source."""

    def of(*shapes: object, **changes: object):
        photo(tmp_path / "train" / "a.jpg")
        photo(tmp_path / "val" / "v.jpg")
        (tmp_path / "train" / "a.json").write_text(json.dumps(tree(*shapes, **changes)))
        (tmp_path / "val" / "v.json").write_text("\ufeff" + json.dumps(tree()))
        return open_source(recipe("labelme", tmp_path, splits=BESIDE))

    return of


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "cat",
    [
        shape(box(*CAT)),
        shape(box(*CAT), kind=None),  # early versions did not write it
        shape([(3, 2), (12, 8)], kind="rectangle"),
        shape([(12, 2), (3, 8)], kind="rectangle"),
        shape([(3, 2), (11, 7)], kind="mask", mask=png(np.full((6, 9), 255, np.uint8))),
    ],
)
def test_shapes_are_drawn_the_smaller_on_top(write, cat) -> None:
    source = write(cat, shape(box(*DOG), "dog"))
    sample = next(s for s in source.samples()[0] if s.id == "a")
    found = drawn(source, sample)
    np.testing.assert_array_equal(found.ids, label((2, DOG), (1, CAT)))
    assert found.overlap_px == 4 * 9


def test_a_circle_is_its_centre_and_a_point_on_it(write) -> None:
    found = read_all(write(shape([(15, 10), (19, 13)], kind="circle")))["a"]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    np.testing.assert_array_equal(found == 1, np.hypot(x - 15, y - 10) < 5)


def test_no_shape_is_all_unlabelled_and_an_outline_outside_is_cut_off(write) -> None:
    found = read_all(write(shape(box(15, 25, 99, 99))))
    np.testing.assert_array_equal(found["a"], label((1, (15, 25, HEIGHT, WIDTH))))
    assert not found["v"].any()


def test_labels_may_lie_in_a_folder_of_their_own(write, tmp_path) -> None:
    write(shape(box(*CAT)))
    splits = {}
    for split in BESIDE:
        (tmp_path / f"{split}json").mkdir()
        for path in (tmp_path / split).glob("*.json"):
            path.rename(tmp_path / f"{split}json" / path.name)
        splits[split] = {"images": split, "labels": f"{split}json"}
    found = read_all(open_source(recipe("labelme", tmp_path, splits=splits)))
    np.testing.assert_array_equal(found["a"], label((1, CAT)))


def test_an_image_inside_its_json_is_read_where_there_is_no_file(write, tmp_path) -> None:
    data = base64.b64encode(photo(tmp_path / "elsewhere.png").read_bytes()).decode()
    source = write(shape(box(*CAT)), imageData=data)
    (tmp_path / "train" / "a.jpg").unlink()
    sample = source.samples()[0][0]
    assert (sample.split, sample.id) == ("train", "a")
    assert source.read(sample)[0] == (tmp_path / "elsewhere.png").read_bytes()
    np.testing.assert_array_equal(read_all(source)["a"], label((1, CAT)))


def test_a_json_without_any_image_and_an_image_without_json(write, tmp_path) -> None:
    source = write(shape(box(*CAT)))
    (tmp_path / "train" / "a.jpg").unlink()
    photo(tmp_path / "train" / "b.jpg")
    found = read_all(source)
    assert "no image file of that name, and no imageData inside" in found["a"]
    assert "no file b with an ending of .json" in found["b"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape([(1, 1), (5, 5)], kind="line"), "a line of cat encloses nothing"),
        (shape([(1, 1), (5, 5), (5, 8)], kind="linestrip"), "a linestrip of cat"),
        (shape([(1, 1)], kind="point"), "a point of cat"),
        (shape([(1, 1)], kind="rectangle"), "has 1 points, not 2"),
        (shape([]), "fewer than 3 points"),
        (shape([(1, 1), (5, 5), (5, float("nan"))]), "unreadable annotations"),
        (shape([(1, 1), (5, 5), (5,)]), "unreadable annotations"),
        (shape(box(*CAT), "bird"), "'bird'; known are ground, cat, dog"),
        (shape([(3, 2), (11, 7)], kind="mask"), "undecodable label"),
        (shape([(3, 2), (11, 7)], kind="mask", mask="%"), "is not base64"),
        (
            shape([(25, 2), (29, 7)], kind="mask", mask=png(np.ones((6, 9), np.uint8))),
            "coordinates out of the image",
        ),
    ],
)
def test_a_shape_that_is_no_class_or_no_area_costs_its_own_sample(write, bad, reason) -> None:
    found = read_all(write(bad))
    assert reason in found["a"]
    assert not found["v"].any()


def test_shapes_for_another_size_are_refused(write) -> None:
    assert "30x20 px, its annotations are for 60x20" in read_all(write(imageWidth=60))["a"]


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"shapes": 1}'])
def test_a_file_that_is_no_labelme_costs_its_own_sample(write, tmp_path, text) -> None:
    source = write()
    (tmp_path / "train" / "a.json").write_bytes(text.encode("latin-1"))
    assert "no LabelMe file" in read_all(source)["a"]


def test_a_label_that_changes_is_seen_in_the_state(write) -> None:
    before = write(shape(box(*CAT))).state()
    assert write(shape(box(*CAT), "dog")).state() != before


def test_no_change_of_any_value_raises_anything_else(write, tmp_path) -> None:
    mask = shape([(3, 2), (11, 7)], kind="mask", mask=png(np.ones((6, 9), np.uint8)))
    write(shape(box(*CAT)), shape([(9, 9), (9, 12)], kind="circle"), mask)
    path, made = tmp_path / "train" / "a.json", recipe("labelme", tmp_path, splits=BESIDE)
    for changed in mutations(json.loads(path.read_text())):
        path.write_text(json.dumps(changed))
        survives(made)
