"""Nothing that a run, a kept result or a registered model refers to is ever removed; the rest is."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.storage.gc import find_garbage, reachable
from pipeline.storage.store import KINDS, Store
from pipeline.training.pretrained import run_net


def gc(store: Store, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["gc", "--store", str(store.root), *arguments], input=answer)


def put(store: Store, kind: str, key: str, inputs: tuple[str, ...] | None, size: int = 10) -> None:
    """A result; None for one of before the manifests had inputs."""
    if inputs is not None:
        store.expect(key, kind, inputs)
    with store.publish(kind, key, {}) as draft:
        (draft / "files").mkdir()
        (draft / "files" / "file").write_bytes(bytes(size))


def checkpoint(store: Store, run: str, key: str) -> Path:
    folder = store.root / "runs" / run / key / "checkpoint_1"
    folder.mkdir(parents=True)
    (folder / "net").write_bytes(bytes(100))
    return folder


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
    store.remember_run(name, store.folder("nets", net))
    return steps


def results(store: Store) -> set[str]:
    return {path.parent.name for path in store.root.glob("*/*/manifest.json")}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_what_a_run_names_and_what_its_net_was_made_of_stays(store) -> None:
    put_flow(store, "a")
    (store.root / "datasets" / "ad.quarantine.csv").write_text("split,id\n")
    (store.root / "mlruns" / "0").mkdir(parents=True)
    (store.root / "mlflow.db").write_text("")
    done = gc(store)
    assert done.exit_code == 0
    assert "nothing to remove" in done.output
    assert results(store) == {"ad", "aw", "an", "as"}


def test_what_nothing_refers_to_is_shown_with_size_and_reason_and_removed_if_wanted(store) -> None:
    put_flow(store, "a")
    put(store, "nets", "old", ("ad",), size=3 * 2**20)
    shown = gc(store, answer="n\n")
    assert shown.exit_code == 1
    assert re.search(r"nets +old +3\.0 MiB +no run and no kept result refers to it", shown.output)
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
    store.remember_run("a", store.folder("nets", "xn"))
    store.begin_run("b", {"ingest": "yd"})
    store.remember_run("b", store.folder("nets", "yn"))
    assert gc(store, "--yes").exit_code == 0
    assert results(store) == {"am", "as", "an", "ad", "aw"}


def test_the_net_of_a_run_stays_while_a_new_flow_of_its_name_is_unfinished(store) -> None:
    put_flow(store, "a")
    store.begin_run("a", {"ingest": "bd", "finetune-8s": "bn"})
    begun = checkpoint(store, "a", "bn")
    assert gc(store, "--yes").exit_code == 0
    assert results(store) == {"an", "ad", "aw"}
    assert run_net(store, "a") == store.folder("nets", "an")
    assert begun.is_dir()


def test_checkpoints_go_once_the_net_is_published_or_no_run_names_them(store) -> None:
    steps = put_flow(store, "a")
    ended, forgotten = checkpoint(store, "a", steps["finetune-8s"]), checkpoint(store, "a", "old")
    why = {each.name: each.why for each in find_garbage(store)}
    assert why == {
        "a/an": "the phase has ended, its net is published",
        "a/old": "no run's record names it",
    }
    assert gc(store, "--yes").exit_code == 0
    assert not ended.exists()
    assert not forgotten.exists()
    assert (store.root / "runs" / "a" / "result.json").is_file()


def test_drafts_go_even_if_they_have_a_manifest_and_refer_to_nothing(store) -> None:
    put_flow(store, "a")
    put(store, "datasets", "lone", ())
    put(store, "models", "cut", ("lone",))
    (store.root / "models" / "cut").rename(store.root / "models" / ".draft-cut-1")
    (store.root / "runs" / "a" / ".draft-bn-1").mkdir()
    assert gc(store, "--yes").exit_code == 0
    assert results(store) == {"ad", "aw", "an", "as"}
    assert list(store.root.rglob(".draft-*")) == []


def test_results_of_unknown_origin_stay_together_while_one_of_them_is_referred_to(store) -> None:
    put(store, "datasets", "d", None)
    put(store, "nets", "n", None)
    put(store, "nets", "new", ())
    store.remember_run("a", store.folder("nets", "n"))
    assert {each.name for each in find_garbage(store)} == {"new"}
    store.remember_run("a", store.folder("nets", "new"))
    assert {each.name for each in find_garbage(store)} == {"d", "n"}


def test_what_a_drill_left_goes_but_not_under_its_feet(store) -> None:
    (store.root / "drill" / "0-worker-0").mkdir(parents=True)
    with store.flow("drill"):
        assert "flow-drill is held by" in gc(store, "--yes").output
    assert "a drill that is over" in gc(store, "--yes").output
    assert not (store.root / "drill").exists()


def test_nothing_is_removed_while_a_flow_is_at_work(store) -> None:
    put_flow(store, "a")
    put(store, "nets", "old", ())
    with Store(store.root).flow("last"):
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


def test_a_removal_that_is_cut_off_leaves_no_result(store, monkeypatch) -> None:
    put(store, "nets", "a", ())

    def cut_off(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.remove(store.folder("nets", "a"))
    assert store.published("nets", "a") is None
    assert [path.name[:8] for path in (store.root / "nets").iterdir()] == [".draft-a"]


KEYS = st.sampled_from("abcdefgh")
GRAPHS = st.dictionaries(KEYS, st.none() | st.lists(KEYS, max_size=3), max_size=8)


@given(GRAPHS, st.sets(KEYS, max_size=3))
def test_nothing_that_is_kept_was_made_of_what_is_not(made_of, roots) -> None:
    kept = reachable(roots, made_of)
    assert roots <= kept
    unknown = {key for key, inputs in made_of.items() if inputs is None}
    for key in kept & made_of.keys():
        inputs = made_of[key]
        assert (unknown if inputs is None else set(inputs)) <= kept
    for gone in made_of.keys() - kept:
        rest = {key: inputs for key, inputs in made_of.items() if key != gone}
        assert reachable(roots, rest) == kept


def test_every_kind_of_result_is_looked_at(store) -> None:
    store.begin_run("a", {})
    for kind in set(KINDS.values()) - {"models"}:
        put(store, kind, f"{kind}-1", ())
    assert {each.kind for each in find_garbage(store)} == set(KINDS.values()) - {"models"}
