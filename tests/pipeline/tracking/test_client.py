"""A real MLflow store: every metric once, runs found again, outages known from refusals."""

import json
import math
import re
import signal
import subprocess
import sys
import time

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.types import DataType, Schema
from sqlalchemy.exc import OperationalError

from pipeline.config.schema import TrackingSpec
from pipeline.data.shards import SCHEMA
from pipeline.errors import OutageError, TrackingError
from pipeline.results import Doubt
from pipeline.tracking.client import TrackingClient, installed, speaking
from tests.conftest import a_dataset


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> TrackingClient:
    return TrackingClient(TrackingSpec(), tmp_path_factory.mktemp("mlflow"))


def test_a_run_is_found_again_by_its_fingerprint_and_repeated_steps_are_logged_once(
    tracker,
) -> None:
    run = tracker.open_run("phase", "abc")
    tracker.log_rows(run, [(1, {"train/loss": 3.0}), (2, {"train/loss": 2.0})])
    tracker.log_rows(run, [(2, {"val/mean_iu": 0.5})])  # the same step, logged a moment later
    tracker.log_rows(run, [(3, {"train/loss": 1.5})])
    tracker.close_run(run, "FAILED")
    assert tracker.open_run("phase", "abc") == run
    tracker.log_rows(run, [(s, {"train/loss": float(s)}) for s in (2, 3, 4)])
    tracker.log_rows(run, [(4, {"val/mean_iu": 0.6})])
    assert tracker.history(run, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 4.0)]
    assert tracker.history(run, "val/mean_iu") == [(2, 0.5), (4, 0.6)]
    tracker.close_run(run, "FINISHED")
    assert tracker.client.get_run(run).info.status == "FINISHED"
    assert tracker.open_run("phase", "other") != run


def test_rows_that_a_new_worker_sends_again_are_logged_once(tracker) -> None:
    run = tracker.open_run("phase", "again")
    rows = [(step, {"train/loss": 1.0 / step}) for step in range(1, 6)]
    tracker.log_rows(run, rows[:3])
    tracker.log_rows(run, rows + rows)
    assert tracker.history(run, "train/loss") == [(s, 1.0 / s) for s in range(1, 6)]


def test_a_batch_whose_answer_was_lost_is_sent_again_and_stored_once(tracker, monkeypatch) -> None:
    run = tracker.open_run("phase", "resent")
    rows = [(step, {"train/loss": 0.5, "val/mean_iu": math.nan}) for step in range(900)]
    send, sent = tracker.client.log_batch, []

    def lose_the_second_answer(*args, **kwargs) -> None:
        send(*args, **kwargs)
        sent.append(len(kwargs["metrics"]))
        if len(sent) == 2:
            raise requests.ConnectionError("connection reset")

    monkeypatch.setattr(tracker.client, "log_batch", lose_the_second_answer)
    with pytest.raises(OutageError, match="connection reset"), speaking(tracker.uri):
        tracker.log_rows(run, rows)
    time.sleep(0.01)  # sent again with the time of before, or it would be another metric
    tracker.log_rows(run, rows)
    assert sent == [1000, 800, 800]
    assert [step for step, _ in tracker.history(run, "train/loss")] == list(range(900))
    assert [step for step, _ in tracker.history(run, "val/mean_iu")] == list(range(900))


FLOW_THAT_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
tracker = TrackingClient(TrackingSpec(), Path(sys.argv[1]))
parent = tracker.open_run("flow", "killed")
tracker.open_run("finetune-8s", "killed-phase", parent)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_a_killed_process_are_ended_and_gone_on_with(tracker) -> None:
    store = tracker.uri.removeprefix("sqlite:///").removesuffix("/mlflow.db")
    done = subprocess.run([sys.executable, "-c", FLOW_THAT_IS_KILLED, store])
    assert done.returncode == -signal.SIGKILL
    parent, mine = tracker.find_run("killed"), tracker.open_run("flow", "lives")
    child = tracker.find_run("killed-phase", parent)
    assert status(tracker, parent) == status(tracker, child) == "RUNNING"
    tracker.end_dead_runs()
    assert status(tracker, parent) == status(tracker, child) == "KILLED"
    assert status(tracker, mine) == "RUNNING"
    why = tracker.client.get_run(child).data.tags["fcn.ended_by"]
    assert re.fullmatch(r"process \d+ on .+ is gone", why)
    assert tracker.open_run("flow", "killed") == parent
    assert status(tracker, parent) == "RUNNING"
    assert "fcn.ended_by" not in tracker.client.get_run(parent).data.tags
    tracker.end_dead_runs()
    assert status(tracker, parent) == "RUNNING"


def status(tracker, run: str) -> str:
    return tracker.client.get_run(run).info.status


def test_a_flow_and_its_phase_of_the_same_fingerprint_are_two_runs(tracker) -> None:
    flow = tracker.open_run("flow", "same")
    phase = tracker.open_run("finetune-8s", "same", flow)
    assert tracker.open_run("flow", "same") == flow
    assert tracker.find_phase("same") == phase
    assert tracker.open_phase("finetune-8s", "same", "another flow") == phase


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.ConnectionError("refused"), OutageError),
        (requests.Timeout("slow"), OutageError),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "500"}), OutageError),
        (MlflowException("locked", TEMPORARILY_UNAVAILABLE), OutageError),
        (OperationalError("INSERT", {}, Exception("database is locked")), OutageError),
        (OperationalError("INSERT", {}, Exception("readonly database")), TrackingError),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "403"}), TrackingError),
        (RestException({"error_code": "UNAUTHENTICATED", "message": "401"}), TrackingError),
        (MlflowException("no such scheme"), TrackingError),
        (PermissionError(13, "Permission denied"), TrackingError),
    ],
)
def test_only_what_may_mend_itself_is_an_outage(error, kind) -> None:
    with pytest.raises(TrackingError) as caught, speaking("http://here"):
        raise error
    assert type(caught.value) is kind
    assert "MLflow at http://here" in str(caught.value)


def test_a_server_that_is_away_and_a_typing_error_are_different_errors(tmp_path) -> None:
    with pytest.raises(OutageError, match="Connection refused"):
        TrackingClient(TrackingSpec(uri="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(TrackingError, match="unsupported URI") as caught:
        TrackingClient(TrackingSpec(uri="htpp://127.0.0.1:9"), tmp_path)
    assert type(caught.value) is TrackingError


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


def test_the_data_set_is_an_input_with_its_digest_columns_and_content(tracker, tmp_path) -> None:
    run = tracker.open_run("flow", "data")
    data = a_dataset(doubts=[Doubt(level="warning", text="sky is nowhere in val")])
    tracker.log_dataset(run, "shapes-demo", tmp_path.as_uri(), data, ("sky", "road"))
    dataset = tracker.client.get_run(run).inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("shapes-demo", "0123456789abcdef" * 2)
    assert json.loads(dataset.profile) == {
        "num_images": {"train": 3, "val": 2},
        "num_quarantined": 1,
        "num_classes": 2,
        "class_frac": {"train": {"sky": 0.75, "road": 0.25}, "val": {"sky": 0.5, "road": 0.5}},
        "void_frac": {"train": 0.2, "val": 0.0},
        "doubts": ["sky is nowhere in val"],
    }
    columns = Schema.from_json(json.dumps(json.loads(dataset.schema)["mlflow_colspec"]))
    assert columns.input_names() == SCHEMA.names
    assert columns.input_dict()["image"].type == DataType.binary


def test_the_environment_lists_what_is_installed() -> None:
    assert any(line.startswith("torch==") for line in installed().splitlines())
