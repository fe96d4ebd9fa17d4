"""Parallel folders: pairs by name, lists that choose among them, and a state that sees each change."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.data import LAYOUTS
from pipeline.config.recipe import load_recipe
from pipeline.data.sources import READERS, open_source
from pipeline.errors import DataError, RecipeError
from tests.conftest import write_pair

NAMES = st.sets(st.sampled_from(["a", "b", "c", "d"]))


def test_every_layout_has_a_reader() -> None:
    assert set(READERS) == set(LAYOUTS)


def test_a_root_that_is_not_given_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"data\.root is missing; --set data\.root=FOLDER"):
        open_source(load_recipe("camvid"))


def test_missing_folders_are_named_with_the_remedy(folder_recipe) -> None:
    recipe = load_recipe(str(folder_recipe), ["data.root=/nowhere"])
    with pytest.raises(DataError, match=r"/nowhere/train is not a folder; set data\.root"):
        open_source(recipe).samples()


@given(images=NAMES, labels=NAMES, listed=NAMES.filter(bool) | st.none())
def test_every_name_is_a_pair_or_says_what_it_lacks(
    tmp_path_factory, images, labels, listed
) -> None:
    root = tmp_path_factory.mktemp("root")
    for split in ("train", "val"):
        write_pair(root, split, "a", np.zeros((4, 4)))
    for folder, names in ((root / "train", images), (root / "trainannot", labels)):
        (folder / "a.png").unlink()
        for name in names:
            (folder / f"{name}.png").touch()
    override = []
    if listed is not None:
        (root / "list.txt").write_text("".join(f"{name} 1\n" for name in sorted(listed)))
        override = ["data.splits.train.list=list.txt"]
    source = open_source(recipe_over(root, *override))
    wanted = images | labels if listed is None else listed
    if not wanted:
        with pytest.raises(DataError, match="split train has no samples"):
            source.samples()
        return
    whole, broken = source.samples()
    pairs = [s for s in whole if s.split == "train"]
    assert [s.id for s in pairs] == sorted(wanted & images & labels)
    assert all(Path(s.image).stem == Path(s.label).stem == s.id for s in pairs)
    assert {r.id: r.evidence.split()[-1] for r in broken} == {
        name: "trainannot" if name in images else "train" for name in wanted - (images & labels)
    }
    assert {r.reason for r in broken} <= {"missing partner"}


def recipe_over(root: Path, *overrides: str):
    splits = "{train: {images: train, labels: trainannot}, val: {images: val, labels: valannot}}"
    return load_recipe("camvid", [f"data.root={root}", f"data.splits={splits}", *overrides, TEST])


TEST = "evaluate.split=val"


def test_two_images_of_one_name_and_a_list_that_is_not_there_are_refused(tmp_path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, split, "a", np.zeros((4, 4)))
    missing = recipe_over(tmp_path, "data.splits.val.list=none.txt")
    with pytest.raises(DataError, match=r"none\.txt: the list of samples cannot be read"):
        open_source(missing).samples()
    (tmp_path / "train" / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.png and a\.jpg share a name"):
        open_source(recipe_over(tmp_path)).samples()


def test_voc_is_read_from_its_own_folders_and_lists(tmp_path) -> None:
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        (root / "JPEGImages" / f"2007_{i}.jpg").touch()
        (root / "SegmentationClass" / f"2007_{i}.png").touch()
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_0\n2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_4\n")  # 2007_3 is in no list, as most of VOC's images
    recipe = load_recipe("voc-fcn32s-resnet18", [f"data.root={root}"])
    whole, broken = open_source(recipe).samples()
    assert [(s.split, s.id) for s in whole] == [
        *[("train", f"2007_{i}") for i in range(3)],
        ("val", "2007_4"),
    ]
    assert broken == []
    assert len(recipe.data.class_table()) == 21


def changes(recipe_path: Path, change) -> bool:
    """Whether a change is seen in the source's state."""
    recipe = load_recipe(str(recipe_path))
    before = open_source(recipe).state()
    assert open_source(recipe).state() == before
    change()
    return open_source(recipe).state() != before


def test_a_new_file_changes_the_state(folder_recipe, tmp_path) -> None:
    assert changes(
        folder_recipe, lambda: write_pair(tmp_path / "data", "val", "new", np.zeros((20, 30)))
    )


def test_an_image_that_was_written_again_changes_the_state(folder_recipe, tmp_path) -> None:
    path = tmp_path / "data" / "val" / "val0.png"
    assert changes(folder_recipe, lambda: os.utime(path, ns=(1, 1)))


def test_a_label_changed_in_place_with_size_and_time_kept_changes_the_state(
    folder_recipe, tmp_path
) -> None:
    path = tmp_path / "data" / "valannot" / "val0.bmp"
    label = np.arange(600).reshape(20, 30).astype(np.uint8) % 3
    path.with_suffix(".png").unlink()
    Image.fromarray(label).save(path)
    info = path.stat()

    def turn() -> None:
        Image.fromarray(label[::-1, ::-1].copy()).save(path)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    assert changes(folder_recipe, turn)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (info.st_size, info.st_mtime_ns)


def test_a_label_that_was_only_touched_or_moved_along_is_the_same_data(
    folder_recipe, tmp_path
) -> None:
    path = tmp_path / "data" / "valannot" / "val0.png"
    assert not changes(folder_recipe, lambda: os.utime(path, ns=(1, 1)))
