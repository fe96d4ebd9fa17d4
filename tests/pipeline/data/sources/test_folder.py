"""Parallel folders: pairs by name, lists that choose among them, and a state that sees each change."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn.images import ImageError
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
    assert {r.id: "in trainannot" in r.evidence for r in broken} == {
        name: name in images for name in wanted - (images & labels)
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


def made(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *overrides: str) -> list[tuple[str, str]]:
    whole, broken = open_source(recipe_over(root, *overrides)).samples()
    assert not broken
    return [(s.split, s.id) for s in whole]


def places(images: str, labels: str) -> str:
    spec = f"{{images: '{images}', labels: '{labels}'}}"
    return f"data.splits={{train: {spec}, val: {spec}}}"


@pytest.mark.parametrize(
    ("images", "labels", "files"),
    [
        ("{stem}.jpg", "{stem}_mask.png", ["a.jpg", "a_mask.png", "a.b.jpg", "a.b_mask.png"]),
        ("{stem}.jpg", "{stem}.png", ["a.jpg", "a.png", "a.b.jpg", "a.b.png"]),
        ("img/{stem}", "gt/{stem}_L", ["img/a.JPG", "gt/a_L.png", "img/a.b.tif", "gt/a.b_L.npy"]),
        (
            "p/{stem}/i.png",
            "p/{stem}/m.png",
            ["p/a/i.png", "p/a/m.png", "p/a.b/i.png", "p/a.b/m.png"],
        ),
    ],
)
def test_a_template_pairs_files_in_one_folder_or_a_tree(tmp_path, images, labels, files) -> None:
    made(tmp_path, *files, "notes.txt", "p/readme")
    names = {name for _, name in found(tmp_path, places(images, labels))}
    assert names == {"a", "a.b"}


def test_what_a_template_stands_for_may_hold_folders(tmp_path) -> None:
    made(tmp_path, "x/one/1.jpg", "x/two/1.jpg", "y/one/1.png", "y/two/1.png")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    names = found(tmp_path, places("x/{stem}.jpg", "y/{stem}.png"))
    assert names == [(s, n) for s in ("train", "val") for n in ("one/1", "two/1")]


def test_cityscapes_is_read_from_its_own_tree(tmp_path) -> None:
    for split in ("train", "val"):
        made(tmp_path, f"leftImg8bit/{split}/ulm/ulm_000_leftImg8bit.png")
        for kind in ("labelIds", "color", "instanceIds"):
            made(tmp_path, f"gtFine/{split}/ulm/ulm_000_gtFine_{kind}.png")
    overrides = ["data.source=cityscapes", "data.splits={}", "data.classes=[]", "data.void_ids=[]"]
    recipe = load_recipe("camvid", [f"data.root={tmp_path}", *overrides, TEST])
    whole, broken = open_source(recipe).samples()
    assert [(s.split, s.id) for s in whole] == [("train", "ulm/ulm_000"), ("val", "ulm/ulm_000")]
    assert broken == []
    rule = recipe.data.label_rule()
    assert [rule.ids[i] for i in (0, 7, 8, 33, 29)] == [255, 0, 1, 18, 255]
    assert 34 not in rule.ids


def test_what_is_missing_says_what_was_looked_for_and_what_is_there(tmp_path) -> None:
    made(tmp_path, "i/20.jpg", "l/20.xcf", "l/21.png", "i/21.heic")
    _, broken = open_source(recipe_over(tmp_path, places("i", "l"))).samples()
    evidence = {r.id: r.evidence for r in broken}
    assert "no file 20 with an ending of .png" in evidence["20"]
    assert evidence["20"].endswith("there is 20.xcf")
    assert evidence["21"].endswith("there is 21.heic")


def test_an_image_is_not_its_own_label_and_a_name_counts_once(tmp_path) -> None:
    made(tmp_path, "i/1.png", "l/1.png", "i/2.png", "l/2.png")
    with pytest.raises(DataError, match="each image would be its own label"):
        open_source(recipe_over(tmp_path, places("i", "i"))).samples()
    (tmp_path / "list.txt").write_text("1\n2.png\ni/1.png\n")
    twice = recipe_over(tmp_path, places("i", "l"), "data.splits.train.list=list.txt")
    with pytest.raises(DataError, match=r"list\.txt names 1 more than once"):
        open_source(twice).samples()


@pytest.mark.parametrize(
    "line", ["1", "1.png", "i/1.png", "./i/1.png", "1.png 1_mask.png", "/x/i/1.jpg"]
)
def test_a_list_names_samples_as_people_write_them(tmp_path, line) -> None:
    made(tmp_path, "i/1.png", "l/1.png", "i/2.png", "l/2.png", "i/a b.png", "l/a b.png")
    (tmp_path / "list.txt").write_text(f"{line}\n\na b\n")
    names = found(tmp_path, places("i", "l"), "data.splits.train.list=list.txt")
    assert [name for split, name in names if split == "train"] == ["1", "a b"]


def test_a_list_that_is_not_utf_8_and_a_name_that_is_not_are_told_in_words(tmp_path) -> None:
    made(tmp_path, "i/1.png", "l/1.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/i/\xff.png")).touch()
    whole, broken = open_source(recipe_over(tmp_path, places("i", "l"))).samples()
    assert {s.id for s in whole} == {"1"}
    assert {r.reason for r in broken} == {"name is not UTF-8"}
    assert all(r.path.encode() for r in broken)
    (tmp_path / "list.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        found(tmp_path, places("i", "l"), "data.splits.train.list=list.txt")


def test_what_is_no_regular_file_is_never_opened(tmp_path) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "i").mkdir()
    os.mkfifo(tmp_path / "i" / "pipe.png")
    (tmp_path / "i" / "folder.png").mkdir()
    (tmp_path / "i" / "dangling.png").symlink_to("nowhere")
    (tmp_path / "i" / "loop.png").symlink_to("loop.png")
    for name in ("pipe", "folder", "dangling", "loop"):
        (tmp_path / "l" / f"{name}.png").touch()
    source = open_source(recipe_over(tmp_path, places("i", "l")))
    whole, _ = source.samples()
    assert len(whole) == 8
    for sample in whole:
        with pytest.raises(ImageError, match="unreadable file"):
            source.read(sample)
    assert source.state() == source.state()


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
