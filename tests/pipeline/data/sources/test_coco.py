"""COCO's files: outlines, run lengths and panoptic PNGs become classes, or are refused in words."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn.images import AS_STORED
from fcn.labels import VOID
from pipeline.data.check import Rules, check_samples
from pipeline.data.sources import open_source
from pipeline.data.sources.coco import _counts
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

SPLITS = {s: {"images": s, "labels": f"annotations/{s}.json"} for s in ("train", "val")}
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
CAT, DOG = (2, 3, 8, 12), (4, 1, 18, 28)
"""Rectangles; the first is the smaller and lies partly in the second."""


def flat(rectangle) -> list[float]:
    return [float(value) for point in box(*rectangle) for value in point]


def annotation(category: int, segmentation: object, **more: object) -> dict[str, object]:
    return {"image_id": 1, "category_id": category, "segmentation": segmentation, **more}


def image(number: int, name: str) -> dict[str, object]:
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}


@pytest.fixture
def write(tmp_path):
    """Writes both splits, of which val is always good; returns the source."""
    (tmp_path / "annotations").mkdir()
    photo(tmp_path / "val" / "v.png")
    good = {"images": [image(1, "v.png")], "categories": CATEGORIES, "annotations": []}
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(good))

    def of(annotations: list[object], **changes: object):
        photo(tmp_path / "train" / "a.jpg")
        tree = {**good, "images": [image(1, "a.jpg")], "annotations": annotations, **changes}
        (tmp_path / "annotations" / "train.json").write_text(json.dumps(tree))
        return open_source(recipe("coco", tmp_path, splits=SPLITS))

    return of


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths down the columns, the first of them outside."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges]).tolist() if len(edges) else []


def packed(counts: list[int]) -> str:
    """COCO's text of run lengths, written by the rule and not by the reader."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


def test_outlines_are_drawn_the_smaller_on_top_and_overlaps_counted(write) -> None:
    source = write([annotation(17, [flat(CAT)]), annotation(18, [flat(DOG)])])
    sample = next(s for s in source.samples()[0] if s.id == "a")
    found = drawn(source, sample)
    np.testing.assert_array_equal(found.ids, label((2, DOG), (1, CAT)))
    assert found.overlap_px == 4 * 9


def test_the_ingests_check_takes_drawn_labels_and_notes_the_overlap(write) -> None:
    source = write([annotation(17, [flat(CAT)]), annotation(18, [flat(DOG)])])
    train = [s for s in source.samples()[0] if s.split == "train"]
    (facts, rejected), rows = check_samples(source, train, Rules(AS_STORED, source.rule))
    assert rejected == []
    assert facts[0].notes == {"overlap_px": 36}
    assert facts[0].class_px == np.bincount(label((2, DOG), (1, CAT)).ravel()).tolist()
    assert rows[0].id == "a"


@pytest.mark.parametrize("text", [False, True])
def test_run_lengths_are_read_both_as_numbers_and_as_text(write, text) -> None:
    mask = label((1, CAT)) > 0
    counts = packed(runs(mask)) if text else runs(mask)
    source = write([annotation(17, {"size": [HEIGHT, WIDTH], "counts": counts})])
    np.testing.assert_array_equal(read_all(source)["a"], label((1, CAT)))


@given(st.lists(st.integers(0, 100_000), max_size=20))
def test_run_lengths_come_out_of_their_text_as_they_went_in(counts) -> None:
    assert _counts(packed(counts)) == counts


def test_a_crowd_is_void_and_an_image_without_annotations_all_unlabelled(write) -> None:
    found = read_all(write([annotation(17, [flat(CAT)], iscrowd=1)]))
    np.testing.assert_array_equal(found["a"], label((VOID, CAT)))
    assert not found["v"].any()


def test_what_lies_outside_the_image_is_cut_off(write) -> None:
    found = read_all(write([annotation(17, [flat((-100, -50, 5, 4))])]))
    np.testing.assert_array_equal(found["a"], label((1, (0, 0, 5, 4))))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "box without outline"),
        ([], "box without outline"),
        ([[]], "fewer than 3 points"),
        ([[1, 1, 5, 5]], "fewer than 3 points"),
        ([[1, 1, 5, 5, 9]], "5 numbers are no points"),
        ([[1, 1, 5, 5, 9, float("nan")]], "unreadable annotations"),
        ([[1, 1, 5, 5, "x", 9]], "unreadable annotations"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "damaged run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [1 << 62, 1 << 62]}, "damaged run lengths"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "damaged run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 99}, "damaged run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "damaged run lengths"),
    ],
)
def test_a_damaged_annotation_costs_its_own_sample(write, segmentation, reason) -> None:
    found = read_all(write([annotation(17, segmentation)]))
    assert reason in found["a"]
    assert not found["v"].any()


def test_a_category_without_a_class_is_told_with_the_known_names(write) -> None:
    bird = [*CATEGORIES, {"id": 3, "name": "bird"}]
    found = read_all(write([annotation(3, [flat(CAT)])], categories=bird))
    assert "'bird'; known are ground, cat, dog" in found["a"]


