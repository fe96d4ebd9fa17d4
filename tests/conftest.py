"""Small data sets and a local Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from pipeline.config.recipe import Recipe, load_recipe
from pipeline.data.check import Rules, check_samples
from pipeline.data.shards import Shards, write_shard
from pipeline.data.sources import open_source
from pipeline.results import Dataset
from tests.s3 import BUCKET, S3

settings.register_profile(
    "untimed", deadline=None
)  # how long an example takes is the machine's affair
settings.load_profile("untimed")

TINY = (
    "data.shapes={num_train: 22, num_val: 7, num_test: 5, height_px: 48, width_px: 64}",
    "finetune.augment.crop_px=[48, 64]",
    "finetune.global_batch=8",
    "finetune.micro_batch=2",
    "finetune.validate_every_epochs=1",
    "evaluate.num_pictures=3",
)
"""The demo, small enough for a test."""


def tiny(*overrides: str) -> Recipe:
    """The demo's recipe at test size."""
    return load_recipe("demo", [*TINY, *overrides])


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> dict[str, Shards]:
    """The tiny data set, written by the ingest's own tasks in this process."""
    folder = tmp_path_factory.mktemp("shards")
    recipe = tiny()
    source = open_source(recipe)
    rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
    samples, _ = source.samples()
    shards = {}
    for split in ("train", "val", "test"):
        mine = [s for s in samples if s.split == split]
        path = folder / f"{split}.arrow"
        table = recipe.data.class_table()
        write_shard(path, check_samples(source, mine, rules)[1], split, table)
        shards[split] = Shards([path])
    return shards


def a_dataset(folder: Path = Path("data"), **changes: Any) -> Dataset:
    """A data set of two classes and two splits about which there is no doubt."""
    facts: dict[str, Any] = {
        "folder": folder,
        "files": {"train": ["a.arrow"], "val": ["b.arrow"]},
        "counts": {"train": 3, "val": 2},
        "class_px": {"train": [3000, 1000], "val": [500, 500]},
        "void_px": {"train": 1000, "val": 0},
        "notes": {},
        "range": None,
        "max_side_px": None,
        "rows": {"a.arrow": 3, "b.arrow": 2},
        "num_seen": 6,
        "num_quarantined": 1,
        "digest": "0123456789abcdef" * 2,
    }
    return Dataset.model_validate(facts | changes)


def write_pair(root: Path, split: str, name: str, label: np.ndarray, seed: int = 0) -> None:
    """An image of noise and its label map in parallel folders."""
    for folder in (root / split, root / f"{split}annot"):
        folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (*label.shape[:2], 3))
    Image.fromarray(noise.astype(np.uint8)).save(root / split / f"{name}.png")
    Image.fromarray(label.astype(np.uint8)).save(root / f"{split}annot" / f"{name}.png")


FOLDER = """
name: own
data:
  source: folder
  root: {root}
  splits:
    train: {{images: train, labels: trainannot}}
    val: {{images: val, labels: valannot}}
  classes: [sky, road, tree]
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


@pytest.fixture
def folder_recipe(tmp_path) -> Path:
    """A recipe file over a good little folder data set in `tmp_path / "data"`."""
    root = tmp_path / "data"
    for split, n in (("train", 6), ("val", 2)):
        for i in range(n):
            write_pair(root, split, f"{split}{i}", np.full((20 + i, 30), i % 3))
    path = tmp_path / "own.yaml"
    path.write_text(FOLDER.format(root=root))
    return path


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for the tests of a module; gone after it, for others start Rays of their own."""
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """One S3 server for all tests that need one."""
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path) -> str:
    """The URI of an empty store; its mirror on this machine is in `tmp_path / "cache"`."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{tmp_path.name}"
