"""The embedded scenes: the same everywhere, and only form tells the classes apart."""

import numpy as np

from fcn.labels import VOID
from pipeline.data.sources import open_source
from tests.conftest import tiny


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


def test_a_scene_is_a_function_of_seed_and_name_alone() -> None:
    few, many = open_source(tiny()), open_source(tiny("data.shapes.num_train=99"))
    sample = few.samples()[0][21]
    assert few.read(sample) == many.read(sample)
    other = open_source(tiny("seed=1"))
    assert few.read(sample) != other.read(sample)
    assert few.state() != other.state()
