"""Nothing that a run, a kept result or a registered model refers to is ever removed; the rest is."""

import re

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.stage_table import STAGES
from pipeline.storage.gc import Garbage, find_garbage, reachable
from pipeline.storage.store import Store
from pipeline.training.pretrained import run_net

FOLDERS = [stage.folder for stage in STAGES.values()]


def gc(store: Store, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["gc", "--store", str(store), *arguments], input=answer)


def put(store: Store, kind: str, key: str, inputs: tuple[str, ...], size: int = 10) -> None:
    store.set_inputs(key, kind, inputs)
    with store.publish(kind, key, {}) as draft:
        (draft / "files").mkdir()
        (draft / "files" / "file").write_bytes(bytes(size))


def garbage(store: Store) -> list[Garbage]:
    return find_garbage(store, FOLDERS, "models")


def checkpoint(store: Store, run: str, key: str) -> str:
    name = f"runs/{run}/{key}/attempt-1/checkpoint_1"
    store.files.write(f"runs/{run}/{key}/attempt-1/attempt.json", b"{}")
    store.files.write(f"{name}/net", bytes(100))
    return name


def put_flow(store: Store, name: str, model: str | None = None) -> dict[str, str]:
    """The results of a flow named by one letter: `datasets/ad`, `weights/aw`, ..., and its record."""
    data, weights, net, scores = (f"{name}{letter}" for letter in "dwns")
    put(store, "datasets", data, ())
    put(store, "weights", weights, ())
    put(store, "nets", net, (data, weights))
    put(store, "scores", scores, (data, net))
    steps = {"ingest": data, "transplant": weights, "finetune-8s": net, "evaluate": scores}
    if model:
        put(store, "models", model, (scores, net))
    store.begin_run(name, steps)
    store.remember_net(name, "nets", net)
    return steps


