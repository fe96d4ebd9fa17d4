"""Micro-batches are the same whoever loads them; images are evaluated whole and once each."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.labels import VOID
from pipeline.config.schema import AugmentSpec
from pipeline.data.loader import TrainDataset, eval_batches, train_batches
from pipeline.data.sampler import BatchSchedule, MicroBatchSpec
from pipeline.data.shards import Row, Shards, encode_png, pixels_sha256, write_shard
from tests.conftest import tiny

SPEC = AugmentSpec(crop_px=(32, 40), scale=(0.75, 1.5), jitter=0.2)
SCHEDULE = BatchSchedule(num_samples=22, global_batch=8, micro_batch=2, epochs=2, seed=3)


def same(one, other) -> bool:
    return (
        torch.equal(one.image, other.image)
        and torch.equal(one.label, other.label)
        and (one.ids, one.step, one.seed, one.void)
        == (other.ids, other.step, other.seed, other.void)
    )


@pytest.fixture(scope="module")
def alone(tiny_shards):
    """The steps of one worker that loads by itself."""
    return list(train_batches(TrainDataset(tiny_shards["train"], SPEC, 3), SCHEDULE, 0, 0, 1, 0))


@given(world_size=st.integers(1, 5), first=st.integers(0, 5))
@settings(max_examples=10)
def test_any_workers_from_any_step_load_the_same_micro_batches(
    alone, tiny_shards, world_size, first
) -> None:
    dataset = TrainDataset(tiny_shards["train"], SPEC, 3)
    ranks = [
        list(train_batches(dataset, SCHEDULE, first, rank, world_size, 0))
        for rank in range(world_size)
    ]
    for together, expected in zip(zip(*ranks, strict=True), alone[first:], strict=True):
        real = [batch for mine in together for batch in mine if not batch.void]
        assert all(map(same, real, expected))
        assert len(real) == len(expected)


def test_loader_processes_change_nothing(alone, tiny_shards) -> None:
    dataset = TrainDataset(tiny_shards["train"], SPEC, 3)
    by_others = list(train_batches(dataset, SCHEDULE, 0, 0, 1, 2))
    assert [len(step) for step in by_others] == [len(step) for step in alone]
    for step, expected in zip(by_others, alone, strict=True):
        assert all(map(same, step, expected))


def test_a_filler_has_the_images_of_a_real_micro_batch_and_void_labels(tiny_shards) -> None:
    dataset = TrainDataset(tiny_shards["train"], SPEC, 3)
    real = dataset[MicroBatchSpec(0, 0, 0, (4, 7))]
    filler = dataset[MicroBatchSpec(0, 0, 0, (4, 7), void=True)]
    assert torch.equal(real.image, filler.image)
    assert (real.label != VOID).any()
    assert (filler.label == VOID).all()


def test_a_sample_is_cropped_anew_in_every_epoch(tiny_shards) -> None:
    dataset = TrainDataset(tiny_shards["train"], SPEC, 3)
    one, two = (dataset[MicroBatchSpec(0, epoch, 0, (5,))] for epoch in (0, 1))
    assert not torch.equal(one.image, two.image)
    assert one.image.dtype == torch.uint8
    assert one.label.dtype == torch.int64
    assert one.image.shape == (1, 3, 32, 40)
    assert one.label.shape == (1, 32, 40)


def sha256(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Shards:
    """Images of two sizes in turns of different lengths."""
    sizes = [(6, 4), (6, 4), (6, 4), (5, 5), (6, 4), (5, 5), (5, 5)]
    label = [encode_png(np.full(size, i, np.uint8)) for i, size in enumerate(sizes)]
    rows = [
        Row(f"{i}", label[i], label[i], *size, *size, 0, [0] * 5, "", sha256(label[i]), "", ids)
        for i, size in enumerate(sizes)
        for ids in [pixels_sha256(np.full(size, i, np.uint8))]
    ]
    path = tmp_path_factory.mktemp("mixed") / "val.arrow"
    write_shard(path, rows, "val", tiny().data.class_table())
    return Shards([path])


@given(start=st.integers(0, 7), stop=st.integers(0, 7), batch=st.integers(1, 4))
def test_each_row_is_evaluated_once_and_whole(mixed, start, stop, batch) -> None:
    batches = list(eval_batches(mixed, range(start, stop), batch, 0))
    assert all(len(b.ids) == len(b.image) == len(b.label) <= batch for b in batches)
    labels = [label for b in batches for label in b.label]
    assert len(labels) == len(range(start, stop))
    for row, label in zip(range(start, stop), labels, strict=True):
        assert (np.asarray(label) == mixed.image_label(row)[1]).all()
