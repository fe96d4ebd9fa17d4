"""Runs, metrics and artifacts in MLflow, and what it means when MLflow does not answer.

There is one writer, the driver, which names each run by its id. A flow is one parent run, each phase
of the fine-tuning a child. Both are found again by their fingerprint, so that the same command typed
twice continues the same runs.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipeline.config.schema import TrackingSpec
from pipeline.errors import OutageError, TrackingError
from pipeline.logs import configure_environment
from pipeline.results import Dataset
from pipeline.tracking import owner
from pipeline.tracking.dataset import ShardDataset

log = logging.getLogger(__name__)

FINGERPRINT, ENDED_BY = "fcn.fingerprint", "fcn.ended_by"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
PARAMS_PER_CALL, METRICS_PER_CALL, MOST_RUNS = 100, 1000, 50_000
"""What MLflow takes or gives at most in one call."""
AWAY = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.RetryError,
    requests.exceptions.ChunkedEncodingError,
)
AWAY_CODES = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
LASTING = ("readonly database", "unable to open", "no such table", "denied")
"""Parts of a database's messages about faults that do not pass by themselves."""

Row = tuple[int, dict[str, float]]


def address(spec: TrackingSpec, store: Path) -> str:
    """Where MLflow is: the recipe's server or the store folder's own database."""
    return spec.uri or f"sqlite:///{store / 'mlflow.db'}"


