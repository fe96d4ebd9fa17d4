"""A training goes on from its furthest sound checkpoint, and only its newest attempt may write more."""

import json
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch

from fcn.nets import FCN, Blueprint
from pipeline.errors import StoreError, SupersededError
from pipeline.storage.files import ATTEMPT_MARKER
from pipeline.storage.object_store import ObjectStore
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints, LocalCheckpointManager
from pipeline.training.state import MANIFEST, BestNet, TrainState, damage, save_state, step_of

FIRST, SECOND = "attempt-000001-aaaaaaaa", "attempt-000002-bbbbbbbb"


@pytest.fixture(scope="module")
def net() -> FCN:
    return FCN(Blueprint("efficientnet_lite0", 3, 32))


@pytest.fixture(scope="module")
def states(net, tmp_path_factory) -> dict[int, Path]:
    """A checkpoint's files, by its step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    folders = {}
    for step in (4, 8, 12):
        folders[step] = tmp_path_factory.mktemp("state")
        best = BestNet(4, {"val/mean_iu": 0.5}, net.state_dict())
        save_state(folders[step], net, optimizer, TrainState(step, best))
    return folders


@pytest.fixture(params=["folder", "s3"])
def files(request, tmp_path) -> ObjectStore:
    """The facts hold in a folder and in an object store alike."""
    if request.param == "s3":
        return ObjectStore(request.getfixturevalue("s3"))
    return ObjectStore(tmp_path / "store")


def put(files: ObjectStore, state: Path, name: str) -> None:
    """As Ray carries a checkpoint: file by file, the manifest anywhere among them."""
    for path in state.iterdir():
        files.put(path, f"runs/demo/k/{name}/{path.name}")


@pytest.fixture
def begun(files, states) -> Checkpoints:
    """Three checkpoints of two attempts, named as Ray names them: by time."""
    for attempt in (FIRST, SECOND):
        files.write(
            f"runs/demo/k/{attempt}/{ATTEMPT_MARKER}", b'{"host": "h", "pid": 1, "began": "now"}'
        )
    put(files, states[8], f"{FIRST}/checkpoint_2026-08")
    put(files, states[12], f"{FIRST}/checkpoint_2026-12")
    put(files, states[4], f"{SECOND}/checkpoint_2026-13")
    return Checkpoints(files, "runs/demo/k")


def again(checkpoints: Checkpoints) -> Checkpoints:
    """The same in another process."""
    return pickle.loads(pickle.dumps(checkpoints))


def names(checkpoints: Checkpoints) -> set[str]:
    found = checkpoints.files.names(checkpoints.prefix)
    return {name.rpartition("/")[0] for name in found if "checkpoint_" in name}


def spoil(checkpoints: Checkpoints, name: str) -> None:
    checkpoints.files.write(f"{checkpoints.prefix}/{name}", b"noise")


def test_the_furthest_of_all_attempts_is_taken_whatever_its_name(begun) -> None:
    found, complaints = begun.newest()
    assert (found.name, step_of(found), complaints) == ("checkpoint_2026-12", 12, [])
    assert damage(found) is None


def test_nothing_is_no_checkpoint(files) -> None:
    checkpoints = Checkpoints(files, "runs/demo/none")
    assert checkpoints.tidy() == []
    assert checkpoints.newest() == (None, [])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(begun) -> None:
    spoil(begun, f"{FIRST}/checkpoint_2026-12/optimizer.pt")
    found, complaints = begun.newest()
    assert step_of(found) == 8
    assert len(complaints) == 1
    assert f"{FIRST}/checkpoint_2026-12 is damaged and left out: optimizer.pt" in complaints[0]


@pytest.mark.parametrize("manifest", [b'{"step": 12, "fi', b"[]", b'{"files": {}}'])
def test_a_manifest_that_is_none_is_damage(begun, manifest) -> None:
    begun.files.write(f"runs/demo/k/{FIRST}/checkpoint_2026-12/{MANIFEST}", manifest)
    found, complaints = begun.newest()
    assert step_of(found) == 8
    assert len(complaints) == 1


def test_tidying_keeps_two_puts_the_damaged_aside_and_removes_the_unfinished(begun, states) -> None:
    spoil(begun, f"{FIRST}/checkpoint_2026-12/net.safetensors")
    put(begun.files, states[8], f"{FIRST}/checkpoint_2026-07")
    put(begun.files, states[12], f"{SECOND}/checkpoint_2027")
    begun.files.remove(f"runs/demo/k/{SECOND}/checkpoint_2027/{MANIFEST}")
    complaints = begun.tidy()
    assert [MANIFEST in complaints[0], "net.safetensors" in complaints[1]] == [True, True]
    assert names(begun) == {
        f"{FIRST}/checkpoint_2026-08",
        f"{FIRST}/checkpoint_2026-07",
        f"{FIRST}/damaged_checkpoint_2026-12",
    }
    assert again(begun).tidy() == []
    assert step_of(begun.newest()[0]) == 8


def test_tidying_removes_attempts_that_hold_nothing_but_never_the_newest_marker(
    files, states
) -> None:
    attempts = []
    for _ in range(3):
        attempts.append(Checkpoints(files, "runs/demo/k"))
        attempts[-1].claim()
    put(files, states[4], f"{attempts[1].attempt}/checkpoint_1")
    attempts[2].tidy()
    assert set(files.folders("runs/demo/k")) == {attempts[1].attempt, attempts[2].attempt}
    again(attempts[2]).tidy()
    Checkpoints(files, "runs/demo/k").tidy()
    assert set(files.folders("runs/demo/k")) == {attempts[1].attempt, attempts[2].attempt}


def test_a_process_verifies_a_checkpoint_once(begun, monkeypatch) -> None:
    verified = []

    def count(folder):
        verified.append(folder.name)
        return damage(folder)

    monkeypatch.setattr(checkpoint, "damage", count)
    begun.tidy()
    assert set(verified) == {"checkpoint_2026-12", "checkpoint_2026-08"}
    verified.clear()
    begun.newest()
    assert verified == []
    again(begun).newest()
    assert "checkpoint_2026-12" in verified


def test_each_machine_downloads_what_it_goes_on_from_and_keeps_no_other(
    s3, states, tmp_path, monkeypatch
) -> None:
    checkpoints = Checkpoints(ObjectStore(s3), "runs/demo/k")
    for step, state in states.items():
        put(checkpoints.files, state, f"{FIRST}/checkpoint_{step:09d}")
    checkpoints.tidy()
    here, _ = checkpoints.newest()
    assert here.is_relative_to(tmp_path / "cache")
    assert [path.name for path in here.parent.iterdir()] == ["checkpoint_000000012"]
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "elsewhere"))
    there = again(checkpoints).localize(f"{FIRST}/{here.name}")
    assert there.is_relative_to(tmp_path / "elsewhere")
    assert step_of(there) == 12


def test_what_another_machine_has_but_does_not_come_here_whole_is_an_error(s3, states) -> None:
    checkpoints = Checkpoints(ObjectStore(s3), "runs/demo/k")
    put(checkpoints.files, states[4], f"{FIRST}/checkpoint_1")
    spoil(checkpoints, f"{FIRST}/checkpoint_1/net.safetensors")
    with pytest.raises(StoreError, match=r"net\.safetensors is not as it was written; see that"):
        checkpoints.localize(f"{FIRST}/checkpoint_1")


class Run:
    """A training of some steps in one attempt, as its manager sees it."""

    def __init__(self, files: ObjectStore, net: FCN) -> None:
        self.manager = LocalCheckpointManager(Checkpoints(files, "runs/demo/k"))
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def restore(self) -> int:
        return self.manager.restore(self.net, self.optimizer).step

    def save(self, step: int) -> None:
        self.manager.save(self.net, self.optimizer, TrainState(step))

    @property
    def attempt(self) -> str:
        return self.manager.checkpoints.attempt


def test_of_two_attempts_at_once_the_older_stops_at_its_next_save(files, net) -> None:
    older, newer = Run(files, net), Run(files, net)
    assert older.restore() == 0
    older.save(1)
    older.save(2)
    assert newer.restore() == 2
    with pytest.raises(SupersededError) as stopped:
        older.save(3)
    for words in (older.attempt, newer.attempt, socket.gethostname(), "Nothing is lost"):
        assert words in str(stopped.value)
    newer.save(3)
    checkpoints = newer.manager.checkpoints
    assert names(checkpoints) == {
        f"{older.attempt}/checkpoint_000000002",
        f"{newer.attempt}/checkpoint_000000003",
    }
    with pytest.raises(SupersededError):
        older.manager.checkpoints.tidy()
    assert Run(files, net).restore() == 3


def test_resume_goes_on_from_the_furthest_of_both_attempts(files, net) -> None:
    """The older one may have been on its way with a checkpoint when the newer one began."""
    older, newer = Run(files, net), Run(files, net)
    older.restore()
    older.save(1)
    newer.restore()
    older.manager.checkpoints.check = lambda: None  # it had looked before the newer one began
    older.save(7)
    newer.save(2)
    assert Run(files, net).restore() == 7


def test_attempts_that_begin_in_the_same_moment_have_one_owner(files) -> None:
    """Both have the same number, so their tokens decide."""
    low, high = Checkpoints(files, "k"), Checkpoints(files, "k")
    low.attempt, high.attempt = "attempt-000001-0000000a", "attempt-000001-0000000b"
    for each in (low, high):
        files.write(
            f"k/{each.attempt}/{ATTEMPT_MARKER}", json.dumps({"host": "there", "pid": 7}).encode()
        )
    high.check()
    with pytest.raises(SupersededError, match="process 7 on there"):
        low.check()


def test_a_marker_that_is_still_being_written_counts(tmp_path) -> None:
    files = ObjectStore(tmp_path)
    older = Checkpoints(files, "k")
    older.claim()
    (tmp_path / "k" / "attempt-000002-00000000").mkdir()
    with pytest.raises(SupersededError):
        older.check()


def test_a_half_written_checkpoint_of_the_same_step_is_written_anew(tmp_path, net) -> None:
    run = Run(ObjectStore(tmp_path), net)
    run.restore()
    half = tmp_path / "runs" / "demo" / "k" / run.attempt / "checkpoint_000000005"
    half.mkdir()
    (half / "rest").touch()
    run.save(5)
    assert not (half / "rest").exists()
    assert damage(half) is None
    shutil.rmtree(tmp_path)