@pytest.mark.parametrize(
    ("images", "id_", "reason"),
    [
        ([image(1, "a.jpg"), image(2, "none.jpg")], "none", "no file none.jpg"),
        ([image(1, "a.jpg"), image(2, "n" * 300 + ".jpg")], "n" * 300, "missing partner"),
        ([image(1, "a.jpg"), image(2, "a.jpg")], "a", "2 entries of this name"),
        ([image(1, "a.jpg") | {"width": 1 << 40}], "a", "size mismatch"),
    ],
)
def test_an_image_that_is_missing_twice_there_or_of_another_size(write, images, id_, reason):
    assert reason in read_all(write([], images=images))[id_]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "images: Input should be a valid list"),
        ({"images": [{"id": 1}]}, "images.0.file_name: Field required"),
        ({"images": []}, "names no image"),
        ({"images": [image(1, "a.jpg"), image(1, "b.jpg")]}, "an id to two images"),
        ({"categories": []}, "of category 17; its categories are none"),
        ({"categories": [{"id": 17, "name": "cat"}] * 2}, "two categories"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_ends_the_ingest(write, changes, words) -> None:
    source = write([annotation(17, [flat(CAT)])], **changes)
    with pytest.raises(DataError, match=words):
        source.samples()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"images": []}'])
def test_what_is_no_coco_file_is_named(write, tmp_path, text) -> None:
    source = write([])
    (tmp_path / "annotations" / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json is no COCO file"):
        source.samples()
    (tmp_path / "annotations" / "train.json").unlink()
    with pytest.raises(DataError, match=r"train\.json is no file"):
        source.samples()


def test_annotations_of_images_that_are_not_listed_are_counted(write, caplog) -> None:
    source = write([annotation(17, [flat(CAT)]) | {"image_id": 99}])
    assert not read_all(source)["a"].any()
    assert "1 annotations are of images that it does not list" in caplog.text


def test_a_list_chooses_among_the_images(write, tmp_path) -> None:
    write([])
    photo(tmp_path / "train" / "b.jpg")
    (tmp_path / "list.txt").write_text("b.jpg\nc\n")
    write([], images=[image(1, "a.jpg"), image(2, "b.jpg")])
    splits = {**SPLITS, "train": {**SPLITS["train"], "list": "list.txt"}}
    whole, broken = open_source(recipe("coco", tmp_path, splits=splits)).samples()
    assert [s.id for s in whole if s.split == "train"] == ["b"]
    assert [(r.id, r.reason) for r in broken] == [("c", "missing partner")]


def panoptic(segments: list[dict[str, object]]) -> dict[str, object]:
    return {"image_id": 1, "file_name": "a.png", "segments_info": segments}


SEGMENT = 7 + (3 << 8) + (1 << 16)


@pytest.fixture
def write_panoptic(write, tmp_path):
    """Writes a panoptic PNG whose rectangle CAT is the segment, and its JSON file."""

    def of(segments: list[dict[str, object]], **changes: object):
        ids = label((1, CAT)).astype(np.int64) * SEGMENT
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        (tmp_path / "annotations" / "train").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / "annotations" / "train" / "a.png")
        return write([panoptic(segments)], **changes)

    return of


@pytest.mark.parametrize(("crowd", "target"), [(0, 2), (1, VOID)])
def test_segments_of_a_panoptic_png_are_their_categories(write_panoptic, crowd, target) -> None:
    source = write_panoptic([{"id": SEGMENT, "category_id": 18, "iscrowd": crowd}])
    np.testing.assert_array_equal(read_all(source)["a"], label((target, CAT)))


def test_a_segment_that_is_not_listed_and_an_image_without_an_entry(write_panoptic, write) -> None:
    assert f"such as {SEGMENT}, that segments_info" in read_all(write_panoptic([]))["a"]
    images = [image(1, "a.jpg"), image(2, "a.jpg")]
    found = write_panoptic([], images=[images[0], images[1] | {"file_name": "../val/v.png"}])
    assert "has 0 annotations of it, not 1" in read_all(found)["../val/v"]


def test_the_state_sees_the_json_the_pngs_and_the_images(write_panoptic, tmp_path) -> None:
    source = write_panoptic([{"id": SEGMENT, "category_id": 18}])
    states = [source.state()]
    assert source.state() == states[0]
    json_path = tmp_path / "annotations" / "train.json"
    json_path.write_text(json_path.read_text() + " ")
    states.append(source.state())
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "annotations" / "train" / "a.png")
    states.append(source.state())
    photo(tmp_path / "train" / "b.jpg")
    states.append(source.state())
    assert len(set(states)) == 4


def test_no_change_of_any_value_raises_anything_else(write, tmp_path) -> None:
    rle = {"size": [HEIGHT, WIDTH], "counts": runs(label((1, CAT)) > 0)}
    write([annotation(17, [flat(CAT)]), annotation(17, rle)])
    path = tmp_path / "annotations" / "train.json"
    made = recipe("coco", tmp_path, splits=SPLITS)
    for tree in mutations(json.loads(path.read_text())):
        path.write_text(json.dumps(tree))
        survives(made)


@given(data=st.data())
@settings(max_examples=60)
def test_no_damage_to_the_bytes_raises_anything_else(data, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("coco")
    tree = {
        "images": [image(1, "a.jpg")],
        "categories": CATEGORIES,
        "annotations": [annotation(17, [flat(CAT)])],
    }
    text = bytearray(json.dumps(tree).encode())
    for at in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=4)):
        text[at] = data.draw(st.integers(0, 255))
    (root / "annotations").mkdir()
    photo(root / "train" / "a.jpg")
    for split in SPLITS:
        (root / "annotations" / f"{split}.json").write_bytes(bytes(text))
    splits = {split: spec | {"images": "train"} for split, spec in SPLITS.items()}
    survives(recipe("coco", root, splits=splits))
