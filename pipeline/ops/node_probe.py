"""What one node tells of itself. Standard library only: it must run where little else does.

But a store in an object store is tried as a run would use it.
"""

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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.storage.object_store import ObjectStore

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "albumentations", "fcn-pipeline")
SOURCE = "fcn-pipeline's files"
"""The version of the package does not change with every edit; this hash does."""
HTTP_S, GPU_S, SEEN_S = 5.0, 45.0, 3.0
"""The longest that a server, PyTorch's look for GPUs and a network folder's caches are waited for."""
FOLDER = ".preflight-"
DIFFERS = "what was written is not what is read"
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class ProbeRequest:
    """What every node is asked."""

    store: Path | str
    """Its folder, or its URI."""
    token: str
    """Of this preflight: names the folder of its files in the store."""
    inputs: tuple[Path, ...] = ()
    """What the first stages read."""
    url: str | None = None
    """Answered with 200 by MLflow if it is well."""
    gpus: bool = False


@dataclass(frozen=True)
class NodeReport:
    """What a node answers; None and empty where nothing is wrong."""

    host: str
    versions: dict[str, str]
    unwritable: str | None
    """Why the store cannot be written and read back."""
    made: tuple[Path, ...]
    """Folders that the node had to make for that."""
    store_free_bytes: int
    """On the disk of the store, or of this node's mirror of it."""
    tmp_free_bytes: int
    missing: tuple[Path, ...]
    unreachable: str | None
    """Why MLflow's server does not answer."""
    num_gpus: int | None
    """That PyTorch can use; None if not asked or if it could not tell."""


class SharedFolder:
    """A store in a folder, where each node leaves a file for the others to see."""

    def __init__(self, store: Path, token: str) -> None:
        self.disk, self._folder = store, store / f"{FOLDER}{token}"

    def leave(self, name: str, text: str) -> tuple[tuple[Path, ...], str | None]:
        """Write and read back a file; the folders made for it, and why it could not be."""
        made = tuple(path for path in (self.disk, *self.disk.parents) if not path.exists())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text)
        except OSError as error:
            remove_empty([self._folder, *made])
            return (), f"{error.strerror}: {error.filename}"
        return made, None if self.read(name) == text else DIFFERS

    def read(self, name: str) -> str | None:
        """What a node has left."""
        with suppress(OSError):
            return (self._folder / name).read_text()
        return None

    def take_back(self, name: str) -> None:
        """Remove the file that was left."""
        (self._folder / name).unlink(missing_ok=True)

    def tidy(self, made: Iterable[Path]) -> None:
        """Remove the folders that were made for the files, when all files are gone."""
        remove_empty([self._folder, *made])


class Bucket:
    """A store in an object store, likewise; there are no folders to be made."""

    def __init__(self, uri: str, token: str) -> None:
        from pipeline.storage.cache import cache_folder  # noqa: PLC0415 - a folder needs no pyarrow

        self.disk, self._uri, self._folder = cache_folder(uri), uri, f"{FOLDER}{token}"

    def leave(self, name: str, text: str) -> tuple[tuple[Path, ...], str | None]:
        """Write and read back an object; why it could not be."""
        from pipeline.errors import StoreError  # noqa: PLC0415

        try:
            self._remote.write(f"{self._folder}/{name}", text.encode())
            same = self._remote.read(f"{self._folder}/{name}") == text.encode()
        except StoreError as error:
            return (), str(error)
        return (), None if same else DIFFERS

    def read(self, name: str) -> str | None:
        """What a node has left."""
        content = self._remote.read(f"{self._folder}/{name}")
        return None if content is None else content.decode()

    def take_back(self, name: str) -> None:
        """Remove the object that was left."""
        self._remote.remove(f"{self._folder}/{name}")

    def tidy(self, made: Iterable[Path]) -> None:
        """Remove what some object stores keep of a folder that is empty."""
        self._remote.remove_folder(self._folder)

    @cached_property
    def _remote(self) -> ObjectStore:  # an address that cannot be opened is an answer of `leave`
        from pipeline.storage.object_store import ObjectStore  # noqa: PLC0415

        return ObjectStore(self._uri)


class Probe:
    """Lives on the node that it tells of."""

    def __init__(self, name: str, question: ProbeRequest) -> None:
        self.name, self.question = name, question
        store, token = question.store, question.token
        self.place = Bucket(store, token) if isinstance(store, str) else SharedFolder(store, token)

    def look(self) -> NodeReport:
        """Everything that needs no other node."""
        asked = self.question
        made, unwritable = self.place.leave(self.name, asked.token)
        return NodeReport(
            host=socket.gethostname(),
            versions=versions(),
            unwritable=unwritable,
            made=made,
            store_free_bytes=free_bytes(self.place.disk),
            tmp_free_bytes=free_bytes(Path(tempfile.gettempdir())),
            missing=tuple(path for path in asked.inputs if not path.exists()),
            unreachable=why_unreachable(asked.url) if asked.url else None,
            num_gpus=count_gpus() if asked.gpus else None,
        )

    def unseen(self, names: Iterable[str]) -> list[str]:
        """Nodes whose files are not there: the store is not the same for both."""
        return [name for name in names if not self._sees(name)]

    def now(self) -> float:
        """This node's clock, in seconds since 1970."""
        return time.time()

    def take_back(self) -> None:
        """Remove the file that was left."""
        self.place.take_back(self.name)

    def tidy(self, made: Iterable[Path]) -> None:
        """Remove what is left of the place when all files are gone."""
        self.place.tidy(made)

    def _sees(self, name: str) -> bool:
        """Whether a node's file is there; network folders may take a moment to show it."""
        ends_at = time.monotonic() + SEEN_S
        while (found := self.place.read(name)) is None and time.monotonic() < ends_at:
            time.sleep(0.2)
        return found == self.question.token


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first; what holds anything or is gone stays as it is."""
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            folder.rmdir()


def free_bytes(folder: Path) -> int:
    """Room on the disk on which a folder lies, or would; quotas are not seen."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def versions() -> dict[str, str]:
    """Of all that a result depends on, as it is installed here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {SOURCE: source_hash(Path(__file__).parents[2])}


def source_hash(root: Path) -> str:
    """Of our own code as it lies here."""
    digest = hashlib.sha256()
    for path in sorted(
        p for package in ("fcn", "pipeline") for p in root.glob(f"{package}/**/*.py")
    ):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def why_unreachable(url: str) -> str | None:
    """Why a server does not answer with 200; None if it does."""
    try:
        with urllib.request.urlopen(url, timeout=HTTP_S) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or error.reason)
    except OSError as error:
        return str(error)


def count_gpus() -> int | None:
    """GPUs that PyTorch can use; in another process, because Ray hides them from one that has none."""
    hidden = ("CUDA_VISIBLE_DEVICES",)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    with suppress(subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            [sys.executable, "-c", COUNT_GPUS],
            env=environment,
            capture_output=True,
            timeout=GPU_S,
            check=True,
        )
        return int(done.stdout)
    return None
