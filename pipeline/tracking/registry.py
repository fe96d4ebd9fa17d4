"""MLflow's registry: versions of a model, who is the champion, and their weights."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mlflow
import mlflow.pyfunc
from filelock import FileLock
from mlflow.exceptions import MlflowException

import fcn
from pipeline.config.schema import TrackingSpec
from pipeline.errors import TrackingError
from pipeline.storage.scratch import scratch_folder
from pipeline.storage.store import fingerprint
from pipeline.tracking.client import TrackingClient

PYFUNC_MODEL = Path(__file__).with_name("pyfunc_model.py")
"""MLflow copies this file into the model and runs it."""
CHAMPION, CHALLENGER = "champion", "challenger"
REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "torch", "torchvision")


class ModelRegistry:
    """The registered models of an MLflow store."""

    def __init__(self, tracking: TrackingClient) -> None:
        self.tracking = tracking
        self.client = tracking.client

    def register(self, run_id: str, name: str, net_folder: Path, tags: Mapping[str, str]) -> int:
        """A new version of a model that stands alone: weights, description and the code to run them."""
        with tempfile.TemporaryDirectory() as scratch:
            code, net = Path(scratch) / "fcn", Path(scratch) / "net"
            no_cache = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(fcn.__file__).parent, code, ignore=no_cache)
            shutil.copytree(net_folder, net)  # MLflow keeps the folder's name, see `download_net`
            mlflow.start_run(run_id=run_id)  # `log_model` logs to the run that is active
            try:
                # MLflow advises a schema for the input; none says "an image of any size".
                with warnings.catch_warnings(record=True):
                    info = mlflow.pyfunc.log_model(
                        name=name,
                        python_model=str(PYFUNC_MODEL),
                        artifacts={"net": str(net)},
                        code_paths=[str(code)],
                        pip_requirements=[pinned(package) for package in REQUIREMENTS],
                    )
            finally:
                mlflow.end_run()
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            name, info.model_uri, run_id, tags=dict(tags), model_id=info.model_id
        )
        return int(version.version)

    def version_with(self, name: str, tags: Mapping[str, str]) -> int | None:
        """The newest version of a model that has all these tags, and its weights."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        fitting = [int(v.version) for v in versions if tags.items() <= v.tags.items()]
        newest_first = sorted(fitting, reverse=True)
        return next((version for version in newest_first if self.has_weights(name, version)), None)

    def has(self, name: str, version: int, weights_sha256: str | None = None) -> bool:
        """Whether a version is there, with these weights if they are known."""
        try:
            found = self.client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        mine = weights_sha256 in (None, found.tags.get("weights_sha256"))
        return mine and self.has_weights(name, version)

    def has_weights(self, name: str, version: int) -> bool:
        """Whether the files of a version are where it says."""
        folder = f"models:/{name}/{version}/artifacts/net"
        try:
            return bool(mlflow.artifacts.list_artifacts(folder))
        except (MlflowException, OSError) as error:
            if isinstance(error, OSError) or error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def champion(self, name: str) -> tuple[int, dict[str, str]] | None:
        """Version and tags of the champion, None if there is none."""
        try:
            version = self.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return int(version.version), dict(version.tags)

    def note_verdict(self, name: str, version: int, reason: str) -> None:
        """Why a version became the champion or did not, on the version itself."""
        self.client.set_model_version_tag(name, str(version), "gate", reason)

    def champion_uri(self, name: str) -> str:
        """The champion in words: its URI, or that there is none."""
        champion = self.champion(name)
        return f"models:/{name}/{champion[0]}" if champion else f"nobody: models:/{name} has none"

    def move_alias(self, name: str, version: int, expected: int | None) -> bool:
        """Make a version the champion, unless somebody else than the expected one holds the title now.

        MLflow itself can only overwrite an alias. So whoever promotes holds a lock of that model, which
        excludes all processes that share the folder of the locks.
        """
        lock = self.tracking.locks / f"model-{fingerprint(name)}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            champion = self.champion(name)
            if (champion[0] if champion else None) != expected:
                return False
            self.client.set_registered_model_alias(name, CHAMPION, str(version))
            return True

    def name_challenger(self, name: str, version: int) -> None:
        """Point the challenger's alias to a version; the champion stays."""
        self.client.set_registered_model_alias(name, CHALLENGER, str(version))

    def resolve(self, model_uri: str) -> str:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now, with its sha256.

        Raises:
            TrackingError: there is no such model.
        """
        name, at, alias = model_uri.removeprefix("models:/").partition("@")
        try:
            if at:
                version = self.client.get_model_version_by_alias(name, alias)
            else:
                version = self.client.get_model_version(*name.rsplit("/", 1))
        except MlflowException as error:
            uri = self.tracking.uri
            raise TrackingError(f"{model_uri} is not in {uri}: {error.message}") from error
        return f"models:/{version.name}/{version.version} {version.tags.get('weights_sha256', '')}"

    def download_net(self, model_uri: str) -> Path:
        """The net's folder of a registered model; none of the model's code is run.

        Raises:
            TrackingError: there is no such model.
        """
        try:
            folder = scratch_folder("model")  # MLflow's own choice would stay for ever
            uri = f"{model_uri}/artifacts/net"
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"{model_uri} cannot be downloaded from {self.tracking.uri}: {error}"
            ) from error


def open_registry(spec: TrackingSpec, store: Path) -> ModelRegistry:
    """The registry of a server, or of the store folder's own database."""
    return ModelRegistry(TrackingClient(spec, store))


def existing_registry(spec: TrackingSpec, store: Path) -> ModelRegistry:
    """The registry, where there is one: whoever only asks makes no database in a wrong folder.

    Raises:
        TrackingError: the store has none.
    """
    if spec.uri is None and not (store / "mlflow.db").is_file():
        raise TrackingError(
            f"{store} has no mlflow.db, so it has no models; name the store (--store, or store= in the "
            "recipe) or MLflow (--tracking-uri, or tracking.uri=...)"
        )
    return open_registry(spec, store)


def pinned(package: str) -> str:
    """NAME==VERSION, without the build that a version may name after a plus (2.11.0+cpu)."""
    return f"{package}=={metadata.version(package).partition('+')[0]}"
