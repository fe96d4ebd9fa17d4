"""MLflow: runs, metrics, artifacts, the registry. The only module that speaks to it.

One writer, the driver, through a client and explicit run ids. A flow is one parent run, each phase of
the fine-tuning a child; both are found again by their fingerprint, so that the same command typed
twice goes on in the same runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

# Metrics are few and precious, and the driver must not hang for minutes on a server that is away.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# Its notes on how a database is made and how models may be typed are not for our users.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

import mlflow
import mlflow.pyfunc
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

import fcn
from pipeline import serving_path
from pipeline.errors import TrackingError
from pipeline.specs import TrackingSpec

log = logging.getLogger(__name__)

CHAMPION = "champion"
FINGERPRINT = "fcn.fingerprint"
PARENT = "mlflow.parentRunId"
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000


class Tracker:
    """An experiment in an MLflow store: the store folder's own database, or a server."""

    def __init__(self, spec: TrackingSpec, store: Path) -> None:
        warnings.filterwarnings("ignore", module="mlflow")
        store.mkdir(parents=True, exist_ok=True)
        self.uri = spec.uri or f"sqlite:///{store / 'mlflow.db'}"
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
        self._known: dict[str, dict[str, int]] = {}
        """Last step of each metric that a run had when it was opened."""

    def open_run(self, name: str, fingerprint: str, parent: str | None = None) -> str:
        """The run of this fingerprint, set RUNNING again if there is one, else a new one."""
        run_id = self.find_run(fingerprint, parent)
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
            keys = self.client.get_run(run_id).data.metrics
            self._known[run_id] = {key: self.history(run_id, key)[-1][0] for key in keys}
        else:
            tags = {FINGERPRINT: fingerprint} | ({PARENT: parent} if parent else {})
            run = self.client.create_run(self.experiment, run_name=name, tags=tags)
            run_id = str(run.info.run_id)
        return run_id

    def find_run(self, fingerprint: str, parent: str | None = None) -> str | None:
        """Id of the newest run with this fingerprint (under that parent)."""
        where = f"tags.`{FINGERPRINT}` = '{fingerprint}'"
        where += f" and tags.`{PARENT}` = '{parent}'" if parent else ""
        runs = self.client.search_runs([self.experiment], where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def close_run(self, run_id: str, *, ok: bool) -> None:
        """The run is over."""
        self.client.set_terminated(run_id, "FINISHED" if ok else "FAILED")

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """The recipe's dotted keys; those already there stay."""
        known = self.client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=new[start : start + PARAMS_A_CALL])

    def log_rows(self, run_id: str, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics by step. Steps that were logged before (a resumed run repeats some) are left out.

        Raises:
            TrackingError: MLflow did not take them.
        """
        known, now = self._known.get(run_id, {}), int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, step)
            for step, values in rows
            for key, value in values.items()
            if step > known.get(key, -1)
        ]
        try:
            for start in range(0, len(metrics), METRICS_A_CALL):
                self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])
        except MlflowException as error:
            raise TrackingError(f"metrics could not be sent to {self.uri}: {error}") from error

    def log_scores(self, run_id: str, values: Mapping[str, float]) -> None:
        """Metrics without a step, such as those of the final evaluation."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id, metrics=[Metric(k, float(v), now, 0) for k, v in values.items()]
        )

    def log_folder(self, run_id: str, folder: Path, at: str) -> None:
        """All files of a folder as artifacts."""
        self.client.log_artifacts(run_id, str(folder), at)

    def log_file(self, run_id: str, path: Path, at: str) -> None:
        """A file as an artifact in a folder."""
        self.client.log_artifact(run_id, str(path), at)

    def log_text(self, run_id: str, text: str, at: str) -> None:
        """A text as an artifact."""
        self.client.log_text(run_id, text, at)

    def log_dataset(self, run_id: str, name: str, folder: Path, digest: str) -> None:
        """The data set as an input of the run, with the digest of its content."""
        source = resolve_dataset_source(folder.as_uri())
        dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
        entry = DatasetInput(
            dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")]
        )
        self.client.log_inputs(run_id, datasets=[entry])

    def set_note(self, run_id: str, text: str) -> None:
        """The description on the run's page."""
        self.client.set_tag(run_id, "mlflow.note.content", text)

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """A metric by step."""
        points = self.client.get_metric_history(run_id, key)
        return sorted((m.step, m.value) for m in points)

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
                        python_model=str(serving_path()),
                        artifacts={"net": str(net)},
                        code_paths=[str(code)],
                        pip_requirements=_requirements(),
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


def environment() -> str:
    """The installed packages, as name==version lines."""
    pins = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}
    return "\n".join(sorted(pins, key=str.lower)) + "\n"


def _requirements() -> list[str]:
    names = ("mlflow", "numpy", "pillow", "safetensors", "torch", "torchvision")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