class TrackingClient:
    """An experiment in an MLflow store: the store folder's own database, or a server."""

    def __init__(self, spec: TrackingSpec, store: Path) -> None:
        configure_environment()
        self.uri = address(spec, store)
        with speaking(self.uri):
            self._connect(spec, store)
        self._last: dict[str, dict[str, int]] = {}
        """The last step of each metric of each run that was opened."""
        self._sent_ms: dict[tuple[str, str, int], int] = {}
        """By run, metric and step: when it was first sent, as long as MLflow has not confirmed it."""

    def _connect(self, spec: TrackingSpec, store: Path) -> None:
        store.mkdir(parents=True, exist_ok=True)
        if not spec.uri and not (store / "mlflow.db").exists():
            log.info("creating MLflow's database in %s", store)
        mlflow.set_tracking_uri(self.uri)
        self.client = MlflowClient(self.uri)
        # Two processes that create one database at the same time would ruin it.
        with FileLock(store / "mlflow.lock"):
            found = self.client.get_experiment_by_name(spec.experiment)
            if found is None:
                location = None if spec.uri else (store / "mlruns").as_uri()
                self.experiment = self.client.create_experiment(
                    spec.experiment, artifact_location=location
                )
            else:
                self.experiment = found.experiment_id

    def open_run(self, name: str, fingerprint: str, parent: str | None = None) -> str:
        """The run of this fingerprint, set RUNNING again if there is one, else a new one.

        With a parent it is a child of that one, without one it is no child.
        """
        if run_id := self.find_run(fingerprint, parent):
            self._reopen(run_id)
            return run_id
        tags = {FINGERPRINT: fingerprint, **owner.tags()} | ({PARENT: parent} if parent else {})
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        return str(run.info.run_id)

    def open_phase(self, name: str, fingerprint: str, parent: str) -> str:
        """The child run of a phase that was trained before, whoever its parent is."""
        if (run_id := self.find_phase(fingerprint)) is None:
            return self.open_run(name, fingerprint, parent)
        self._reopen(run_id)
        return run_id

    def _reopen(self, run_id: str) -> None:
        """Set a run RUNNING, owned by this process."""
        tags = [RunTag(key, value) for key, value in owner.tags().items()]
        self.client.log_batch(run_id, tags=tags)  # first: a RUNNING run has a live owner
        self.client.update_run(run_id, status="RUNNING")
        data = self.client.get_run(run_id).data
        if ENDED_BY in data.tags:
            self.client.delete_tag(run_id, ENDED_BY)
        self._last[run_id] = {key: self.history(run_id, key)[-1][0] for key in data.metrics}

    def find_run(self, fingerprint: str, parent: str | None = None) -> str | None:
        """Id of the newest run with this fingerprint and parent."""
        return self._newest(fingerprint, lambda tags: tags.get(PARENT) == parent)

    def find_phase(self, fingerprint: str) -> str | None:
        """Id of the newest child run with this fingerprint, whoever its parent is."""
        return self._newest(fingerprint, lambda tags: PARENT in tags)

    def _newest(self, fingerprint: str, fits: Callable[[Mapping[str, str]], bool]) -> str | None:
        runs = self._search(f"tags.`{FINGERPRINT}` = '{fingerprint}'")
        return next((str(run.info.run_id) for run in runs if fits(run.data.tags)), None)

    def _search(self, where: str) -> list[Run]:
        """Runs of the experiment, newest first."""
        return list(self.client.search_runs([self.experiment], where, max_results=MOST_RUNS))

    def end_dead_runs(self) -> None:
        """Set those runs KILLED that are RUNNING though the process that owned them is dead."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if why := owner.why_dead(run.data.tags):
                self.client.set_tag(run.info.run_id, ENDED_BY, why)
                self.client.set_terminated(run.info.run_id, "KILLED")
                log.info("run %s was left RUNNING (%s); set to KILLED", run.info.run_name, why)

    def close_run(self, run_id: str, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED. One that could not be opened has no id."""
        if run_id:
            self.client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """The recipe's dotted keys; values that are there already stay."""
        known = self.client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])

    def log_rows(self, run_id: str, rows: Iterable[Row]) -> None:
        """Metrics by step; those that were logged before are left out.

        After an error the same rows may be given again. What MLflow took though its answer was lost is
        sent with the time of before: then it is the same metric to MLflow, which stores it once.
        """
        last = self._last.setdefault(run_id, {})
        now_ms, reached, metrics = int(time.time() * 1000), dict(last), []
        for step, values in rows:
            for key, value in values.items():
                if step > reached.get(key, -1):
                    sent_ms = self._sent_ms.setdefault((run_id, key, step), now_ms)
                    metrics.append(Metric(key, float(value), sent_ms, step))
                    reached[key] = step
        for start in range(0, len(metrics), METRICS_PER_CALL):
            batch = metrics[start : start + METRICS_PER_CALL]
            self.client.log_batch(run_id, metrics=batch)
            for metric in batch:
                last[metric.key] = metric.step
                del self._sent_ms[run_id, metric.key, metric.step]

    def log_folder(self, run_id: str, folder: Path, at: str) -> None:
        """All files of a folder as artifacts below `at`."""
        self.client.log_artifacts(run_id, str(folder), at)

    def log_file(self, run_id: str, path: Path, at: str) -> None:
        """A file as an artifact below `at`."""
        self.client.log_artifact(run_id, str(path), at)

    def log_text(self, run_id: str, text: str, at: str) -> None:
        """A text as the artifact `at`."""
        self.client.log_text(run_id, text, at)

    def log_dataset(
        self, run_id: str, name: str, uri: str, data: Dataset, classes: Sequence[str]
    ) -> None:
        """The data set as an input of the run: its digest, its columns and what is in it."""
        source: Any = CodeDatasetSource({"uri": uri})  # for object stores that MLflow does not know
        with suppress(MlflowException):
            source = resolve_dataset_source(uri)
        dataset = ShardDataset(source, name, data, classes)
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset._to_mlflow_entity(), tags)])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def set_note(self, run_id: str, text: str) -> None:
        """The description on the run's page."""
        self.client.set_tag(run_id, NOTE, text)

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """A metric by step."""
        return sorted((m.step, m.value) for m in self.client.get_metric_history(run_id, key))

    def histories(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """All metrics of a run by step."""
        return {key: self.history(run_id, key) for key in self.client.get_run(run_id).data.metrics}


def installed() -> str:
    """All installed packages, as lines NAME==VERSION."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def greet(spec: TrackingSpec) -> None:
    """Ask a server one thing and change nothing.

    Raises:
        TrackingError: it does not answer, or does not take this user.
    """
    with speaking(str(spec.uri)):
        configure_environment()
        MlflowClient(spec.uri).get_experiment_by_name(spec.experiment)


@contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Turn errors of MLflow into ours.

    Raises:
        OutageError: MLflow does not answer; it may answer later.
        TrackingError: it refused, or cannot be used like this.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' errors are OSErrors
        chain = list(_chain(error))
        says = (_says_outage(e) for e in reversed(chain))
        if next((answer for answer in says if answer is not None), False):
            raise OutageError(f"MLflow at {uri} is away ({_first_line(chain[-1])})") from error
        raise TrackingError(
            f"MLflow at {uri} refused: {_first_line(error)}{_remedy(error)}"
        ) from error


def _remedy(error: BaseException) -> str:
    code = getattr(error, "error_code", None)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if code == "UNAUTHENTICATED":
        return (
            f" Set MLFLOW_TRACKING_USERNAME ({user or 'not set now'}) and MLFLOW_TRACKING_PASSWORD to "
            "those of a user of this server"
        )
    if code == "PERMISSION_DENIED":
        return (
            f": {user or 'this user'} may not. Set tracking.experiment or register.model to one of "
            "their own, or let the server's admin grant EDIT on it"
        )
    return ""


def _says_outage(error: BaseException) -> bool | None:
    """Whether one error of a chain means that MLflow is away; None if it does not say."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, OperationalError):
        return not any(words in str(error) for words in LASTING)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return bool(error.response.status_code in (408, 429) or error.response.status_code >= 500)
    # Without an answer from a server, INTERNAL_ERROR is only the default of MLflow's exceptions.
    codes = (*AWAY_CODES, "INTERNAL_ERROR") if isinstance(error, RestException) else AWAY_CODES
    return isinstance(error, AWAY) or getattr(error, "error_code", None) in codes or None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from; the last is the cause in the fewest words."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
