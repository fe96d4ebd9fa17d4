"""Nothing is learned from unseen: accepted + quarantined = seen, and labels are proved."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fcn.labels import VOID
from pipeline.config.recipe import load_recipe
from pipeline.data.shards import Shards
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from pipeline.stages import ingest
from pipeline.storage.store import Store
from tests.conftest import tiny, write_pair

pytestmark = pytest.mark.usefixtures("local_ray")


def run(recipe_path, tmp_path, *overrides):
    recipe = load_recipe(str(recipe_path), overrides)
    return ingest.run(recipe, Store(tmp_path / "store"), "key")


def quarantine(dataset) -> dict[str, tuple[str, str]]:
    rows = csv.DictReader((dataset.folder / "quarantine.csv").open())
    return {row["id"]: (row["reason"], row["evidence"]) for row in rows}


def test_a_good_folder_becomes_shards_of_untouched_images_and_proved_labels(
    folder_recipe, tmp_path
) -> None:
    dataset = run(folder_recipe, tmp_path, "data.shard_rows=4")
    assert dataset.counts == {"train": 6, "val": 2}
    assert (dataset.num_seen, dataset.num_quarantined) == (8, 0)
    assert len(dataset.files["train"]) == 2
    shards = Shards(dataset.paths("train"))
    assert [shards.id(i) for i in range(len(shards))] == [f"train{i}" for i in range(6)]
    image, label = shards.image_label(4)
    original = tmp_path / "data" / "train" / "train4.png"
    assert (image == np.asarray(Image.open(original))).all()
    assert label.shape == (24, 30)
    assert set(np.unique(label)) == {1}
    table = pa.ipc.open_file(pa.memory_map(str(dataset.paths("train")[0]))).read_all()
    assert table["image"][0].as_py() == (original.with_name("train0.png")).read_bytes()
    assert table["class_px"][0].as_py() == [600, 0, 0]
    assert b'"sky"' in table.schema.metadata[b"classes"]
    assert sum(dataset.class_px["train"]) == sum((20 + i) * 30 for i in range(6))


def test_what_is_wrong_is_quarantined_with_its_reason(folder_recipe, tmp_path) -> None:
    root = tmp_path / "data"
    good = np.zeros((20, 30))
    for name in ("cut", "small", "rgb", "wild", "twin", "leak", "notlabel"):
        write_pair(root, "train", name, good)
    encoded = (root / "train" / "cut.png").read_bytes()
    (root / "train" / "cut.png").write_bytes(encoded[: len(encoded) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "trainannot" / "small.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "trainannot" / "rgb.png")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(root / "trainannot" / "wild.png")
    (root / "trainannot" / "notlabel.png").write_bytes(b"nothing")
    twin = (root / "train" / "train0.png").read_bytes()
    (root / "train" / "twin.png").write_bytes(twin)
    (root / "train" / "leak.png").write_bytes((root / "val" / "val0.png").read_bytes())
    write_pair(root, "train", "alone", good)
    (root / "trainannot" / "alone.png").unlink()

    dataset = run(folder_recipe, tmp_path, "data.max_quarantined_frac=1")
    found = quarantine(dataset)
    assert {name: reason for name, (reason, _) in found.items()} == {
        "cut": "undecodable image",
        "small": "size mismatch",
        "rgb": "RGB label map",
        "wild": "unknown class",
        "notlabel": "undecodable label",
        "twin": "duplicate",
        "leak": "leak into val",
        "alone": "missing partner",
    }
    assert found["small"][1] == "image is 30x20 px, label 9x9"
    assert found["wild"][1] == "ids [7] in a table of 3 classes (0..2)"
    assert "3 channels; a label map has one" in found["rgb"][1]
    assert dataset.counts == {"train": 6, "val": 2}
    assert dataset.num_seen == 16
    assert len(Shards(dataset.paths("train"))) == 6
    assert len(Shards(dataset.paths("val"))) == 2


def test_too_much_quarantined_fails_with_the_first_reasons_and_publishes_nothing(
    folder_recipe, tmp_path
) -> None:
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(
        tmp_path / "data" / "trainannot" / "train0.png"
    )
    with pytest.raises(DataError) as caught:
        run(folder_recipe, tmp_path)
    text = str(caught.value)
    assert "1 of 8 samples were rejected, more than data.max_quarantined_frac=0.01" in text
    assert "train/train0: unknown class: ids [9]" in text
    assert (tmp_path / "store" / "datasets" / "key.quarantine.csv").is_file()
    assert Store(tmp_path / "store").published("datasets", "key") is None
    assert not list((tmp_path / "store" / "datasets").glob(".draft*"))


def test_void_ids_and_255_are_void(folder_recipe, tmp_path) -> None:
    label = np.zeros((20, 30))
    label[0], label[1] = 11, 255
    write_pair(tmp_path / "data", "train", "void", label)
    dataset = run(folder_recipe, tmp_path)
    shards = Shards(dataset.paths("train"))
    index = next(i for i in range(len(shards)) if shards.id(i) == "void")
    assert (shards.image_label(index)[1] == VOID).sum() == 60


@pytest.mark.parametrize("mode", ["P", "I;16", "1"])
def test_palette_16_bit_and_1_bit_label_maps_are_read_as_ids(folder_recipe, tmp_path, mode) -> None:
    write_pair(tmp_path / "data", "train", "odd", np.zeros((20, 30)))
    ids = np.tile([0, 1], (20, 15))
    if mode == "P":
        picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
        picture.putpalette([200, 10, 10, 10, 200, 10])
    else:
        picture = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else bool))
    assert picture.mode == mode
    picture.save(tmp_path / "data" / "trainannot" / "odd.png")
    dataset = run(folder_recipe, tmp_path)
    shards = Shards(dataset.paths("train"))
    index = next(i for i in range(len(shards)) if shards.id(i) == "odd")
    assert (shards.image_label(index)[1] == ids).all()


def test_missing_folders_are_named_with_the_remedy(folder_recipe) -> None:
    recipe = load_recipe(str(folder_recipe), ["data.root=/nowhere"])
    with pytest.raises(DataError, match=r"/nowhere/train is not a folder; set data\.root"):
        open_source(recipe).samples()


def test_voc_is_read_from_its_own_folders_and_lists(tmp_path) -> None:
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / "JPEGImages" / f"2007_{i}.jpg")
        label = np.full((24, 32), i * 5, np.uint8)
        label[0] = 255
        picture = Image.fromarray(label).convert("P")
        picture.putpalette([*range(256)] * 3)
        picture.save(root / "SegmentationClass" / f"2007_{i}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_0\n2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_4\n")  # 2007_3 is in no list, as most of VOC's images
    recipe = load_recipe("voc-fcn32s-resnet18", [f"data.root={root}"])
    dataset = ingest.run(recipe, Store(tmp_path / "store"), "voc")
    assert dataset.counts == {"train": 3, "val": 1}
    label = Shards(dataset.paths("val")).image_label(0)[1]
    assert label[0, 0] == VOID
    assert label[5, 5] == 20


def test_shapes_are_the_same_on_every_machine_and_hard_to_guess(tiny_shards) -> None:
    source = open_source(tiny())
    samples, _ = source.samples()
    assert source.read(samples[3]) == source.read(samples[3])
    assert source.read(samples[3]) != source.read(samples[4])
    labels = [tiny_shards["train"].image_label(i)[1] for i in range(22)]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    assert (counts[[0, 1, 2, 3, 4, VOID]] > 0).all()
    assert counts[5:VOID].sum() == 0
    assert 0.4 < counts[0] / counts.sum() < 0.9


def test_a_changed_file_changes_the_fingerprint_of_the_source(folder_recipe, tmp_path) -> None:
    recipe = load_recipe(str(folder_recipe))
    before = open_source(recipe).state()
    assert open_source(recipe).state() == before
    write_pair(tmp_path / "data", "val", "new", np.zeros((20, 30)))
    assert open_source(recipe).state() != before
