"""Files below a root on any file system that pyarrow knows: a folder, s3://, gs://, abfs://, hdfs://."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from pipeline.errors import StoreError

URI = r"^[a-z][a-z0-9+.-]*://"
"""How the URI of an object store begins."""
CHUNK_BYTES = 8 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system answers when a disk, a quota or a file is full."""
FLAT = ("s3", "gcs", "abfs")
"""File systems in which folders are only a part of names; elsewhere they have to be made."""


class FileDigest(NamedTuple):
    """What proves that a copy of a file is whole."""

    sha256: str
    size_bytes: int


class Entry(NamedTuple):
    """A file that was found."""

    name: str
    size_bytes: int
    changed_s: float
    """When it was written, in seconds since 1970."""


def not_usable(folder: Path | str, error: OSError) -> StoreError:
    """What the system says of a folder that should be a store, with a remedy."""
    words = os.strerror(error.errno) if error.errno else error
    return StoreError(
        f"{folder} cannot be used as a store: {words}; set store=... to a "
        "folder that you may write, or that can be made"
    )


class ObjectStore:
    """The files below a folder or a URI; all names are relative to it.

    It is pickled as its root alone: credentials are those of the machine on which it is used.

    Raises:
        StoreError: there is no such kind of file system, or it cannot be reached.
    """

    def __init__(self, root: Path | str) -> None:
        if re.match(URI, str(root)):
            self.uri = str(root)
            with self._explained("cannot be opened"):
                self.filesystem, base = FileSystem.from_uri(self.uri)
            self.base: str = base.rstrip("/")
            self.local = Path(base) if self.filesystem.type_name == "local" else None
        else:
            self.local = Path(root).absolute()
            self.uri = self.base = str(self.local)
            self.filesystem = LocalFileSystem()

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.uri,)

    def address(self, name: str) -> str:
        """The URI of a file or a folder, without the options of the connection."""
        if self.local is not None:
            return (self.local / name).as_uri()
        return f"{self.uri.partition('?')[0].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None if there is none."""
        with self._explained(f"{name} cannot be read"):
            try:
                with self.filesystem.open_input_stream(
                    self._path(name), compression=None
                ) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file: all of it is there afterwards, or what was there before."""
        with self._explained(f"{name} cannot be written"):
            if self.local is None:
                with self._sink(name) as sink:
                    sink.write(content)
            else:  # an object store replaces an object at once; on a disk it takes a rename
                path = self.local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
                try:
                    with draft.open("wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(
                            file.fileno()
                        )  # else a power cut may leave the name without content
                    draft.replace(path)
                finally:
                    draft.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> FileDigest:
        """Copy a file of this machine here; hash it where it already is the file of that name."""
        content = hashlib.sha256()
        with self._explained(f"{name} cannot be written"), source.open("rb") as file:
            if self.local is not None and source == self.local / name:
                digest = hashlib.file_digest(file, "sha256")
                return FileDigest(digest.hexdigest(), source.stat().st_size)
            with self._sink(name) as sink:
                while chunk := file.read(CHUNK_BYTES):
                    content.update(chunk)
                    sink.write(chunk)
        return FileDigest(content.hexdigest(), source.stat().st_size)

    def get(self, name: str, target: Path) -> FileDigest:
        """Copy a file to this machine.

        Raises:
            FileNotFoundError: it is not there.
            OSError: this machine's disk is full.
        """
        content, size = hashlib.sha256(), 0
        with self._explained(f"{name} cannot be read"):
            source = self.filesystem.open_input_stream(self._path(name), compression=None)
        with source, target.open("wb") as file:
            while chunk := self._chunk(source, name):
                content.update(chunk)
                size += file.write(chunk)
        return FileDigest(content.hexdigest(), size)

    def entries(self, prefix: str = "") -> list[Entry]:
        """All files below a folder, by their names relative to it."""
        root = self._path(prefix).rstrip("/")
        found = self._list(FileSelector(root, recursive=True, allow_not_found=True), prefix)
        return sorted(
            Entry(info.path.removeprefix(f"{root}/"), info.size, info.mtime_ns / 1e9)
            for info in found
            if info.type == FileType.File
        )

    def names(self, prefix: str = "") -> list[str]:
        """The names of all files below a folder, relative to it."""
        return [entry.name for entry in self.entries(prefix)]

    def folders(self, prefix: str = "") -> list[str]:
        """The folders directly in a folder, by name."""
        root = self._path(prefix).rstrip("/")
        found = self._list(FileSelector(root, allow_not_found=True), prefix)
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def _list(self, selector: FileSelector, prefix: str) -> list[FileInfo]:
        with self._explained(f"{prefix} cannot be listed"):
            return list(self.filesystem.get_file_info(selector))

    def move(self, name: str, to: str) -> None:
        """Give a file another name."""
        with self._explained(f"{name} cannot be renamed"):
            self._make_folder(to)
            self.filesystem.move(self._path(name), self._path(to))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(f"{name} cannot be removed"), suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there; of a link, the link alone."""
        with self._explained(f"{name} cannot be removed"), suppress(FileNotFoundError):
            if self.local is None:
                self.filesystem.delete_dir(self._path(name))
            elif (self.local / name).is_symlink():
                (self.local / name).unlink()
            else:
                shutil.rmtree(self.local / name)

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def _sink(self, name: str) -> Any:  # noqa: ANN401 - pyarrow's stream
        self._make_folder(name)
        return self.filesystem.open_output_stream(self._path(name), compression=None)

    def _make_folder(self, name: str) -> None:
        if self.filesystem.type_name not in FLAT:
            self.filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _chunk(self, source: Any, name: str) -> bytes:  # noqa: ANN401 - pyarrow's stream
        with self._explained(f"{name} cannot be read"):
            return bytes(source.read(CHUNK_BYTES))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Raise what the file system says as an error with a remedy; a full disk speaks for itself."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if getattr(self, "local", None) is None:
                raise StoreError(
                    f"{self.uri}: {what}: {error}; see that the bucket is there, and that this machine "
                    "can reach it and may read and write it"
                ) from error
            if not isinstance(error, OSError) or error.errno in FULL:
                raise
            raise not_usable(self.uri, error) from error
