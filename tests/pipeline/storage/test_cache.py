"""A result in an object store is whole or is not there; a machine that lacks it fetches it whole."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pipeline.cli
import tuning.cli
from fcn.nets import FCN, Blueprint
from pipeline.data.shards import Shards, fetch_ahead
from pipeline.errors import StoreError
from pipeline.flow import Flow
from pipeline.stages.finetune import TrainedNet
from pipeline.storage.cache import MirroredStore, open_store
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import MANIFEST, Store, here
from pipeline.training.checkpoint import BestNet, TrainState, save_state, step_of
from pipeline.training.trail import RemoteTrail, trail_of
from tests.conftest import tiny


def publish(store: Store, key: str = "a", content: bytes = b"weights") -> None:
    with store.publish("nets", key, {"steps": 3}) as draft:
        (draft / "net.safetensors").write_bytes(content)
        (draft / "panels").mkdir()
        (draft / "panels" / "x.png").write_bytes(b"picture")


@pytest.fixture
def store(s3) -> MirroredStore:
    found = open_store(s3)
    assert isinstance(found, MirroredStore)
    return found


@pytest.fixture
def elsewhere(store, monkeypatch, tmp_path):
    """The same store on another machine."""
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "elsewhere"))
    return pickle.loads(pickle.dumps(store))


def objects(store: MirroredStore, key: str = "a") -> dict[str, dict]:
    manifest = store.published("nets", key)
    assert manifest is not None
    return manifest["objects"]


def test_what_one_machine_publishes_another_has_whole(store, elsewhere) -> None:
    assert elsewhere.published("nets", "a") is None
    publish(store)
    manifest = elsewhere.published("nets", "a")
    assert manifest is not None
    assert manifest["steps"] == 3
    folder = elsewhere.local("nets", "a")
    assert folder.is_relative_to(elsewhere.root)
    assert elsewhere.root != store.root
    assert (folder / "net.safetensors").read_bytes() == b"weights"
    assert (folder / "panels" / "x.png").read_bytes() == b"picture"


def test_a_held_file_is_found_where_it_is_used_and_it_alone(store, elsewhere) -> None:
    publish(store)
    held = store.anywhere(store.folder("nets", "a") / "panels" / "x.png")
    path = here(pickle.loads(pickle.dumps(held)))
    assert path == elsewhere.folder("nets", "a") / "panels" / "x.png"
    assert path.read_bytes() == b"picture"
    assert not (path.parent.parent / "net.safetensors").exists()


def test_where_a_result_came_from_travels_with_the_store(store) -> None:
    store.expect("a", "finetune", ["d"])
    publish(pickle.loads(pickle.dumps(store)))
    assert store.published("nets", "a")["inputs"] == ["d"]


def test_an_error_publishes_nothing(store) -> None:
    with pytest.raises(ZeroDivisionError), store.publish("nets", "a", {}) as draft:
        (draft / "x").write_text(str(1 // 0))
    assert store.published("nets", "a") is None
    with pytest.raises(StoreError, match=r"has no nets/a; type the same command again"):
        store.local("nets", "a")


def test_the_first_manifest_wins_and_all_have_its_files(store, elsewhere) -> None:
    with store.publish("nets", "a", {"by": "one"}) as draft:
        publish(elsewhere, content=b"the other's")
        (draft / "net.safetensors").write_bytes(b"mine")
    for each in (store, elsewhere):
        assert "by" not in each.published("nets", "a")
        assert (each.local("nets", "a") / "net.safetensors").read_bytes() == b"the other's"


def test_files_of_another_upload_make_room(store, elsewhere) -> None:
    publish(store)
    elsewhere.local("nets", "a")
    store.remote.remove(f"nets/a/{MANIFEST}")
    publish(store, content=b"WEIGHTS")  # of the same size
    again = pickle.loads(pickle.dumps(elsewhere))
    assert (again.local("nets", "a") / "net.safetensors").read_bytes() == b"WEIGHTS"


def test_a_damaged_object_is_named_and_nothing_takes_its_place(store, elsewhere) -> None:
    publish(store)
    name = objects(store)["net.safetensors"]["name"]
    store.remote.write(name, b"weirdos")
    with pytest.raises(StoreError, match=f"{name} is not what was uploaded"):
        elsewhere.local("nets", "a")
    assert not [p for p in elsewhere.root.rglob("*") if "safetensors" in p.name or "part" in p.name]
    store.remote.write(name, b"weights")
    assert (elsewhere.local("nets", "a") / "net.safetensors").read_bytes() == b"weights"


def test_an_object_that_is_gone_is_named(store, elsewhere) -> None:
    publish(store)
    store.remote.remove(objects(store)["net.safetensors"]["name"])
    with pytest.raises(StoreError, match=r"net\.safetensors is not what was uploaded"):
        elsewhere.local("nets", "a")


def test_a_copy_that_was_cut_off_is_fetched_again(store, elsewhere) -> None:
    publish(store)
    path = elsewhere.local("nets", "a") / "net.safetensors"
    path.write_bytes(b"weig")
    assert (elsewhere.local("nets", "a") / "net.safetensors").read_bytes() == b"weights"


def test_one_process_of_a_machine_downloads_and_the_others_wait(
    store, elsewhere, monkeypatch
) -> None:
    publish(store)
    downloads = []
    get = ObjectStore.get

    def slow(self, name, target):
        downloads.append(name)
        time.sleep(0.5)
        return get(self, name, target)

    monkeypatch.setattr(ObjectStore, "get", slow)
    others = [pickle.loads(pickle.dumps(elsewhere)) for _ in range(3)]
    threads = [threading.Thread(target=s.local, args=("nets", "a")) for s in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == len(objects(store))


def test_shards_are_fetched_ahead_of_use_and_a_damaged_one_is_its_readers_error(
    store, elsewhere, caplog
) -> None:
    publish(store)
    folder = store.folder("nets", "a")
    places = [store.anywhere(folder / name) for name in ("net.safetensors", "panels/x.png")]
    store.remote.write(objects(store)["panels/x.png"]["name"], b"picturf")
    shards = pickle.loads(pickle.dumps(Shards(places, [1, 1])))
    fetch_ahead(shards.places()).join()
    there = {p.name for p in elsewhere.folder("nets", "a").rglob("*") if p.is_file()}
    assert there == {MANIFEST, "net.safetensors"}
    assert "x.png is not what was uploaded" in caplog.text
    with pytest.raises(StoreError, match=r"x\.png is not what was uploaded"):
        shards.id(1)


UPLOADER = """
import sys
from pipeline.storage.cache import open_store
store = open_store(sys.argv[1])
put = store.remote.put
def stop(path, name):
    done = put(path, name)
    print("uploaded", flush=True)
    sys.stdin.read()
    return done
