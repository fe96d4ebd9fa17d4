"""Label Studio: regions in percent become classes; tasks meet their images by file name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources import open_source
from pipeline.data.sources.labelstudio import _brush_mask
from pipeline.errors import DataError
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
SPLITS = {s: {"images": s, "labels": f"{s}.json"} for s in ("train", "val")}
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


def percent(x: float, y: float) -> tuple[float, float]:
    return x / WIDTH * 100, y / HEIGHT * 100


def result(kind: str, name: str = "cat", **value: object) -> dict[str, object]:
    return {"id": "r1", "type": kind, "value": {**value, kind: [name]}, **SIZE}


def outline(rectangle, name: str = "cat") -> dict[str, object]:
    points = [percent(x, y) for x, y in box(*rectangle)]
    return result("polygonlabels", name, points=points, closed=True)


def rectangle(area, name: str = "cat", **more: object) -> dict[str, object]:
    (x, y), (width, height) = (
        percent(area[1], area[0]),
        percent(area[3] - area[1], area[2] - area[0]),
    )
    return result("rectanglelabels", name, x=x, y=y, width=width, height=height, **more)


def bits(value: int, width: int) -> str:
    return f"{value:0{width}b}"


def brush(mask: np.ndarray) -> list[int]:
    """A brush's run lengths, written by the rule: long runs as one value, short ones in full."""
    rgba = np.repeat(mask[..., None] * np.uint8(255), 4, axis=2).ravel().tolist()
    text = bits(len(rgba), 32) + bits(7, 5) + "".join(bits(n - 1, 4) for n in (3, 4, 8, 16))
    at = 0
    while at < len(rgba):
        same = at
        while same < len(rgba) and rgba[same] == rgba[at] and same - at < 1 << 16:
            same += 1
        if same - at > 8:
            text += "1" + bits(3, 2) + bits(same - at - 1, 16) + bits(rgba[at], 8)
        else:
            text += "0" + bits(0, 2) + bits(same - at - 1, 3)
            text += "".join(bits(value, 8) for value in rgba[at:same])
        at = same
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def task(*results: object, data: object = None, **more: object) -> dict[str, object]:
    where = {"image": "/data/upload/1/0123abcd-a.jpg"} if data is None else data
    annotations = [{"id": 5, "was_cancelled": False, "ground_truth": False, "result": results}]
    return {"id": 1, "data": where, "annotations": annotations, **more}


@pytest.fixture
def write(tmp_path):
    """Writes the tasks of train and a good task of val; returns the source."""

    def of(*tasks: object):
        photo(tmp_path / "train" / "a.jpg")
        photo(tmp_path / "val" / "v.jpg")
        (tmp_path / "train.json").write_text(json.dumps(tasks))
        (tmp_path / "val.json").write_text(json.dumps([task(data={"image": "v.jpg"})]))
        return open_source(recipe("labelstudio", tmp_path, splits=SPLITS))

    return of


@pytest.mark.parametrize(
    "cat",
    [
        outline(CAT),
        rectangle(CAT),
        result("brushlabels", format="rle", rle=brush(label((1, CAT)) > 0)),
    ],
)
def test_regions_are_drawn_the_smaller_on_top(write, cat) -> None:
    source = write(task(cat, outline(DOG, "dog")))
    found = drawn(source, source.samples()[0][0])
    np.testing.assert_array_equal(found.ids, label((2, DOG), (1, CAT)))
    assert found.overlap_px == 4 * 9


def test_an_ellipse_and_a_rectangle_that_is_turned_around_its_corner(write) -> None:
    (x, y), (radius_x, radius_y) = percent(15, 10), percent(8, 4)
    ellipse = result("ellipselabels", x=x, y=y, radiusX=radius_x, radiusY=radius_y, rotation=0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - 15) / 8) ** 2 + ((rows - 10) / 4) ** 2 < 1
    np.testing.assert_array_equal(read_all(write(task(ellipse)))["a"] == 1, inside)
    turned = rectangle((2, 12, 8, 21), rotation=90)  # 9 wide, 6 high, about (12, 2): down and left
    np.testing.assert_array_equal(read_all(write(task(turned)))["a"], label((1, (2, 6, 11, 12))))


@given(st.integers(1, 30), st.integers(1, 30), st.randoms(use_true_random=False))
def test_a_brush_comes_out_of_its_run_lengths_as_it_went_in(height, width, random) -> None:
    mask = np.array([[random.random() < 0.2 for _ in range(width)] for _ in range(height)])
    np.testing.assert_array_equal(_brush_mask(brush(mask), (height, width)), mask)


@pytest.mark.parametrize(
    "data",
    [
        {"image": "/data/upload/1/0123abcd-a.jpg"},
        {"image": "/data/local-files/?d=photos/deep/a.jpg"},
        {"image": "s3://bucket/folder/a.jpg?signature=1"},
        {"picture": "https://host/x/a.jpg", "text": "a cat", "number": 3},
        {"image": "a.jpg"},
    ],
)
def test_a_task_finds_its_image_by_file_name(write, data) -> None:
    np.testing.assert_array_equal(
        read_all(write(task(outline(CAT), data=data)))["a"], label((1, CAT))
    )


