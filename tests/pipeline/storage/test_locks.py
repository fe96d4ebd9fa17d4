"""One process at a time computes a result; one that waits can be stopped; a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.storage.store import Store

RACER = """
import logging, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
from pipeline.storage.store import Store
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
store, key = Store(Path(sys.argv[1])), sys.argv[2]
with store.compute_once("nets", key, "finetune-8s") as plain:
    if plain is None:
        with store.publish("nets", key, {"pid": os.getpid()}):
            print("computing", flush=True)
            time.sleep(float(sys.argv[3]))
    print("reused" if plain else "computed", store.published("nets", key)["pid"], flush=True)
"""


def racer(store: Store, key: str, seconds: float) -> subprocess.Popen[str]:
    """A process that wants a key and takes some time to compute it."""
    code = [sys.executable, "-u", "-c", RACER, str(store), key, str(seconds)]
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
    assert Store(tmp_path).published("nets", "a")["pid"] == first


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
    with store.compute_once("weights", "a", "transplant") as plain:
        assert plain is not None
        assert plain["made"] == 1
        assert not store.lock("a").take()
    thread.join()
    lock.free()


def test_an_error_in_a_turn_gives_the_turn_to_the_next(tmp_path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyError), store.compute_once("nets", "a", "finetune-8s"):
        raise KeyError
    with store.compute_once("nets", "a", "finetune-8s") as plain:
        assert plain is None


def test_the_same_flow_waits_for_the_whole_and_other_flows_do_not(tmp_path) -> None:
    one, same, other = Store(tmp_path), Store(tmp_path), Store(tmp_path)
    entered = threading.Event()

    def enter() -> None:
        with same.flow_lock("last"):
            entered.set()

    with one.flow_lock("last"):
        with other.flow_lock("first"):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(1.2)
    assert entered.wait(5)
    thread.join()
