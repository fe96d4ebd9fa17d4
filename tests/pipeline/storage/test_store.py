"""A result is whole or is not there, in a folder as in a bucket, on whatever machine it is used."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

from pipeline.errors import StoreError, WeightsError
from pipeline.flow import Flow
from pipeline.storage.store import Store
from pipeline.training.pretrained import run_net
from tests.conftest import tiny


def publish(store: Store, key: str = "a", content: bytes = b"weights") -> None:
    with store.publish("nets", key, {"steps": 3}) as draft:
        (draft / "net.safetensors").write_bytes(content)
        (draft / "panels").mkdir()
        (draft / "panels" / "x.png").write_bytes(b"picture")


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path) -> Store:
    return Store(tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3"))


@pytest.fixture
def elsewhere(store, monkeypatch, tmp_path) -> Store:
    """The same store on another machine."""
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "elsewhere"))
    return pickle.loads(pickle.dumps(store))


def test_what_one_machine_publishes_another_has_whole(store, elsewhere) -> None:
    assert elsewhere.published("nets", "a") is None
    publish(store)
    manifest = elsewhere.published("nets", "a")
    assert manifest is not None
    assert manifest["steps"] == 3
    assert set(manifest["objects"]) == {"net.safetensors", "panels/x.png"}
    folder = elsewhere.stored("nets", "a").localize()
    assert (folder / "net.safetensors").read_bytes() == b"weights"
    assert (folder / "panels" / "x.png").read_bytes() == b"picture"


def test_a_file_of_a_result_is_found_where_it_is_used(store, elsewhere) -> None:
    publish(store)
    file = pickle.loads(pickle.dumps(elsewhere.stored("nets", "a", "net.safetensors")))
    assert file.size_bytes == len(b"weights")
    assert file.localize().read_bytes() == b"weights"
    with pytest.raises(StoreError, match="nets/a has no file history"):
        elsewhere.stored("nets", "a", "history.arrow").localize()
    with pytest.raises(StoreError, match="has no nets/b; type the same command again"):
        elsewhere.stored("nets", "b").localize()


def test_an_error_publishes_nothing_and_leaves_nothing(store) -> None:
    def fail() -> None:
        with store.publish("nets", "a", {}) as draft:
            (draft / "net").write_text("half")
            with store.stage_file(draft, "staged").open() as path:
                path.write_text("whole")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.published("nets", "a") is None
    assert store.files.names("nets") == []


def test_the_first_manifest_wins_and_all_have_its_files(store, elsewhere) -> None:
    with store.publish("nets", "a", {"steps": 1}) as draft:
        (draft / "net.safetensors").write_text("after 1")
        publish(elsewhere, content=b"after 3")
    for each in (store, elsewhere):
        assert each.published("nets", "a")["steps"] == 3
        folder = each.stored("nets", "a").localize()
        assert (folder / "net.safetensors").read_bytes() == b"after 3"


def test_what_lies_there_without_a_manifest_is_not_in_the_way_of_the_result(store) -> None:
    store.files.write("nets/a/0123/half", b"of something")
    assert store.published("nets", "a") is None
    publish(store)
    folder = store.stored("nets", "a").localize()
    assert sorted(p.name for p in folder.iterdir()) == ["net.safetensors", "panels"]


def test_a_manifest_says_of_what_stage_and_of_what_inputs_it_is(store) -> None:
    store.set_inputs("b", "finetune", ["a", "w"])
    travelled = pickle.loads(pickle.dumps(store))  # as to the worker that transplants
    with travelled.publish("nets", "b", {"steps": 3}):
        pass
    manifest = store.published("nets", "b")
    assert manifest.items() >= {"steps": 3, "stage": "finetune", "inputs": ["a", "w"]}.items()


def test_a_flow_tells_its_store_what_each_step_is_made_of(tmp_path) -> None:
    flow = Flow(tiny(f"store={tmp_path}"))
    keys = {name: step.key for name, step in flow.steps.items()}
    for name, inputs in {
        "ingest": [],
        "finetune-8s": ["ingest", "transplant"],
        "register": ["evaluate", "finetune-8s"],
    }.items():
        step = flow.steps[name]
        with flow.store.publish(step.stage.folder, step.key, {}):
            pass
        manifest = flow.published(step)
        assert manifest["stage"] == step.stage.name
        assert manifest["inputs"] == [keys[i] for i in inputs]


def test_planning_a_flow_writes_nothing_and_opens_no_mlflow(tmp_path) -> None:
    flow = Flow(tiny(f"store={tmp_path / 'store'}"))
    assert list(flow.steps) == ["ingest", "transplant", "finetune-8s", "evaluate", "register"]
    assert not (tmp_path / "store").exists()


def test_a_file_is_staged_by_a_task_on_any_machine(store, elsewhere) -> None:
    manifest: dict = {}
    with store.publish("datasets", "d", manifest) as draft:
        staged = pickle.loads(pickle.dumps(store.stage_file(draft, "train-00000.arrow")))
        with staged.open() as path:
            path.write_bytes(b"rows")
        with pickle.loads(pickle.dumps(staged)).read() as again:  # before it is published
            assert again.read_bytes() == b"rows"
        manifest["objects"] = staged.digests
        (draft / "quarantine.csv").write_text("none")
    assert elsewhere.stored("datasets", "d", "quarantine.csv").localize().is_file()
    assert elsewhere.stored("datasets", "d", "train-00000.arrow").localize().read_bytes() == b"rows"
    assert set(elsewhere.published("datasets", "d")["objects"]) == {
        "quarantine.csv",
        "train-00000.arrow",
    }


def test_a_run_that_begins_again_keeps_its_net_until_it_has_another(store, elsewhere) -> None:
    publish(store, "b")
    store.begin_run("demo", {"ingest": "a", "finetune-8s": "b"})
    with pytest.raises(WeightsError, match="run:demo: no finished run of that name"):
        run_net(store, "demo")
    elsewhere.remember_net("demo", "nets", "b")
    store.begin_run("demo", {"ingest": "a", "finetune-8s": "c"})
    assert (run_net(store, "demo") / "net.safetensors").read_bytes() == b"weights"
    assert elsewhere.record("demo") == {
        "steps": {"ingest": "a", "finetune-8s": "c"},
        "net": "nets/b",
    }
    assert store.files.names("runs/demo") == ["result.json"]


def test_a_record_that_was_cut_off_is_named_with_the_remedy(store) -> None:
    store.files.write("runs/demo/result.json", b'{"net": ')
    with pytest.raises(
        StoreError, match=r"runs/demo/result\.json is not what was written: .* remove it"
    ):
        run_net(store, "demo")


def test_what_mlflow_has_is_known_to_all_machines(store, elsewhere) -> None:
    marker = elsewhere.marker("demo", "a")
    assert not marker.exists()
    store.marker("demo", "a").set()
    assert marker.exists()
    marker.clear()
    assert not store.marker("demo", "a").exists()


def test_small_documents_are_whole_on_every_machine(store, elsewhere) -> None:
    store.write_json("searches/x/trial-3.json", {"point": {"lr": 0.1}})
    assert elsewhere.read_json("searches/x/trial-3.json") == {"point": {"lr": 0.1}}
    assert elsewhere.read_json("searches/x/trial-4.json") is None
    assert store.files.names("searches/x") == ["trial-3.json"]


UPLOADER = """
import sys
from pipeline.storage.store import Store
store = Store(sys.argv[1])
put = store.files.put
def stop(path, name):
    done = put(path, name)
    print("uploaded", flush=True)
    sys.stdin.read()
    return done
