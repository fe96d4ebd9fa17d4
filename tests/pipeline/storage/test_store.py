"""A result is whole or is not there; one process at a time computes it; a full disk says so."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.data.check import check_samples
from pipeline.data.shards import write_shard
from pipeline.data.sources import open_source
from pipeline.errors import StoreError, WeightsError
from pipeline.flow import Flow
from pipeline.stages import ingest
from pipeline.storage.store import Store, says_full
from pipeline.training.pretrained import run_net
from tests.conftest import tiny

RACER = """
import logging, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
from pipeline.storage.store import Store
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
store, key = Store(Path(sys.argv[1])), sys.argv[2]
with store.turn("nets", key, "finetune-8s") as plain:
    if plain is None:
        with store.publish("nets", key, {"pid": os.getpid()}):
            print("computing", flush=True)
            time.sleep(float(sys.argv[3]))
    print("reused" if plain else "computed", store.published("nets", key)["pid"], flush=True)
"""


def racer(store: Store, key: str, seconds: float) -> subprocess.Popen[str]:
    """A process that wants a key and takes some time to compute it."""
    code = [sys.executable, "-u", "-c", RACER, str(store.root), key, str(seconds)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of computing the key `a`."""
    process = racer(Store(tmp_path), "a", 300)
    assert next_line(process) == "computing"
    yield process
    process.kill()
    process.wait()


def test_of_two_processes_that_want_one_result_one_computes_and_the_other_waits(tmp_path) -> None:
    both = [racer(Store(tmp_path), "a", 2) for _ in range(2)]
    outputs = {process.pid: process.communicate(timeout=60)[0] for process in both}
    [(first, said)] = [(pid, text) for pid, text in outputs.items() if "computing\n" in text]
    [(second, waited)] = [(pid, text) for pid, text in outputs.items() if pid != first]
    assert said == f"computing\ncomputed {first}\n"
    where = f"finetune-8s is being computed by pid {first} on {os.uname().nodename} since "
    assert waited.startswith(where), waited
    assert waited.endswith(f"; waiting for its result\nreused {first}\n")
    assert second != first
    assert Store(tmp_path).published("nets", "a") == {"pid": first}


def test_another_result_is_not_waited_for(tmp_path, holder) -> None:
    other = racer(Store(tmp_path), "b", 0)
    assert other.communicate(timeout=60)[0] == f"computing\ncomputed {other.pid}\n"
    assert holder.poll() is None


def test_a_killed_process_holds_nothing_and_leaves_no_result(tmp_path, holder) -> None:
    waiter = racer(Store(tmp_path), "a", 0)
    assert f"by pid {holder.pid} on" in next_line(waiter)
    holder.kill()
    assert waiter.communicate(timeout=60)[0] == f"computing\ncomputed {waiter.pid}\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_waiting_can_be_interrupted(tmp_path, holder, how) -> None:
    waiter = racer(Store(tmp_path), "a", 0)
    assert "waiting for its result" in next_line(waiter)
    waiter.send_signal(how)
    waiter.communicate(timeout=10)
    assert waiter.returncode == -how
    assert holder.poll() is None


def test_a_result_is_waited_for_but_not_what_its_maker_does_next(tmp_path) -> None:
    store, maker = Store(tmp_path), Store(tmp_path)
    lock = maker.lock("a")
    assert lock.take()

    def publish() -> None:
        time.sleep(0.7)
        with maker.publish("weights", "a", {"made": 1}):
            pass

    thread = threading.Thread(target=publish)
    thread.start()
    with store.turn("weights", "a", "transplant") as plain:
        assert plain == {"made": 1}
        assert not store.lock("a").take()
    thread.join()
    lock.free()


def test_an_error_in_a_turn_gives_the_turn_to_the_next(tmp_path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyError), store.turn("nets", "a", "finetune-8s"):
        raise KeyError
    with store.turn("nets", "a", "finetune-8s") as plain:
        assert plain is None


def test_the_same_flow_waits_for_the_whole_and_other_flows_do_not(tmp_path) -> None:
    one, same, other = Store(tmp_path), Store(tmp_path), Store(tmp_path)
    entered = threading.Event()

    def enter() -> None:
        with same.flow("last"):
            entered.set()

    with one.flow("last"):
        with other.flow("first"):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(1.2)
    assert entered.wait(5)
    thread.join()


def test_a_folder_without_manifest_gives_way_to_the_result(tmp_path) -> None:
    store = Store(tmp_path)
    store.folder("nets", "a").mkdir(parents=True)
    (store.folder("nets", "a") / "half").write_text("of something")
    assert store.published("nets", "a") is None
    with store.publish("nets", "a", {"whole": 1}) as draft:
        (draft / "net").write_text("all of it")
    assert sorted(p.name for p in store.folder("nets", "a").iterdir()) == ["manifest.json", "net"]