store.remote.put = stop
with store.publish("nets", "a", {}) as draft:
    for i in range(2):
        (draft / f"{i}").write_text("x")
"""


def test_a_killed_upload_leaves_no_result_and_the_next_one_makes_it(store, s3) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, s3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"uploaded\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(store.remote.names("nets/a")) == 1
    assert store.published("nets", "a") is None
    publish(store)
    assert set(objects(store)) == {"net.safetensors", "panels/x.png"}


def test_parts_are_written_and_changed_by_any_machine(store, elsewhere) -> None:
    manifest: dict = {}
    with store.publish("datasets", "d", manifest) as draft:
        part = store.part(draft, "train-00000.arrow")
        with pickle.loads(pickle.dumps(part)).open() as path:
            path.write_bytes(b"rows")
        again = store.part(draft, "train-00000.arrow", written=True)
        with again.open() as path:
            assert path.read_bytes() == b"rows"
            path.write_bytes(b"row")
        manifest["objects"] = again.objects
        (draft / "quarantine.csv").write_text("none")
    assert (elsewhere.local("datasets", "d", "quarantine.csv") / "quarantine.csv").is_file()
    assert not (elsewhere.folder("datasets", "d") / "train-00000.arrow").exists()
    assert elsewhere.fetch("datasets/d/train-00000.arrow").read_bytes() == b"row"


def test_a_runs_record_is_seen_by_all_machines(store, elsewhere) -> None:
    store.begin_run("demo", {"ingest": "d"})
    elsewhere.remember_run("demo", elsewhere.folder("nets", "a"))
    assert store.record("demo") == {"steps": {"ingest": "d"}, "net": "nets/a"}


def test_what_mlflow_was_told_is_known_to_all_machines(store, elsewhere) -> None:
    publish(store)
    mark = elsewhere.mark("demo", "a")
    assert not mark.exists()
    store.mark("demo", "a").set()
    assert mark.exists()
    mark.clear()
    assert not store.mark("demo", "a").exists()
    assert elsewhere.holds("nets", "a", "net.safetensors")
    assert not elsewhere.holds("nets", "a", "history.arrow")
    assert not (elsewhere.folder("nets", "a") / "net.safetensors").exists()


def test_a_flow_takes_what_another_machine_published_while_it_computed(s3, elsewhere) -> None:
    flow = Flow(tiny("finetune.init=scratch", f"store={s3}"))
    step = flow.steps["finetune-8s"]

    def publish_as(steps: int, store: Store, while_at_it: Callable[[], None] = int) -> None:
        manifest = {"folder": "mine", "steps": steps, "metrics": {}}
        with store.publish(step.kind, step.key, manifest) as draft:
            (draft / "net.safetensors").write_text(f"after {steps}")
            while_at_it()

    trained = flow._once(
        step, TrainedNet, lambda: publish_as(1, flow.store, lambda: publish_as(2, elsewhere))
    )
    assert trained.steps == 2
    assert (trained.folder / "net.safetensors").read_text() == "after 2"
    assert flow.store.uri(trained.folder) == f"{s3}/{step.kind}/{step.key}"


def test_a_store_that_cannot_be_reached_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="see that the bucket is there"):
        open_store("s3://nowhere/x").published("nets", "a")
    with pytest.raises(StoreError, match="s9://x: cannot be opened"):
        open_store("s9://x")


@pytest.mark.parametrize(
    ("verbs", "arguments"),
    [
        (pipeline.cli, ["drill", "demo", "--set=store=%s"]),
        (pipeline.cli, ["gc", "--store", "%s"]),
        (tuning.cli, ["search", "demo", "--set=store=%s"]),
        (tuning.cli, ["status", "demo", "--store", "%s"]),
    ],
)
def test_what_works_on_folders_alone_says_so(s3, tmp_path, verbs, arguments) -> None:
    done = CliRunner().invoke(verbs.main, [each.replace("%s", s3) for each in arguments])
    assert done.exit_code == 1, done.output
    assert "StoreError" in done.output
    assert "not work on object stores yet" in done.output
    assert ObjectStore(s3).names("") == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[int, Path]:
    """Some, by their steps."""
    net = FCN(Blueprint("efficientnet_lite0", 3, 32))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    folders = {}
    for step in (4, 8, 12):
        folders[step] = tmp_path_factory.mktemp("checkpoint")
        cursor = TrainState(step, BestNet(step, {"val/mean_iu": 0.5}, net.state_dict()))
        save_state(folders[step], net, optimizer, cursor)
    return folders


@pytest.fixture
def trail(store, checkpoints) -> RemoteTrail:
    """All of them uploaded, as Ray does it."""
    for step, folder in checkpoints.items():
        for path in folder.iterdir():
            store.remote.put(path, f"runs/demo/k/checkpoint_2026-{step:02d}/{path.name}")
    found = trail_of(store, "demo", "k")
    assert isinstance(found, RemoteTrail)
    return found


def names(store: MirroredStore) -> set[str]:
    return {name.split("/")[0] for name in store.remote.names("runs/demo/k")}


def test_the_furthest_sound_checkpoint_is_fetched_by_each_machine(store, trail, elsewhere) -> None:
    assert store.begun("demo", "k")
    found, complaints = trail.newest()
    assert (found.name, step_of(found), complaints) == ("checkpoint_2026-12", 12, [])
    other = trail_of(elsewhere, "demo", "k").local(found.name)
    assert other != found
    assert step_of(other) == 12


def test_a_damaged_checkpoint_counts_for_nothing_and_is_put_aside(store, trail) -> None:
    store.remote.write("runs/demo/k/checkpoint_2026-12/net.safetensors", b"noise")
    store.remote.write("runs/demo/k/checkpoint_2027/net.safetensors", b"half")
    store.remote.write("runs/demo/k/checkpoint_manager_snapshot.json", b"{")
    found, complaints = trail.newest()
    assert step_of(found) == 8
    assert "net.safetensors is not as it was written" in complaints[1]
    assert trail.tidy() == complaints
    assert names(store) == {
        "damaged_checkpoint_2026-12",
        "checkpoint_2026-08",
        "checkpoint_2026-04",
    }
    assert trail.tidy() == []


def test_two_checkpoints_stay(store, trail) -> None:
    trail.tidy()
    assert names(store) == {"checkpoint_2026-12", "checkpoint_2026-08"}


def test_no_checkpoint_is_none(store) -> None:
    trail = trail_of(store, "demo", "k")
    assert not store.begun("demo", "k")
    assert trail.tidy() == []
    assert trail.newest() == (None, [])