def test_a_name_with_a_space_and_an_upload_prefix_that_is_the_files_own(write, tmp_path) -> None:
    photo(tmp_path / "train" / "0123abcd-my cat.jpg")
    found = read_all(write(task(data={"image": "/data/upload/1/0123abcd-my%20cat.jpg"})))
    assert not found["0123abcd-my cat"].any()


@pytest.mark.parametrize(
    ("data", "id_", "evidence"),
    [
        ({"image": "none.jpg"}, "none.jpg", "0 files in train fit none.jpg"),
        ({"text": "nothing"}, "task 1", "a value in data that names an image"),
        ({"image": "a.jpg", "other": "b.jpg"}, "a.jpg", "2 files in train fit a.jpg, b.jpg"),
        ({"image": "http://[x/a.jpg"}, "task 1", "a value in data"),
    ],
)
def test_a_task_without_its_image_or_with_two(write, tmp_path, data, id_, evidence) -> None:
    photo(tmp_path / "train" / "b.jpg")
    assert evidence in read_all(write(task(data=data)))[id_]


def test_which_annotation_counts_is_never_guessed(write) -> None:
    cat = task(outline(CAT))["annotations"][0]
    dog = {**cat, "result": [outline(DOG, "dog")]}
    for annotations, expected in (
        ([], "0 annotations of the task stand"),
        ([cat, dog], "2 annotations of the task stand"),
        ([{**cat, "was_cancelled": True}, dog], label((2, DOG))),
        ([{**cat, "ground_truth": True}, dog], label((1, CAT))),
    ):
        found = read_all(write(task() | {"annotations": annotations}))["a"]
        if isinstance(expected, str):
            assert expected in found
        else:
            np.testing.assert_array_equal(found, expected)


def test_two_tasks_for_one_image_are_both_refused(write) -> None:
    assert "2 entries of this name" in read_all(write(task(outline(CAT)), task(outline(DOG))))["a"]


def test_results_without_pixels_do_not_matter_and_no_region_is_all_unlabelled(write) -> None:
    choice = {"type": "choices", "value": {"choices": ["sunny"]}, **SIZE}
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    assert not read_all(write(task(choice, relation)))["a"].any()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (result("keypointlabels", x=1, y=2, width=1), "a region of type keypointlabels"),
        (rectangle(CAT, "bird"), "'bird'; known are ground, cat, dog"),
        (rectangle(CAT) | {"image_rotation": 90}, "annotated turned by 90 degrees"),
        (rectangle(CAT) | {"original_width": 60}, "30x20 px, its annotations are for 60x20"),
        (result("polygonlabels", points=[(1, 1), (2, 2)]), "fewer than 3 points"),
        (result("polygonlabels", points=[(1, 1), (2, float("nan"))]), "unreadable annotations"),
        (result("rectanglelabels", x=1, y=1, width=5), "height: Field required"),
        (result("brushlabels", format="rle", rle=[]), "end within a run"),
        (result("brushlabels", format="rle", rle=[255] * 40), "damaged run lengths"),
        (result("brushlabels", format="rle", rle=brush(np.ones((4, 4)) > 0)), "64 values"),
        (result("brushlabels", format="rle", rle=[256]), "unreadable annotations"),
        (rectangle(CAT) | {"value": {"rectanglelabels": []}}, "unreadable annotations"),
    ],
)
def test_a_region_that_is_no_class_or_no_area_costs_its_own_sample(write, bad, reason) -> None:
    found = read_all(write(task(bad)))
    assert reason in found["a"]
    assert not found["v"].any()


@pytest.mark.parametrize("text", ["", "{}", '[{"image": "a.jpg", "label": []}]', "[" * 99_999])
def test_what_is_no_export_is_named(write, tmp_path, text) -> None:
    source = write()
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json is no JSON export of Label Studio"):
        source.samples()


def test_an_export_without_tasks_has_no_samples(write) -> None:
    with pytest.raises(DataError, match=r"split train has no samples: .*train\.json"):
        write().samples()


def test_an_export_that_changes_is_seen_in_the_state(write) -> None:
    before = write(task(outline(CAT))).state()
    assert write(task(outline(DOG))).state() != before


def test_no_change_of_any_value_raises_anything_else(write, tmp_path) -> None:
    rle = brush(label((1, CAT)) > 0)
    write(task(outline(CAT), result("brushlabels", format="rle", rle=rle[:3])), task())
    write(
        task(outline(CAT), result("brushlabels", format="rle", rle=rle)), task(data={"image": "b"})
    )
    path, made = tmp_path / "train.json", recipe("labelstudio", tmp_path, splits=SPLITS)
    tree = json.loads(path.read_text())
    tree[0]["annotations"][0]["result"][1]["value"]["rle"] = rle[:12]
    for changed in mutations(tree):
        path.write_text(json.dumps(changed))
        survives(made)
