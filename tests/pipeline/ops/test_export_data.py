"""What was understood goes out whole, and comes in again as the same data set."""

import io

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from fcn.images import decode_ids
from pipeline.cli import main
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.errors import DataError
from pipeline.flow import Flow
from pipeline.ops import export_data as export
from pipeline.ops.export_data import export_data
from pipeline.results import Dataset
from tests.conftest import write_pair

ray_test = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory, local_ray) -> tuple[Recipe, Dataset]:
    """A data set with nested names, JPEG, a void id, a turned image, and a list in its own order."""
    folder = tmp_path_factory.mktemp("data")
    for split, names in (("train", ("b", "a", "c")), ("val", ("x", "y"))):
        for i, name in enumerate(names):
            label = np.full((20 + i, 30), i % 3)
            label[:3], label[3:5] = 11, 1
            write_pair(folder, split, name, label)
    turned = Image.open(folder / "train" / "c.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.rotate(90, expand=True).save(folder / "train" / "c.jpg", exif=exif)
    (folder / "train" / "c.png").unlink()
    (folder / "list.txt").write_text("b\nc\na\n")
    (folder / "own.yaml").write_text(
        f"""
name: own
store: {folder}/store
data:
  source: folder
  root: {folder}
  splits:
    train: {{images: train, labels: trainannot, list: list.txt}}
    val: {{images: val, labels: valannot}}
  classes: [sky, {{name: road, colour: [9, 8, 7]}}, tree]
  void_ids: [11]
net: {{backbone: resnet18, stride: 32}}
finetune:
  init: scratch
  epochs: 1
  global_batch: 2
  micro_batch: 1
  optimizer: {{lr: 0.01}}
  augment: {{crop_px: [32, 32]}}
"""
    )
    recipe = load_recipe(str(folder / "own.yaml"))
    return recipe, Flow(recipe).run("ingest").results["ingest"]


@ray_test
def test_folders_are_read_again_as_the_same_data_set(data, tmp_path) -> None:
    recipe, before = data
    target = tmp_path / "copies" / "own"
    export_data(recipe, "folder", target)
    assert (target / "classes.txt").read_text() == "sky\nroad\ntree\n"
    assert (target / "train" / "names.txt").read_text() == "b\nc\na\n"
    assert sorted(p.name for p in (target / "train" / "images").iterdir()) == [
        *("a.png", "b.png", "c.png")  # c was a JPEG to be turned
    ]
    label = decode_ids((target / "train" / "labels" / "b.png").read_bytes())
    assert set(np.unique(label)) == {0, 1, 255}
    assert "Data of own" in (target / "report.html").read_text()
    assert [path.name for path in target.parent.iterdir()] == ["own"]  # no draft is left
    again = load_recipe(str(target / "recipe.yaml"), [f"store={tmp_path}/store"])
    assert again.data.class_table() == recipe.data.class_table()
    after = Flow(again).run("ingest").results["ingest"]
    assert after.digest == before.digest
    assert (after.counts, after.class_px) == (before.counts, before.class_px)


@ray_test
def test_parquet_is_read_by_arrow_and_ray(data, tmp_path, monkeypatch) -> None:
    import ray

    recipe, before = data
    monkeypatch.setattr(export, "FILE_BYTES", 0)
    done = CliRunner().invoke(
        main,
        [
            "export-data",
            recipe_file(recipe, tmp_path),
            "--to=parquet",
            f"--output={tmp_path / 'out'}",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "3 train, 2 val" in done.output
    files = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert files == ["train-00000-of-00001.parquet", "val-00000-of-00001.parquet"]
    table = ds.dataset(tmp_path / "out" / "data", format="parquet").to_table()
    assert table["id"].to_pylist() == ["b", "c", "a", "x", "y"]
    assert table["split"].to_pylist() == ["train"] * 3 + ["val"] * 2
    assert table["image"][0]["path"].as_py() == "b.png"
    assert b'"_type": "Image"' in table.schema.metadata[b"huggingface"]
    assert b'"road"' in table.schema.metadata[b"classes"]
    again = load_recipe(str(tmp_path / "out" / "recipe.yaml"), [f"store={tmp_path}/store"])
    assert Flow(again).run("ingest").results["ingest"].digest == before.digest
    rows = ray.data.read_parquet(str(tmp_path / "out" / "data")).take_all()
    counts = {"train": np.zeros(3, int), "val": np.zeros(3, int)}
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        label = np.asarray(Image.open(io.BytesIO(row["label"]["bytes"])))
        assert label.shape == image.size[::-1]
        counts[row["split"]] += np.bincount(label.ravel(), minlength=256)[:3]
    assert {split: px.tolist() for split, px in counts.items()} == before.class_px


def recipe_file(recipe: Recipe, folder) -> str:
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    return str(path)


@ray_test
def test_a_large_split_becomes_several_files_that_are_numbered(data, tmp_path, monkeypatch) -> None:
    recipe, _ = data
    shards = Flow(recipe).run("ingest").results["ingest"].paths("train")
    monkeypatch.setattr(export, "FILE_BYTES", 0)
    export._write_parquet(tmp_path / "data", "train", shards * 3, recipe.data.class_table())
    names = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    assert all(pq.read_metadata(tmp_path / "data" / name).num_rows == 3 for name in names)


@ray_test
def test_what_fails_leaves_nothing_behind(data, tmp_path, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write", full)
    with pytest.raises(OSError, match="No space"):
        export_data(data[0], "folder", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@ray_test
def test_scaled_images_are_refused_with_the_remedy(data, tmp_path) -> None:
    recipe = data[0].changed(["data.max_side_px=32", f"data.root={data[0].data.root}"])
    with pytest.raises(DataError, match=r"--set data\.max_side_px=null"):
        export_data(scaled(recipe), "folder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def scaled(recipe: Recipe) -> Recipe:
    """The same over images of which one is larger than the bound."""
    assert recipe.data.root
    write_pair(recipe.data.root, "val", "z", np.tile([0, 1], (20, 20)))
    return recipe


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b"])
def test_a_sample_whose_name_leaves_the_folder_is_refused(name, tmp_path) -> None:
    with pytest.raises(DataError, match="export it as parquet"):
        export._write(tmp_path / "images", f"{name}.png", b"")
    assert list(tmp_path.rglob("*")) == []


def test_a_target_that_holds_something_is_refused_before_anything_runs(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty; name another folder with -o"):
        export_data(load_recipe("demo"), "folder", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
