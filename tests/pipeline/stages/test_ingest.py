"""Nothing is learned from unseen: accepted + quarantined = seen, and labels are proved."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.recipe import load_recipe
from pipeline.data.check import Facts
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.stages import ingest
from pipeline.storage.store import Store
from tests.conftest import write_pair

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(recipe_path, tmp_path, *overrides):
    recipe = load_recipe(str(recipe_path), overrides)
    return ingest.run(recipe, Store(tmp_path / "store"), "key")


def quarantine(dataset) -> dict[str, tuple[str, str]]:
    rows = csv.DictReader((dataset.folder / "quarantine.csv").open())
    return {row["id"]: (row["reason"], row["evidence"]) for row in rows}


def test_a_good_folder_becomes_shards_of_untouched_images_and_proved_labels(
    folder_recipe, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ingest, "SHARD_ROWS", 4)
    dataset = run(folder_recipe, tmp_path)
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
    Image.new("RGB", (30, 20), (1, 0, 0)).save(root / "trainannot" / "rgb.png")
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
    assert found["wild"][1] == "ids 7 (600 px); the ids of the 3 classes are 0..2"
    assert "data.label_kind=colours" in found["rgb"][1]
    assert dataset.counts == {"train": 6, "val": 2}
    assert dataset.num_seen == 16
    assert len(Shards(dataset.paths("train"))) == 6
    assert len(Shards(dataset.paths("val"))) == 2
    report = (dataset.folder / "report.html").read_text()
    assert all(f"<h3>{reason}: 1</h3>" in report for reason, _ in found.values())


def test_doubts_are_logged_and_kept_with_the_data_set(folder_recipe, tmp_path, caplog) -> None:
    root = tmp_path / "data"
    with Image.open(root / "train" / "train4.png") as image:
        Image.fromarray(np.asarray(image) // 2).save(root / "val" / "dark.png")
    Image.open(root / "trainannot" / "train4.png").save(root / "valannot" / "dark.png")
    dataset = run(folder_recipe, tmp_path)
    kept = Store(tmp_path / "store").published("datasets", "key")["doubts"]
    assert [doubt["text"] for doubt in kept] == [doubt.text for doubt in dataset.doubts]
    logged = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert logged == [doubt.text for doubt in dataset.doubts]
    assert "1 of 3 classes not found in the labels of val, tree" in logged[0]
    assert "(val/dark and train/train4)" in logged[1]


def test_too_much_quarantined_fails_with_the_first_reasons_and_publishes_nothing(
    folder_recipe, tmp_path
) -> None:
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(
        tmp_path / "data" / "trainannot" / "train0.png"
    )
    with pytest.raises(DataError) as caught:
        run(folder_recipe, tmp_path, "data.max_quarantined_frac=0.01")
    text = str(caught.value)
    assert "1 of 8 samples were rejected, more than data.max_quarantined_frac=0.01" in text
    assert "train/train0: unknown class: ids 9" in text
    datasets = tmp_path / "store" / "datasets"
    assert str(datasets / "key.quarantine.csv") in text
    assert (datasets / "key.quarantine.csv").is_file()
    assert str(datasets / "key.report.html") in text
    assert "unknown class: 1" in (datasets / "key.report.html").read_text()
    assert Store(tmp_path / "store").published("datasets", "key") is None
    assert not list((tmp_path / "store" / "datasets").rglob("*.arrow"))


def test_copies_are_found_across_shards_and_encodings_before_anything_is_written(
    folder_recipe, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ingest, "SHARD_ROWS", 2)
    root = tmp_path / "data"
    for name, of in (("zz-first", "train/train0"), ("a-leak", "val/val1")):
        with Image.open(root / f"{of}.png") as image:
            image.save(root / "train" / f"{name}.bmp")
            Image.new("L", image.size).save(root / "trainannot" / f"{name}.png")
    written = []
    staged = Store.stage_file
    monkeypatch.setattr(Store, "stage_file", lambda *a: written.append(a) or staged(*a))
    dataset = run(folder_recipe, tmp_path, "data.max_quarantined_frac=1")
    assert quarantine(dataset) == {
        "zz-first": ("duplicate", "same pixels as train/train0"),
        "a-leak": ("leak into val", "same pixels as val/val1"),
    }
    assert dataset.counts == {"train": 6, "val": 2}
    assert [dataset.rows[name] for name in dataset.files["train"]] == [1, 2, 2, 1]
    shards = Shards(dataset.paths("train"))
    assert [shards.id(i) for i in range(6)] == [f"train{i}" for i in range(6)]
    assert len(written) == len(dataset.rows)


@pytest.mark.parametrize(("wrong", "stops"), [(3, False), (4, True)])
def test_a_few_faulty_files_do_not_stop_a_small_data_set(
    folder_recipe, tmp_path, wrong, stops
) -> None:
    for i in range(wrong):
        (tmp_path / "data" / "trainannot" / f"train{i}.png").write_bytes(b"nothing")
    if stops:
        with pytest.raises(DataError, match="4 of 8 samples were rejected, more than 1% and more"):
            run(folder_recipe, tmp_path)
    else:
        assert run(folder_recipe, tmp_path).num_quarantined == wrong


def test_255_without_a_rule_stops_with_the_two_readings(folder_recipe, tmp_path) -> None:
    for path in (tmp_path / "data" / "trainannot").iterdir():
        label = np.asarray(Image.open(path)).copy()
        label[0] = 255
        Image.fromarray(label).save(path)
    with pytest.raises(DataError) as caught:
        run(folder_recipe, tmp_path, "data.max_quarantined_frac=1")
    text = str(caught.value)
    assert "void_ids: [255]" in text
    assert "label_map: {0: sky, 1: road, 255: tree}" in text
    assert run(folder_recipe, tmp_path, "data.void_ids=[11, 255]").num_quarantined == 0


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        ("{0: void, 1: void, 2: void}", "void everywhere"),
        ("{0: sky, 1: sky, 2: sky}", "of class sky alone"),
    ],
)
def test_labels_that_tell_nothing_stop_the_ingest(
    folder_recipe, tmp_path, label_map, words
) -> None:
    with pytest.raises(DataError, match=f"split (train|val) are {words}"):
        run(folder_recipe, tmp_path, f"data.label_map={label_map}")


def test_black_and_white_masks_become_two_classes_by_a_map(folder_recipe, tmp_path) -> None:
    for split in ("train", "val"):
        for path in (tmp_path / "data" / f"{split}annot").iterdir():
            label = np.zeros_like(np.asarray(Image.open(path)))
            label[:, ::2] = 255
            Image.fromarray(label).save(path)
    overrides = ["data.classes=[ground, crack]", "data.void_ids=[]"]
    dataset = run(folder_recipe, tmp_path, *overrides, "data.label_map={0: ground, 255: crack}")
    assert dataset.class_px["val"] == [sum(dataset.class_px["val"]) // 2] * 2
    assert dataset.void_px == {"train": 0, "val": 0}


def test_the_range_of_16_bit_images_is_found_in_the_train_split(folder_recipe, tmp_path) -> None:
    for split, high in (("train", 3000), ("val", 4000)):
        for path in (tmp_path / "data" / split).iterdir():
            size = Image.open(path).size
            grey = np.linspace(1000, high, size[0] * size[1]).reshape(size[::-1])
            noise = np.random.default_rng(int(path.stem[-1])).integers(0, 9, grey.shape)
            noise[0] = 0
            Image.fromarray((grey + noise).clip(1000, high).astype(np.uint16)).save(path)
    with pytest.raises(DataError, match=r"16-bit image.*data\.range=auto"):
        run(folder_recipe, tmp_path)
    dataset = run(folder_recipe, tmp_path, "data.range=auto")
    assert dataset.range == (1000, 3000)
    image, _ = Shards(dataset.paths("val")).image_label(0)
    assert (image[-1] == 255).all()


names = st.lists(st.tuples(st.sampled_from(["test", "val", "train"]), st.integers(0, 5)))


@given(names, st.integers(1, 3))
def test_of_each_picture_the_first_of_the_most_evaluated_split_stays(samples, chunk) -> None:
    """However the samples are cut into chunks, as by a search over all pairs."""
    rank = ["test", "val", "train"]
    ordered = sorted(samples, key=lambda sample: rank.index(sample[0]))
    seen: dict[str, str] = {}
    rejected = []
    for split in rank:
        mine = [picture for s, picture in ordered if s == split]
        for start in range(0, len(mine), chunk):
            facts = [
                Facts(f"{start + n}", "", "", str(picture), "", [], 1, 1, 0, 0, {})
                for n, picture in enumerate(mine[start : start + chunk])
            ]
            found = ingest._doubles(split, facts, seen)
            rejected += [(split, start + n, row.reason) for n, row in found.items()]
    expected = []
    for split in rank:
        mine = [picture for s, picture in ordered if s == split]
        for n, picture in enumerate(mine):
            above = [s for s in rank[: rank.index(split)] if (s, picture) in ordered]
            if above:
                expected.append((split, n, f"leak into {above[0]}"))
            elif picture in mine[:n]:
                expected.append((split, n, "duplicate"))
    assert rejected == expected
