"""A checkpoint's folder brings back what was saved, and says when it is not as it was written."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn.nets import FCN, Blueprint
from pipeline.training.state import (
    BEST,
    MANIFEST,
    STATE,
    BestNet,
    History,
    TrainState,
    damage,
    load_state,
    save_state,
    step_of,
)

VALUES = st.floats(allow_nan=False)


@pytest.fixture(scope="module")
def net() -> FCN:
    return FCN(Blueprint("efficientnet_lite0", 3, 32))


@pytest.fixture
def folder(tmp_path, net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    state = TrainState(12, BestNet(4, {"val/mean_iu": 0.5}, net.state_dict()))
    state.history.add(12, {"train/loss": 1 / 12})
    save_state(tmp_path, net, optimizer, state)
    return tmp_path


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_brings_back_what_was_saved(folder, net) -> None:
    other = FCN(net.blueprint)
    state = load_state(folder, other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert (state.step, state.best.step) == (12, 4)
    assert state.history.rows() == [(12, {"train/loss": 1 / 12})]
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_checkpoint_says_which_step_it_holds(folder) -> None:
    assert step_of(folder) == json.loads((folder / MANIFEST).read_text())["step"] == 12


def test_learning_rates_are_the_recipes_not_the_checkpoints(folder, net) -> None:
    """A trial that goes on from another's net does so with its own values."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.25)
    load_state(folder, net, optimizer)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: flip_a_bit(folder / "net.safetensors"), "net.safetensors is not as it was"),
        (lambda folder: flip_a_bit(folder / BEST), "best.safetensors is not as it was"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text('{"step": 12, "fi'), "it cannot be read"),
        (lambda folder: (folder / STATE).write_text(""), "train_state.json is not as it was"),
    ],
)
def test_whatever_is_damaged_is_found(folder, harm, words) -> None:
    assert damage(folder) is None
    harm(folder)
    assert words in damage(folder)


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b/c", "é"]), VALUES, min_size=1), max_size=8)
)
def test_a_history_comes_back_as_it_was(tmp_path_factory, metrics) -> None:
    history = History()
    for step, row in enumerate(metrics, 1):
        history.add(step, row)
    path = tmp_path_factory.mktemp("history") / "history.arrow"
    history.write(path)
    expected = list(enumerate(metrics, 1))
    assert history.rows() == expected
    assert History.read(path).rows() == expected
