"""Pairs are found by counting names; which files are the labels is measured, or said to be unknown."""

from itertools import product

import pytest

from pipeline.ops.new.pairs import best_pairing


def flat(name: str) -> float:
    return 0.95 if any(word in name for word in ("mask", "gt", "_L")) else 0.1


def names(*templates: str, num: int = 6) -> list[str]:
    return [template.format(f"{i:04d}") for template, i in product(templates, range(num))]


@pytest.mark.parametrize(
    ("templates", "places"),
    [
        (("a/{}.jpg", "gt/{}.png"), {None: ("a", "gt")}),
        (("{}.jpg", "{}_mask.png"), {None: ("{stem}.jpg", "{stem}_mask")}),
        (("d/{}_in.png", "d/{}_mask.png"), {None: ("d/{stem}_in", "d/{stem}_mask")}),
        (("img/{}.jpg", "gt/mask_{}.png"), {None: ("img", "gt/mask_{stem}")}),
        (
            ("im/a/{}.jpg", "im/b/{}.jpg", "gt/a/{}.png", "gt/b/{}.png"),
            {None: ("im/{stem}", "gt/{stem}")},
        ),
        (
            ("train/{}.jpg", "train_mask/{}.png", "valid/{}.jpg", "valid_mask/{}.png"),
            {"train": ("train", "train_mask"), "val": ("valid", "valid_mask")},
        ),
        (
            ("training/x/{}.jpg", "training/gt/{}.png", "testing/x/{}.jpg", "testing/gt/{}.png"),
            {"train": ("training/x", "training/gt"), "test": ("testing/x", "testing/gt")},
        ),
        (("a/{}.jpg", "gt/{}.png", "overlay/{}.png"), {None: ("a", "gt")}),
    ],
)
def test_names_are_read_by_what_fits_most_files(templates, places) -> None:
    files = names(*templates)
    found = best_pairing(files, files, flat)
    assert found.places == places
    assert found.sure
    assert sum(map(len, found.stems.values())) == len(files) // max(2, len(templates)) * max(
        1, len(places)
    ) or len(templates) in (3, 4)


def test_which_files_are_the_labels_is_unknown_if_all_look_alike_and_no_name_says_it() -> None:
    files = names("a/{}.png", "b/{}.png")
    assert not best_pairing(files, files, lambda name: 0.9).sure
    named = names("a/{}.png", "labels/{}.png")
    found = best_pairing(named, named, lambda name: 0.9)
    assert found.sure
    assert found.places[None] == ("a", "labels")


def test_other_label_maps_of_the_same_images_are_told() -> None:
    files = names("a/{}.jpg", "gt/{}.png", "gt_fine/{}.png")
    found = best_pairing(files, files, flat)
    assert found.places[None][0] == "a"
    assert len(found.others) == 1


def test_what_has_no_partner_is_no_pairing() -> None:
    files = names("a/{}.jpg")
    assert best_pairing(files, files, flat) is None


def test_ten_thousand_files_are_read_by_a_part_of_them() -> None:
    files = names("a/{}.jpg", "gt/{}.png", num=9999)
    assert best_pairing(files, files, flat).places == {None: ("a", "gt")}