def test_a_manifest_says_of_what_stage_and_of_what_inputs_it_is(tmp_path) -> None:
    store = Store(tmp_path)
    store.expect("b", "finetune", ["a", "w"])
    travelled = pickle.loads(pickle.dumps(store))  # as to the worker that transplants
    with travelled.publish("nets", "b", {"steps": 3}):
        pass
    expected = {"steps": 3, "stage": "finetune", "inputs": ["a", "w"]}
    assert store.published("nets", "b") == expected


def test_a_flow_tells_its_store_what_each_step_is_made_of(tmp_path) -> None:
    flow = Flow(tiny(f"store={tmp_path}"))
    keys = {name: step.key for name, step in flow.steps.items()}
    for name, inputs in {
        "ingest": [],
        "finetune-8s": ["ingest", "transplant"],
        "register": ["evaluate", "finetune-8s"],
    }.items():
        step = flow.steps[name]
        with flow.store.publish(step.kind, step.key, {}):
            pass
        plain = flow.store.published(step.kind, step.key)
        assert plain == {"stage": step.stage, "inputs": [keys[i] for i in inputs]}


def test_a_run_that_begins_again_keeps_its_net_until_it_has_another(tmp_path) -> None:
    store = Store(tmp_path)
    store.begin_run("demo", {"ingest": "a", "finetune-8s": "b"})
    with pytest.raises(WeightsError, match="run:demo: no finished run of that name"):
        run_net(store, "demo")
    store.remember_run("demo", store.folder("nets", "b"))
    store.begin_run("demo", {"ingest": "a", "finetune-8s": "c"})
    assert run_net(store, "demo") == store.folder("nets", "b")
    assert store.record("demo") == {
        "steps": {"ingest": "a", "finetune-8s": "c"},
        "net": "nets/b",
    }
    assert [p.name for p in (tmp_path / "runs" / "demo").iterdir()] == ["result.json"]


def test_a_record_that_was_cut_off_is_named_with_the_remedy(tmp_path) -> None:
    store = Store(tmp_path)
    store.begin_run("demo", {})
    path = tmp_path / "runs" / "demo" / "result.json"
    path.write_text('{"net": ')
    with pytest.raises(StoreError, match=rf"{path} is not what was written: .* remove it"):
        run_net(store, "demo")


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
    _, rows = check_samples(source, samples, table, ())
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
    assert list((small_disk / "datasets").iterdir()) == []
    ballast.unlink()
    publish()
    assert store.published("datasets", "a") == {}


def test_a_full_disk_is_told_from_other_errors_and_the_message_crosses_processes() -> None:
    assert not says_full(FileNotFoundError(2, "No such file or directory"))
    assert not says_full(ValueError("no space"))
    error = pickle.loads(pickle.dumps(StoreError("/s has no room")))
    assert (type(error), str(error)) == (StoreError, "/s has no room")


def test_locks_can_be_taken_on_a_full_disk(small_disk) -> None:
    """Else a full store could not even be cleaned."""
    store = Store(small_disk)
    store.begin_run("demo", {})
    with store.flow("last"):
        pass
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_text("x")
    with store.alone():
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
    assert list((small_disk / "datasets").iterdir()) == []
    ballast.unlink()
    assert ingest.run(tiny(), store, "a").counts == {"train": 22, "val": 7, "test": 5}


@pytest.mark.ray
def test_a_transplant_that_another_flow_is_at_is_waited_for_and_reused(
    local_ray, tmp_path, caplog
) -> None:
    caplog.set_level("INFO", "pipeline")
    flow, other = Flow(tiny(f"store={tmp_path}")), Store(tmp_path)
    step = flow.steps["transplant"]
    lock = other.lock(step.key)
    assert lock.take()
    numbers = dict.fromkeys(("copied", "reshaped", "initialised", "dropped"), 1)
    manifest = {"folder": "moved", "source": "package", "proof": "equal", **numbers}

    def publish() -> None:
        while "is being computed" not in caplog.text:
            time.sleep(0.1)
        with other.publish("weights", step.key, manifest | {"max_difference": 0, "tolerance": 1}):
            (next((tmp_path / "weights").glob(".draft-*")) / "receipt.json").write_text("{}")

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    report = flow.run("transplant")
    thread.join()
    lock.free()
    assert [(name, how) for name, how, _ in report.steps] == [("transplant", "unchanged")]
    assert report.results["transplant"].folder == other.folder("weights", step.key)
    assert f"transplant is being computed by pid {os.getpid()} on" in caplog.text
