"""Each doubt says what was found, with numbers, and what to do; what is as it should be raises none."""

from typing import Any

import pytest

from pipeline.data.check import Facts
from pipeline.data.doubts import find_doubts, near_duplicates
from pipeline.results import Doubt
from tests.conftest import a_dataset

NAMES = ("sky", "road")
HASH = 0x0F0F_3C3C_5A5A_9966


def facts(name: str, **changes: Any) -> Facts:
    plain = Facts(name, "", "", name, "", [1, 1], 48, 64, 0, 0, {})
    return plain._replace(**changes)


def doubts(rows=None, **changes: Any) -> list[Doubt]:
    rows = rows or {"train": [facts("a")], "val": [facts("b")]}
    return find_doubts(a_dataset(**changes), NAMES, rows, near_duplicates(rows))


def test_a_data_set_as_it_should_be_raises_none() -> None:
    assert doubts() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_px": {"train": [0, 9000], "val": [5, 5]}}, ["1 of 2", "train, sky:", "learned"]),
        (
            {"class_px": {"train": [500, 900], "val": [5, 0]}},
            ["1 of 2", "val, road:", "say nothing"],
        ),
        ({"void_px": {"train": 4001, "val": 0}}, ["50.0% of the pixels of train", "void_ids"]),
        (
            {"class_px": {"train": [99, 9000], "val": [5, 5]}},
            ["1 of 2", "sky 99 px", "100 px", "label_map"],
        ),
        ({"notes": {"moved_px": 600}}, ["600 px", "10.00%", "data.colour_tolerance"]),
        ({"notes": {"unknown_colour_px": 61}}, ["61 px", "1.02%", "data.unknown_colours"]),
        ({"notes": {"overlap_px": 90}}, ["90 px", "1.50%", "more than one class"]),
    ],
)
def test_a_doubt_holds_its_numbers_and_a_remedy(changes, words) -> None:
    (doubt,) = doubts(**changes)
    assert doubt.level == "warning"
    assert [word for word in words if word not in doubt.text] == []


def test_a_decision_about_few_pixels_is_a_note_and_a_split_without_images_no_doubt() -> None:
    (note,) = doubts(notes={"overlap_px": 3})
    assert (note.level, "0.05%" in note.text) == ("note", True)
    assert (
        doubts(counts={"train": 3, "val": 0}, class_px={"train": [3000, 1000], "val": [0, 0]}) == []
    )


def test_near_duplicates_of_evaluated_splits_are_counted_and_named() -> None:
    rows = {
        "train": [facts("t0", perceptual_hash=HASH ^ 0xFFFF), facts("t1", perceptual_hash=HASH)],
        "val": [facts("v0", perceptual_hash=HASH ^ 7), facts("v1", perceptual_hash=HASH ^ 0x3FF00)],
        "test": [facts("x", perceptual_hash=HASH ^ 1)],
    }
    pairs = near_duplicates(rows)
    assert [(p.split, p.evaluated.id, p.train.id, p.bits) for p in pairs] == [
        ("test", "x", "t1", 1),
        ("val", "v0", "t1", 3),
    ]
    found = find_doubts(a_dataset(counts={"train": 2, "val": 2, "test": 1}), NAMES, rows, pairs)
    assert len(found) == 2
    assert "1 of 1 images of test" in found[0].text
    assert "1 of 2 images of val" in found[1].text
    assert "val/v0 and train/t1" in found[1].text
    assert "data.held_out.group" in found[1].text


def test_one_image_far_larger_than_the_others_is_named_with_its_size_and_a_bound() -> None:
    large = facts("huge", height_px=3000, width_px=4000)
    (doubt,) = doubts({"train": [facts("a"), facts("c"), large], "val": [facts("b")]})
    for words in ("train/huge has 4000x3000 px", "3906 times", "data.max_side_px, such as 96,"):
        assert words in doubt.text
