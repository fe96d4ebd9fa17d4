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


def test_a_sample_that_a_list_names_twice_counts_once(folder_recipe, tmp_path) -> None:
    (tmp_path / "data" / "list.txt").write_text("train1\ntrain0\ntrain1\n")
    overrides = ["data.splits.train.list=list.txt", "data.max_quarantined_frac=1"]
    dataset = run(folder_recipe, tmp_path, *overrides)
    assert dataset.counts["train"] == 2
    assert quarantine(dataset) == {"train1": ("duplicate", "same pixels as train/train1")}


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
                Facts(f"{start + n}", "", "", str(picture), "", [])
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