store.files.put = stop
with store.publish("nets", "a", {}) as draft:
    for i in range(2):
        (draft / f"{i}").write_text("x")
"""


def test_a_killed_upload_leaves_no_result_and_the_next_one_makes_it(store) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"uploaded\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.published("nets", "a") is None
    publish(store)
    assert set(store.published("nets", "a")["objects"]) == {"net.safetensors", "panels/x.png"}


def test_a_removal_that_is_cut_off_leaves_no_result(store, monkeypatch) -> None:
    publish(store)

    def cut_off(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.files, "remove_folder", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.remove("nets/a")
    assert store.published("nets", "a") is None


def test_a_result_that_another_machine_published_meanwhile_is_the_one_that_is_read(
    store, elsewhere
) -> None:
    flow = Flow(tiny("finetune.init=scratch", f"store={store}"))
    step = flow.steps["finetune-8s"]
    metrics: dict = {"folder": "mine", "metrics": {}}
    with (
        flow.store.publish(step.stage.folder, step.key, metrics | {"steps": 1}),
        elsewhere.publish(step.stage.folder, step.key, metrics | {"steps": 2}) as draft,
    ):
        (draft / "net.safetensors").write_text("after 2")
    trained = flow._read(step)
    assert trained.steps == 2
    assert (trained.folder / "net.safetensors").read_text() == "after 2"


def test_a_store_that_cannot_be_reached_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="see that the bucket is there"):
        Store("s3://nowhere/x").published("nets", "a")
    with pytest.raises(StoreError, match="s9://x: cannot be opened"):
        Store("s9://x")
