"""MLflow: runs, metrics, artifacts, the registry. The only module that speaks to it.

One writer, the driver, through a client and explicit run ids. A flow is one parent run, each phase of
the fine-tuning a child; both are found again by their fingerprint, so that the same command typed
twice goes on in the same runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# The recorder tries again for as long as it takes, so a single call need not: one more attempt is for
# a connection that the server had closed.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# What goes wrong is raised, and told once.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")

import mlflow
import mlflow.pyfunc
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

import fcn
from pipeline.config.schema import TrackingSpec
from pipeline.errors import OutageError, TrackingError
from pipeline.tracking import owner, packages

log = logging.getLogger(__name__)

PYFUNC_MODEL = Path(__file__).with_name("pyfunc_model.py")  # MLflow runs it
CHAMPION, CHALLENGER = "champion", "challenger"
FINGERPRINT, ENDED_BY = "fcn.fingerprint", "fcn.ended_by"
PARENT = "mlflow.parentRunId"
SERVED_WITH = ("mlflow", "numpy", "pillow", "safetensors", "torch", "torchvision")
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000

Row = tuple[int, dict[str, float]]


def address(spec: TrackingSpec, store: Path) -> str:
    """Where MLflow is: the recipe's server or the store folder's own database."""
    return spec.uri or f"sqlite:///{store / 'mlflow.db'}"


AWAY = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.RetryError,
    requests.exceptions.ChunkedEncodingError,
)
AWAY_CODES = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
NOT_AWAY = ("readonly database", "unable to open", "no such table", "denied")
"""What a database says that will not mend itself."""


class TrackingClient:
    """An experiment in an MLflow store: the store folder's own database, or a server."""

    def __init__(self, spec: TrackingSpec, store: Path) -> None:
        warnings.filterwarnings("ignore", module="mlflow")
        self.uri = address(spec, store)
        with speaking(self.uri):
            self._connect(spec, store)
        self._last: dict[str, dict[str, int]] = {}
        """Last step of each metric of each run that was opened."""

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
        run_id = self.find_run(fingerprint, parent)
        if run_id:
            self._reopen(run_id)
        else:
            tags = {FINGERPRINT: fingerprint, **owner.tags()} | ({PARENT: parent} if parent else {})
            run = self.client.create_run(self.experiment, run_name=name, tags=tags)
            run_id = str(run.info.run_id)
        return run_id

    def open_phase(self, name: str, fingerprint: str, parent: str) -> str:
        """The child run of a phase that was trained before, whoever its parent is."""
        run_id = self.find_phase(fingerprint)
        if run_id is None:
            return self.open_run(name, fingerprint, parent)
        self._reopen(run_id)
        return run_id

    def _reopen(self, run_id: str) -> None:
        """RUNNING, and ours."""
        tags = [RunTag(key, value) for key, value in owner.tags().items()]
        self.client.log_batch(run_id, tags=tags)  # first, as a RUNNING run must have a live owner
        self.client.update_run(run_id, status="RUNNING")
        data = self.client.get_run(run_id).data
        if ENDED_BY in data.tags:
            self.client.delete_tag(run_id, ENDED_BY)
        self._last[run_id] = {key: self.history(run_id, key)[-1][0] for key in data.metrics}

    def find_run(self, fingerprint: str, parent: str | None = None) -> str | None:
        """Id of the newest run with this fingerprint and parent."""
        runs = self._search(f"tags.`{FINGERPRINT}` = '{fingerprint}'")
        found = (run for run in runs if run.data.tags.get(PARENT) == parent)
        return next((str(run.info.run_id) for run in found), None)

    def find_phase(self, fingerprint: str) -> str | None:
        """Id of the newest child run with this fingerprint."""
        runs = self._search(f"tags.`{FINGERPRINT}` = '{fingerprint}'")
        found = (run for run in runs if PARENT in run.data.tags)
        return next((str(run.info.run_id) for run in found), None)

    def _search(self, where: str) -> list[Run]:
        """Runs of the experiment, newest first."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], where, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def end_dead_runs(self) -> None:
        """Set those runs KILLED that are RUNNING though the process that owned them is dead."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if why := owner.why_dead(run.data.tags):
                self.client.set_tag(run.info.run_id, ENDED_BY, why)
                self.client.set_terminated(run.info.run_id, "KILLED")
                log.info("run %s was left RUNNING (%s); set to KILLED", run.info.run_name, why)

    def keep_alive(self, run_id: str) -> None:
        """Say that the run's owner still lives."""
        for key, value in owner.heartbeat().items():
            self.client.set_tag(run_id, key, value)

    def close_run(self, run_id: str, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """The recipe's dotted keys; those already there stay."""
        known = self.client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=new[start : start + PARAMS_A_CALL])

    def log_rows(self, run_id: str, rows: Iterable[Row], time_ms: int) -> None:
        """Metrics by step, first seen at that time; those told before are left out.

        After an error the same call with the same time may be made again: what MLflow took though
        its answer was lost is the same metric to it, and is stored once.
        """
        last = self._last.setdefault(run_id, {})
        reached, metrics = dict(last), []
        for step, values in rows:
            for key, value in values.items():
                if step > reached.get(key, -1):
                    metrics.append(Metric(key, float(value), time_ms, step))
                    reached[key] = step
        for start in range(0, len(metrics), METRICS_A_CALL):
            batch = metrics[start : start + METRICS_A_CALL]
            self.client.log_batch(run_id, metrics=batch)
            last |= {metric.key: metric.step for metric in batch}

    def log_folder(self, run_id: str, folder: Path, at: str) -> None:
        """All files of a folder as artifacts."""
        self.client.log_artifacts(run_id, str(folder), at)

    def log_file(self, run_id: str, path: Path, at: str) -> None:
        """A file as an artifact in a folder."""
        self.client.log_artifact(run_id, str(path), at)

    def log_text(self, run_id: str, text: str, at: str) -> None:
        """A text as an artifact."""
        self.client.log_text(run_id, text, at)

    def log_dataset(self, run_id: str, name: str, uri: str, digest: str) -> None:
        """The data set as an input of the run, with the digest of its content."""
        source: Any = CodeDatasetSource({"uri": uri})  # for object stores that MLflow does not know
        with suppress(MlflowException):
            source = resolve_dataset_source(uri)
        dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset._to_mlflow_entity(), tags)])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Words about a run, by name."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def set_note(self, run_id: str, text: str) -> None:
        """The description on the run's page."""
        self.client.set_tag(run_id, "mlflow.note.content", text)

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """A metric by step."""
        return sorted((m.step, m.value) for m in self.client.get_metric_history(run_id, key))

    def histories(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """All metrics of a run by step."""
        return {key: self.history(run_id, key) for key in self.client.get_run(run_id).data.metrics}

    @staticmethod
    @contextmanager
    def scratch() -> Iterator[Path]:
        """A folder for what is only made to be logged."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def register(self, run_id: str, name: str, net_folder: Path, tags: Mapping[str, str]) -> int:
        """A new version of a model that stands alone: weights, description and the code to run them."""
        with tempfile.TemporaryDirectory() as scratch:
            code, net = Path(scratch) / "fcn", Path(scratch) / "net"
            no_cache = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(fcn.__file__).parent, code, ignore=no_cache)
            shutil.copytree(net_folder, net)  # MLflow keeps the folder's name: `download_net`
            mlflow.start_run(run_id=run_id)
            try:
                # Recorded, not shown: advice on schemas, of which none says "an image of any size".
                with warnings.catch_warnings(record=True):
                    info = mlflow.pyfunc.log_model(
                        name=name,
                        python_model=str(PYFUNC_MODEL),
                        artifacts={"net": str(net)},
                        code_paths=[str(code)],
                        pip_requirements=packages.pins(SERVED_WITH),
                    )
            finally:
                mlflow.end_run()
        self._create_model(name)
        version = self.client.create_model_version(
            name, info.model_uri, run_id, tags=dict(tags), model_id=info.model_id
        )
        return int(version.version)

    def _create_model(self, name: str) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def version_with(self, name: str, tags: Mapping[str, str]) -> int | None:
        """The newest version of a model that has all these tags."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        fitting = [int(v.version) for v in versions if tags.items() <= v.tags.items()]
        return max(fitting, default=None)

    def champion(self, name: str) -> tuple[int, dict[str, str]] | None:
        """Version and tags of the alias's holder, None if there is none."""
        try:
            version = self.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return int(version.version), dict(version.tags)

    def move_alias(self, name: str, version: int, evidence: str) -> None:
        """Make a version the champion."""
        self.client.set_model_version_tag(name, str(version), "gate", evidence)
        self.client.set_registered_model_alias(name, CHAMPION, str(version))

    def name_challenger(self, name: str, version: int) -> None:
        """Point the challenger's alias to a version; it is not the champion for that."""
        self.client.set_registered_model_alias(name, CHALLENGER, str(version))

    def resolve(self, model_uri: str) -> str:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now, with its weights.

        Raises:
            TrackingError: no such model.
        """
        name, at, alias = model_uri.removeprefix("models:/").partition("@")
        try:
            if at:
                version = self.client.get_model_version_by_alias(name, alias)
            else:
                name, _, number = name.partition("/")
                version = self.client.get_model_version(name, number)
        except MlflowException as error:
            raise TrackingError(f"{model_uri} is not in {self.uri}: {error.message}") from error
        return f"models:/{version.name}/{version.version} {version.tags.get('weights_sha256', '')}"

    def download_net(self, model_uri: str) -> Path:
        """The net's folder of a registered model; none of the model's code is run.

        Raises:
            TrackingError: no such model.
        """
        try:
            return Path(mlflow.artifacts.download_artifacts(f"{model_uri}/artifacts/net"))
        except (MlflowException, OSError) as error:
            raise TrackingError(f"{model_uri} cannot be had from {self.uri}: {error}") from error


def greet(spec: TrackingSpec) -> None:
    """Ask a server one thing and change nothing.

    Raises:
        TrackingError: it does not answer, or does not take this user.
    """
    with speaking(str(spec.uri)):
        MlflowClient(spec.uri).get_experiment_by_name(spec.experiment)


@contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Tell what goes wrong with MLflow in our words.

    Raises:
        OutageError: it is away for now.
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
        return not any(words in str(error) for words in NOT_AWAY)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return bool(error.response.status_code in (408, 429) or error.response.status_code >= 500)
    # Without an answer from a server, INTERNAL_ERROR is but the default of MLflow's exceptions.
    codes = (*AWAY_CODES, "INTERNAL_ERROR") if isinstance(error, RestException) else AWAY_CODES
    return isinstance(error, AWAY) or getattr(error, "error_code", None) in codes or None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from; the last is the cause in the fewest words."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
