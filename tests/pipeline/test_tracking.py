"""A real MLflow store: every metric once, runs found again, the alias behind its gate."""

import math

import pytest

from pipeline.gate import decide
from pipeline.specs import TrackingSpec
from pipeline.tracking import Tracker, environment


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    return Tracker(TrackingSpec(), tmp_path_factory.mktemp("mlflow"))


def test_a_run_is_found_again_by_its_fingerprint_and_repeated_steps_are_logged_once(
    tracker,
) -> None:
    run = tracker.open_run("phase", "abc")
    tracker.log_rows(run, [(1, {"train/loss": 3.0}), (2, {"train/loss": 2.0})])
    tracker.log_rows(run, [(2, {"val/mean_iu": 0.5})])  # the same step, told a moment later
    tracker.log_rows(run, [(3, {"train/loss": 1.5})])
    tracker.close_run(run, ok=False)
    assert tracker.open_run("phase", "abc") == run
    tracker.log_rows(run, [(s, {"train/loss": float(s)}) for s in (2, 3, 4)])
    tracker.log_rows(run, [(4, {"val/mean_iu": 0.6})])
    assert tracker.history(run, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 4.0)]
    assert tracker.history(run, "val/mean_iu") == [(2, 0.5), (4, 0.6)]
    tracker.close_run(run, ok=True)
    assert tracker.client.get_run(run).info.status == "FINISHED"
    assert tracker.open_run("phase", "other") != run


def test_children_hang_under_their_parent(tracker) -> None:
    parent = tracker.open_run("flow", "p")
    child = tracker.open_run("finetune-8s", "c", parent)
    assert tracker.client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert tracker.open_run("finetune-8s", "c", parent) == child


def test_parameters_are_the_recipes_dotted_keys(tracker) -> None:
    run = tracker.open_run("flow", "params")
    tracker.log_params(run, {f"a.b{i}": str(i) for i in range(130)})
    tracker.log_params(run, {"a.b0": "changed", "new": "1"})
    params = tracker.client.get_run(run).data.params
    assert len(params) == 131
    assert params["a.b0"] == "0"


def test_the_data_set_is_an_input_with_its_own_digest(tracker, tmp_path) -> None:
    run = tracker.open_run("flow", "data")
    tracker.log_dataset(run, "shapes-demo", tmp_path, "0123456789abcdef" * 2)
    dataset = tracker.client.get_run(run).inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("shapes-demo", "0123456789abcdef" * 2)


def test_a_model_without_champion_has_none(tracker) -> None:
    assert tracker.champion("nobody") is None


def test_the_environment_lists_what_is_installed() -> None:
    assert any(line.startswith("torch==") for line in environment().splitlines())


@pytest.mark.parametrize(
    ("champion", "challenger", "promote"),
    [
        (None, 0.1, True),
        (0.5, 0.5, True),
        (0.5, 0.6, True),
        (0.5, 0.4999, False),
        (None, math.nan, False),
        (0.5, math.nan, False),
    ],
)
def test_the_alias_moves_to_what_is_at_least_as_good(champion, challenger, promote) -> None:
    decision = decide(champion, challenger)
    assert decision.promote is promote
    assert decision.reason
