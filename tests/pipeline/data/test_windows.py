"""Data sets that no disk holds: order by windows of shards, a mirror within bounds."""

import shutil
from pathlib import Path

import pytest
import torch

from fcn.nets import FCN, Blueprint
from pipeline.config.schema import PhaseSpec
from pipeline.data.shards import Shards
from pipeline.data.sources import open_source
from pipeline.errors import StoreError
from pipeline.stages.ingest import check_shard
from pipeline.storage.cache import MirroredStore, require_room
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Place
from pipeline.training.checkpoint import LocalCheckpointManager
from pipeline.training.trainer import Trainer
from tests.conftest import tiny


@pytest.fixture
def store(s3) -> MirroredStore:
    return MirroredStore(s3)


@pytest.fixture
def dataset(store, tmp_path) -> dict[str, list[Path]]:
    """Three shards to train on and one for validation, published; as they were written."""
    recipe = tiny()
    source = open_source(recipe)
    samples, _ = source.samples()
    files: dict[str, list[Path]] = {"train": [], "val": []}
    with store.publish("datasets", "d", {}) as draft:
        for split, found in files.items():
            mine = [s for s in samples if s.split == split]
            for i in range(0, len(mine), 8):
                path = tmp_path / f"{split}-{i:05d}.arrow"
                check_shard(source, mine[i : i + 8], recipe.data.class_table(), (), path)
                shutil.copy(path, draft)
                found.append(path)
    return files


def places_in(store: MirroredStore, dataset: dict[str, list[Path]]) -> dict[str, list[Place]]:
    """The published shards."""
    folder = store.folder("datasets", "d")
    return {split: [store.anywhere(folder / p.name) for p in dataset[split]] for split in dataset}


def train(train_shards: Shards, val_shards: Shards, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after two epochs in windows of one shard."""
    recipe = tiny("finetune.window_shards=1", "finetune.augment.crop_px=[32, 32]")
    torch.manual_seed(0)
    net = FCN(Blueprint("efficientnet_lite0", 5, 32))
    phase = PhaseSpec(stride=32, epochs=2)
    Trainer(net, recipe.finetune, phase, 0, train_shards, val_shards).run(
        LocalCheckpointManager(folder)
    )
    return net.state_dict()


def test_a_bounded_mirror_trains_the_same_net_and_keeps_within_its_bound(
    store, dataset, monkeypatch, tmp_path
) -> None:
    whole = train(Shards(dataset["train"]), Shards(dataset["val"]), tmp_path / "whole")
    sizes = sorted((path.stat().st_size for path in dataset["train"]), reverse=True)
    bound = sum(sizes[:2]) + dataset["val"][0].stat().st_size
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "elsewhere"))
    bounded = MirroredStore(str(store), bound / 1e9)
    places = places_in(bounded, dataset)
    require_room(places["train"], places["val"], 1, bounded.cache_gb)
    downloads, held = [], []
    get = ObjectStore.get

    def counted(self, name, target):
        downloads.append(name)
        held.append(sum(p.stat().st_size for p in bounded.root.glob("datasets/*/*.arrow")))
        return get(self, name, target)

    monkeypatch.setattr(ObjectStore, "get", counted)
    rows = [8, 8, 6]
    bit = train(Shards(places["train"], rows, 2), Shards(places["val"], [7], 2), tmp_path / "bit")
    assert all(torch.equal(whole[name], bit[name]) for name in whole)
    assert max(held) <= bound
    assert len(downloads) > 4  # something was removed and came again


@pytest.mark.parametrize(
    ("window", "share", "says"),
    [
        (
            None,
            0.9,
            r"too small: 3 of the 3 shards .* and 1 for .* set finetune.window_shards=1 or",
        ),
        (2, 0.9, r"too small: 3 of the 3 shards .* set finetune.window_shards=1 or a larger"),
        (1, 0.3, r"too small: 2 of the 3 shards .* set smaller data.shard_rows or a larger"),
    ],
)
def test_a_mirror_that_cannot_hold_what_training_needs_is_refused(
    store, dataset, window, share, says
) -> None:
    places = places_in(store, dataset)
    whole_gb = sum(p.stat().st_size for paths in dataset.values() for p in paths) / 1e9
    require_room(places["train"], places["val"], window, whole_gb)
    require_room(
        dataset["train"], dataset["val"], window, share * whole_gb
    )  # folders have no mirror
    with pytest.raises(StoreError, match=says):
        require_room(places["train"], places["val"], window, share * whole_gb)
