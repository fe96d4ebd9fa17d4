"""What one node reports of itself to the check of a cluster."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.storage.cache import cache_folder
from pipeline.storage.object_store import ObjectStore

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "albumentations", "fcn-pipeline")
SOURCE = "fcn-pipeline's files"
"""The version of the package does not change with every edit; the hash of its files does."""
HTTP_S, GPU_S, SEEN_S = 5.0, 45.0, 3.0
"""How long a probe waits for a server, for PyTorch to count GPUs, and for a network folder's caches."""
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class ProbeRequest:
    """What every node is asked."""

    store: Path | str
    """The store's folder, or its URI."""
    token: str
    """Of this check; it names the folder of the probes' files in the store."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that the first stages read."""
    health_url: str | None = None
    """MLflow's server answers here with 200 if it is well."""
    gpus: bool = False
    """Whether GPUs are to be counted."""


@dataclass(frozen=True)
class NodeReport:
    """What a node answers; None and empty where nothing is wrong."""

    host: str
    versions: dict[str, str]
    unwritable: str | None
    """Why the store cannot be written and read back."""
    made: tuple[Path, ...]
    """Folders that were not there before the node wrote into the store."""
    store_free_bytes: int
    """On the disk of the store, or of this node's cache of it."""
    tmp_free_bytes: int
    missing: tuple[Path, ...]
    """The inputs that are not there."""
    unreachable: str | None
    """Why MLflow's server does not answer."""
    num_gpus: int | None
    """GPUs that PyTorch can use; None if not asked or if the count failed."""


class Probe:
    """An actor on the node that it reports of."""

    def __init__(self, name: str, request: ProbeRequest) -> None:
        self.name, self.request = name, request
        self.folder = f".preflight-{request.token}"

    @cached_property
    def _files(self) -> ObjectStore:  # not in the constructor: an address may be wrong
        return ObjectStore(self.request.store)

    def report(self) -> NodeReport:
        """Everything that needs no other node."""
        asked = self.request
        disk = cache_folder(asked.store) if isinstance(asked.store, str) else asked.store
        made = tuple(path for path in (disk, *disk.parents) if not path.exists())
        return NodeReport(
            host=socket.gethostname(),
            made=() if isinstance(asked.store, str) else made,
            unwritable=self._why_unwritable(),
            versions=versions(),
            store_free_bytes=free_bytes(disk),
            tmp_free_bytes=free_bytes(Path(tempfile.gettempdir())),
            missing=tuple(path for path in asked.inputs if not path.exists()),
            unreachable=why_unreachable(asked.health_url) if asked.health_url else None,
            num_gpus=count_gpus() if asked.gpus else None,
        )

    def _why_unwritable(self) -> str | None:
        token = self.request.token
        try:
            self._files.write(f"{self.folder}/{self.name}", token.encode())
        except StoreError as error:
            return str(error)
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        return None if self._read(self.name) == token else "what was written is not what is read"

    def _read(self, name: str) -> str | None:
        with suppress(OSError, StoreError):
            content = self._files.read(f"{self.folder}/{name}")
            return None if content is None else content.decode()
        return None

    def unseen(self, names: Iterable[str]) -> list[str]:
        """The nodes whose files are not there: their store is not the same as this node's."""
        return [name for name in names if not self._sees(name)]

    def _sees(self, name: str) -> bool:
        ends_at = time.monotonic() + SEEN_S  # a network folder may take a moment to show a file
        while (found := self._read(name)) is None and time.monotonic() < ends_at:
            time.sleep(0.2)
        return found == self.request.token

    def clean(self, made: Iterable[Path]) -> None:
        """Remove the probes' files, and the folders that were made for them if they are empty."""
        with suppress(OSError, StoreError):
            self._files.remove_folder(self.folder)
        for folder in sorted(made, key=lambda path: -len(path.parts)):  # the innermost first
            with suppress(OSError):
                folder.rmdir()


def free_bytes(folder: Path) -> int:
    """Free space of the disk on which a folder lies, or would lie; quotas are not seen."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def versions() -> dict[str, str]:
    """The versions on this machine of all that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {SOURCE: source_hash(Path(__file__).parents[2])}


def source_hash(root: Path) -> str:
    """A hash of the Python files of `fcn` and `pipeline` below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("fcn", "pipeline") for p in root.glob(f"{part}/**/*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def why_unreachable(url: str) -> str | None:
    """Why a server does not answer with 200; None if it does."""
    try:
        with urllib.request.urlopen(url, timeout=HTTP_S) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.reason}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)


def count_gpus() -> int | None:
    """Count in another process, because Ray hides the GPUs from an actor that asks for none."""
    visible = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    run = [sys.executable, "-c", COUNT_GPUS]
    with suppress(subprocess.SubprocessError, ValueError):
        done = subprocess.run(run, env=visible, capture_output=True, timeout=GPU_S, check=True)
        return int(done.stdout)
    return None
