"""What a machine keeps of a store in a bucket: each file is downloaded once, verified, and shared."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from filelock import FileLock

from pipeline.errors import StoreError
from pipeline.storage.object_store import FileDigest, ObjectStore

CACHE = "FCN_CACHE"
"""The environment variable that names the folder of all caches, instead of ~/.cache/fcn-pipeline."""


def cache_folder(uri: str) -> Path:
    """This machine's folder for what it uses of a store."""
    named = os.environ.get(CACHE)
    caches = Path(named) if named else Path.home() / ".cache" / "fcn-pipeline"
    return caches / hashlib.sha256(uri.encode()).hexdigest()[:16]


class Cache:
    """Copies of a bucket's files in a folder of this machine, under the same names."""

    def __init__(self, files: ObjectStore, folder: Path) -> None:
        self.files, self.folder = files, folder

    def fetch(self, name: str, known: FileDigest, manifest: str) -> Path:
        """The copy of one file: whole, or not there at all.

        A copy is verified by its hash when it comes and is moved into place after that, so that its
        size proves it from then on.

        Raises:
            StoreError: the file is missing or damaged in the store; removing the manifest is the remedy.
        """
        target = self.folder / name
        if _has_size(target, known.size_bytes):
            return target
        with self._one_process(name):
            if not _has_size(target, known.size_bytes):
                self._download(name, known, target, manifest)
        return target

    def _download(self, name: str, known: FileDigest, target: Path, manifest: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{uuid.uuid4().hex[:8]}.part")
        try:
            for _ in range(2):  # a transfer may fail; an object that is damaged stays so
                arrived = self._copy(name, draft)
                if arrived == known:
                    draft.replace(target)
                    return
        finally:
            draft.unlink(missing_ok=True)
        raise StoreError(
            f"{self.files.address(name)} is not what was uploaded: sha256 {arrived.sha256[:12]}, "
            f"{arrived.size_bytes} bytes instead of {known.sha256[:12]}, {known.size_bytes} bytes; "
            f"remove {manifest} there, and the same command makes it again"
        )

    def _copy(self, name: str, draft: Path) -> FileDigest:
        try:
            return self.files.get(name, draft)
        except FileNotFoundError:
            return FileDigest("none", 0)

    def _one_process(self, name: str) -> FileLock:
        """A lock: one process of this machine downloads, the others wait."""
        locks = self.folder / "locks" / "downloads"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{name.replace('/', '-')}.lock")


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes
