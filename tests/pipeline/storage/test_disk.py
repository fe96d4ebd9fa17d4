"""A full disk is said in one way whatever words it was said in, and loses nothing."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.data.check import Rules, check_samples
from pipeline.data.shards import write_shard
from pipeline.data.sources import open_source
from pipeline.errors import StoreError
from pipeline.stages import ingest
from pipeline.storage.disk import says_full
from pipeline.storage.store import Store
from tests.conftest import tiny


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own with 200 KiB; mounting needs rights that not everyone has."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def write_shards(folder: Path) -> None:
    recipe = tiny()
    source = open_source(recipe)
    samples = [s for s in source.samples()[0] if s.split == "train"]
    table = recipe.data.class_table()
    rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
    _, rows = check_samples(source, samples, rules)
    write_shard(folder / "train.arrow", rows, "train", table)


def write_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(20_000)}, folder / "net.safetensors")


def write_text(folder: Path) -> None:
    (folder / "text").write_text("x" * 100_000)


@pytest.mark.parametrize("write", [write_shards, write_weights, write_text])
def test_a_full_disk_publishes_nothing_and_the_same_call_succeeds_once_there_is_room(
    small_disk, write
) -> None:
    store, ballast = Store(small_disk), small_disk / "ballast"
    ballast.write_bytes(bytes(160 * 1024))

    def publish() -> None:
        with store.publish("datasets", "a", {}) as draft:
            write(draft)

    with pytest.raises(StoreError) as caught:
        publish()
    text = str(caught.value)
    assert text.startswith(f"{small_disk} has no room: datasets/a needs more than the 0.")
    assert "set store=...; type the same command again, what is finished stays" in text
    assert store.published("datasets", "a") is None
    assert [p for p in (small_disk / "datasets").rglob("*") if p.is_file()] == []
    ballast.unlink()
    publish()
    assert store.published("datasets", "a") is not None


def test_a_full_disk_is_told_from_other_errors_and_the_message_crosses_processes() -> None:
    assert not says_full(FileNotFoundError(2, "No such file or directory"))
    assert not says_full(ValueError("no space"))
    error = pickle.loads(pickle.dumps(StoreError("/s has no room")))
    assert (type(error), str(error)) == (StoreError, "/s has no room")


def test_locks_can_be_taken_on_a_full_disk(small_disk) -> None:
    """Else a full store could not even be cleaned."""
    store = Store(small_disk)
    store.begin_run("demo", {})
    with store.flow_lock("last"):
        pass
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_text("x")
    with store.exclusive():
        pass
    with pytest.raises(StoreError, match=r"has no room: runs/demo/result\.json needs more"):
        store.begin_run("demo", {"ingest": "a"})
    assert json.loads((small_disk / "runs" / "demo" / "result.json").read_text()) == {"steps": {}}


@pytest.mark.ray
def test_a_full_disk_under_rays_workers_is_said_in_the_same_words(local_ray, small_disk) -> None:
    store, ballast = Store(small_disk), small_disk / "ballast"
    ballast.write_bytes(bytes(160 * 1024))
    with pytest.raises(StoreError, match="has no room: datasets/a needs more"):
        ingest.run(tiny(), store, "a")
    assert [p for p in (small_disk / "datasets").rglob("*") if p.is_file()] == []
    ballast.unlink()
    assert ingest.run(tiny(), store, "a").counts == {"train": 22, "val": 7, "test": 5}