def results(store: Store) -> set[str]:
    names = store.files.names()
    return {name.split("/")[1] for name in names if name.endswith("manifest.json")}


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path) -> Store:
    return Store(tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3"))


def test_what_a_run_names_and_what_its_net_was_made_of_stays(store) -> None:
    put_flow(store, "a")
    for name in ("datasets/ad.quarantine.csv", "mlruns/0/x", "mlflow.db", "searches/s/trial.json"):
        store.files.write(name, b"mine")
    done = gc(store)
    assert done.exit_code == 0
    assert "nothing to remove" in done.output
    assert results(store) == {"ad", "aw", "an", "as"}


def test_what_nothing_refers_to_is_shown_with_size_and_reason_and_removed_if_wanted(store) -> None:
    put_flow(store, "a")
    put(store, "nets", "old", ("ad",), size=3 * 2**20)
    shown = gc(store, answer="n\n")
    assert shown.exit_code == 1
    assert re.search(
        r"nets +nets/old +3\.0 MiB +no run and no kept result refers to it", shown.output
    )
    assert "3.0 MiB in 1 folder; remove? [y/N]" in shown.output
    assert "old" in results(store)
    done = gc(store, answer="y\n")
    assert done.exit_code == 0
    assert done.output.endswith("freed 3.0 MiB in 1 folder\n")
    assert results(store) == {"ad", "aw", "an", "as"}
    assert "nothing to remove" in gc(store).output


def test_a_registered_model_keeps_what_it_was_made_of_after_its_run_went_on(store) -> None:
    put_flow(store, "a", model="am")
    put_flow(store, "b")
    store.begin_run("a", {"ingest": "xd", "finetune-8s": "xn"})
    store.remember_net("a", "nets", "xn")
    store.begin_run("b", {"ingest": "yd"})
    store.remember_net("b", "nets", "yn")
    assert gc(store, "--yes").exit_code == 0
    assert results(store) == {"am", "as", "an", "ad", "aw"}


def test_the_net_of_a_run_stays_while_a_new_flow_of_its_name_is_unfinished(store) -> None:
    put_flow(store, "a")
    store.begin_run("a", {"ingest": "bd", "finetune-8s": "bn"})
    begun = checkpoint(store, "a", "bn")
    assert gc(store, "--yes").exit_code == 0
    assert results(store) == {"an", "ad", "aw"}
    assert run_net(store, "a").parent.name == "an"
    assert store.files.names(begun)


def test_checkpoints_go_once_the_net_is_published_or_no_run_names_them(store) -> None:
    steps = put_flow(store, "a")
    ended, forgotten = checkpoint(store, "a", steps["finetune-8s"]), checkpoint(store, "a", "old")
    why = {each.name: each.why for each in garbage(store)}
    assert why == {
        "runs/a/an": "the phase has ended, its net is published",
        "runs/a/old": "no run's record names it",
    }
    assert gc(store, "--yes").exit_code == 0
    assert not store.files.names(ended)
    assert not store.files.names(forgotten)
    assert store.record("a")


def test_an_unfinished_upload_goes_once_nobody_can_be_at_it(store, monkeypatch) -> None:
    steps = put_flow(store, "a")
    store.files.write(f"nets/{steps['finetune-8s']}/0123/half", b"x")
    store.files.write("datasets/cut/0123/half", b"x")
    for name in ("nets/an/0123", "datasets/cut/0123"):
        store.files.write(f"{name}.draft", b"")
    unfinished = ["datasets/cut/0123", "nets/an/0123"]
    if not store.is_local:  # another machine may be at it, whose locks are not seen here
        assert garbage(store) == []
        monkeypatch.setattr("pipeline.storage.gc.UNFINISHED_S", -1.0)
    assert sorted(each.name for each in garbage(store)) == unfinished
    assert gc(store, "--yes").exit_code == 0
    assert not [name for name in store.files.names() if "/0123/" in name]
    assert results(store) == {"ad", "aw", "an", "as"}


def test_a_process_that_is_killed_leaves_its_draft_marked(store) -> None:
    with store.publish("nets", "a", {}) as draft:
        (draft / "net").write_bytes(b"x")
        assert f"nets/a/{draft.name}.draft" in store.files.names()
    assert not [name for name in store.files.names() if name.endswith(".draft")]
    assert store.whole("nets", "a")


def test_what_no_flow_made_is_named_and_left(store) -> None:
    """In a folder that is shared with other tools, whose folders may have the same names."""
    put_flow(store, "a")
    put(store, "nets", "old", ())
    checkpoint(store, "a", "gone")
    foreign = [
        "datasets/imagenet/0123/n01440764.tar",  # another tool's data, by chance as deep as ours
        "nets/notes.txt",
        "nets/old/notes.txt",
        "nets/an/why.txt",
        "runs/detect/train/weights.pt",
        "runs/a/gone/notes.txt",
        "drill/bits.csv",
    ]
    for name in foreign:
        store.files.write(name, b"mine")
    done = gc(store, "--yes")
    assert done.exit_code == 0, done.output
    said = re.sub(r"\s+", " ", done.output)
    for name in (
        *("datasets/imagenet", "nets/notes.txt", "nets/old/notes.txt", "nets/an/why.txt"),
        *("runs/detect", "runs/a/gone/notes.txt", "drill"),
    ):
        assert re.search(rf"left alone.*{name}(,|$| )", said), name
    assert set(foreign) <= set(store.files.names())
    assert "old" not in results(store)
    assert not [name for name in store.files.names() if "checkpoint_1" in name]
    assert gc(store, "--yes").exit_code == 0
    assert set(foreign) <= set(store.files.names())


def test_what_a_drill_left_goes_but_not_under_its_feet(store) -> None:
    store.files.write("drill/0-worker-0/runs/x", b"x")
    store.drill_marker().set()
    with store.flow_lock("drill"):
        assert "flow-drill is held by" in gc(store, "--yes").output
    assert "a drill that is over" in gc(store, "--yes").output
    assert not store.files.names("drill")


def test_nothing_is_removed_while_a_flow_is_at_work(store) -> None:
    put_flow(store, "a")
    put(store, "nets", "old", ())
    with Store(str(store)).flow_lock("last"):
        done = gc(store, "--yes")
    assert done.exit_code == 1
    assert "is in use: flow-last is held by pid" in done.output
    assert "old" in results(store)
    assert gc(store, "--yes").exit_code == 0
    assert "old" not in results(store)


def test_a_folder_that_is_no_store_is_left_alone(tmp_path) -> None:
    mine = tmp_path / "runs" / "detect" / "train"
    mine.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "nowhere"):
        done = gc(Store(place), "--yes")
        assert done.exit_code == 1
        assert f"StoreError: there is no store in {place}" in done.output
    assert mine.is_dir()
    assert not (tmp_path / "nowhere").exists()


KEYS = st.sampled_from("abcdefgh")
GRAPHS = st.dictionaries(KEYS, st.lists(KEYS, max_size=3), max_size=8)


@given(GRAPHS, st.sets(KEYS, max_size=3))
def test_nothing_that_is_kept_was_made_of_what_is_not(made_of, roots) -> None:
    kept = reachable(roots, made_of)
    assert roots <= kept
    for key in kept & made_of.keys():
        assert set(made_of[key]) <= kept
    for gone in made_of.keys() - kept:
        rest = {key: inputs for key, inputs in made_of.items() if key != gone}
        assert reachable(roots, rest) == kept


def test_every_kind_of_result_is_looked_at(store) -> None:
    store.begin_run("a", {})
    for kind in {*FOLDERS} - {"models"}:
        put(store, kind, f"{kind}-1", ())
    assert {each.kind for each in garbage(store)} == {*FOLDERS} - {"models"}
