"""What labels mean is decided by what is in them, and by the layout's convention."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.ops.new.decide import group_pattern, label_lines
from pipeline.ops.new.detect import Found
from pipeline.ops.new.look import Looked
from pipeline.ops.new.names import Table


def values(found: Found, ids: dict[int, int]) -> dict[str, object]:
    looked = Looked(num=3, total=3, ids=Counter(ids))
    return {line.key.removeprefix("data."): line.shown for line in label_lines(found, looked)}


def found(source: str = "folder", names: tuple[str, ...] = (), **more: object) -> Found:
    table = Table("classes.txt", names) if names else None
    return Found(source, Path("/data"), "", table=table, **more)


def test_255_is_void_by_convention_asked_about_or_one_of_many_ids() -> None:
    few = {0: 50, 1: 40, 2: 5, 255: 5}
    assert values(found(void_255=True), few)["void_ids"] == [255]
    assert values(found(), few)["void_ids"] == "CHOOSE"
    assert values(found(), dict.fromkeys(range(256), 1))["classes"] == "CHOOSE"


def test_panoptic_annotations_leave_void_and_others_leave_background() -> None:
    names = ("car", "tree")
    panoptic = values(found("coco", names, covered=True), {})
    assert panoptic["unlabelled"] == "void"
    assert [c["name"] for c in panoptic["classes"]] == ["car", "tree"]
    instances = values(found("coco", names), {})
    assert instances["unlabelled"] == "background"
    one = values(found("coco", ("car",), covered=True), {})
    assert [c["name"] for c in one["classes"]] == ["background", "car"]


def test_a_background_that_is_annotated_is_not_made_twice() -> None:
    lines = values(found("labelme", ("_background_", "car")), {})
    assert [c["name"] for c in lines["classes"]] == ["_background_", "car"]
    assert lines["unlabelled"] == "_background_"


def test_numbers_of_yolo_go_to_their_names_though_background_is_first() -> None:
    lines = values(found("yolo", ("car", "tree")), {})
    assert [c["name"] for c in lines["classes"]] == ["background", "car", "tree"]
    assert lines["label_map"] == {"0": "car", "1": "tree"}


@pytest.mark.parametrize(
    ("stems", "group"),
    [
        ([f"v{v}_{i:03d}" for v in range(5) for i in range(4)], "v0"),
        ([f"patient{p}/slice_{i}" for p in range(5) for i in range(4)], "patient0"),
        ([f"img_{i:03d}" for i in range(20)], None),
        ([f"{i:03d}" for i in range(20)], None),
    ],
)
def test_groups_are_seen_in_names_that_many_share(stems, group) -> None:
    import re

    pattern = group_pattern(stems)
    assert (re.search(pattern, stems[0])[1] if pattern else None) == group
