"""A checkpoint proves itself, and a run goes on from the furthest one that does."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn.nets import FCN, Blueprint
from pipeline.training.checkpoint import (
    BEST,
    MANIFEST,
    RAYS_LIST,
    BestNet,
    History,
    TrainState,
    damage,
    load_state,
    newest,
    save_state,
    tidy,
)

VALUES = st.floats(allow_nan=False)


@pytest.fixture(scope="module")
def net() -> FCN:
    return FCN(Blueprint("efficientnet_lite0", 3, 32))


@pytest.fixture
def run(tmp_path, net):
    """Three checkpoints, named as Ray names them: by time."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in (4, 8, 12):
        cursor = TrainState(step, BestNet(4, {"val/mean_iu": 0.5}, net.state_dict()))
        cursor.history.add(step, {"train/loss": 1 / step})
        folder = tmp_path / f"checkpoint_2026-01-01_00-00-{step:02d}"
        folder.mkdir()
        save_state(folder, net, optimizer, cursor)
    return tmp_path


def names(run) -> list[str]:
    return sorted(p.name[-2:] for p in run.glob("checkpoint_*"))


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_furthest_is_taken_whatever_its_name(run) -> None:
    (run / "checkpoint_2026-01-01_00-00-12").rename(run / "checkpoint_2025-01-01_00-00-00")
    folder, complaints = newest(run)
    assert folder.name == "checkpoint_2025-01-01_00-00-00"
    assert complaints == []


def test_a_checkpoint_brings_back_what_was_saved(run, net) -> None:
    other = FCN(net.blueprint)
    cursor = load_state(newest(run)[0], other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert (cursor.step, cursor.best.step, cursor.history.rows()) == (
        12,
        4,
        [(12, {"train/loss": 1 / 12})],
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: flip_a_bit(folder / "net.safetensors"), "net.safetensors is not as it was"),
        (lambda folder: flip_a_bit(folder / BEST), "best.safetensors is not as it was"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text('{"step": 12, "fi'), "it cannot be read"),
        (lambda folder: (folder / "cursor.json").write_text(""), "cursor.json is not as it was"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, harm, words) -> None:
    harm(run / "checkpoint_2026-01-01_00-00-12")
    folder, complaints = newest(run)
    assert folder.name.endswith("08")
    assert len(complaints) == 1
    assert words in complaints[0]
    assert "checkpoint_2026-01-01_00-00-12 is damaged and left out" in complaints[0]


def test_nothing_sound_is_no_checkpoint(tmp_path) -> None:
    (tmp_path / "checkpoint_1").mkdir()
    folder, complaints = newest(tmp_path)
    assert folder is None
    assert len(complaints) == 1


def test_tidying_keeps_two_puts_the_damaged_aside_and_lets_ray_start_afresh(run) -> None:
    flip_a_bit(run / "checkpoint_2026-01-01_00-00-12" / "optimizer.pt")
    half = run / "checkpoint_2026-01-01_00-00-13"
    shutil.copytree(run / "checkpoint_2026-01-01_00-00-08", half)
    (half / MANIFEST).unlink()
    (run / RAYS_LIST).write_text('{"cut sho')
    complaints = tidy(run)
    assert len(complaints) == 2
    assert names(run) == ["04", "08"]
    assert [p.name for p in run.glob("damaged_*")] == ["damaged_checkpoint_2026-01-01_00-00-12"]
    assert not (run / RAYS_LIST).exists()
    assert damage(newest(run)[0]) is None
    assert tidy(run) == []


def test_tidying_what_was_never_begun_does_nothing(tmp_path) -> None:
    assert tidy(tmp_path / "none") == []


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


def test_a_checkpoint_says_which_step_it_holds(run) -> None:
    folder, _ = newest(run)
    assert json.loads((folder / MANIFEST).read_text())["step"] == 12


def test_learning_rates_are_the_recipes_not_the_checkpoints(run, net) -> None:
    """A trial that goes on from another's net does so with its own values."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.25)
    load_state(newest(run)[0], net, optimizer)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
