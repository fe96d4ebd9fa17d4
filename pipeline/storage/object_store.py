"""A folder in an object store, on any file system that pyarrow knows: s3://, gs://, abfs://, hdfs://."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType

from pipeline.errors import StoreError

CHUNK_BYTES = 8 << 20
FLAT = ("s3", "gcs", "abfs")
"""Where folders are but a part of names; elsewhere they have to be made."""


class Sum(NamedTuple):
    """What proves that a file is whole."""

    sha256: str
    size_bytes: int


class Remote:
    """The folder of a URI; names are relative to it.

    It travels as its URI: credentials are those of the machine on which it is used.

    Raises:
        StoreError: no such kind of file system, or it cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with self._said("cannot be opened"):
            self.filesystem, base = FileSystem.from_uri(uri)
        self.base: str = base.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.uri,)

    def address(self, name: str) -> str:
        """The URI of a file or a folder, without the options of the connection."""
        return f"{self.uri.partition('?')[0].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file, None if there is none."""
        with self._said(f"{name} cannot be read"):
            try:
                with self.filesystem.open_input_stream(self._path(name)) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """A small file: all of it is there, or what was there before."""
        with self._said(f"{name} cannot be written"), self._sink(name) as sink:
            sink.write(content)

    def put(self, source: Path, name: str) -> Sum:
        """Upload a file."""
        content = hashlib.sha256()
        with (
            self._said(f"{name} cannot be written"),
            source.open("rb") as file,
            self._sink(name) as sink,
        ):
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
                sink.write(chunk)
        return Sum(content.hexdigest(), source.stat().st_size)

    def get(self, name: str, target: Path) -> Sum:
        """Download a file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: no room for it on this machine's disk.
        """
        content, size = hashlib.sha256(), 0
        with self._said(f"{name} cannot be read"):
            source = self.filesystem.open_input_stream(self._path(name))
        with source, target.open("wb") as file:
            while chunk := self._chunk(source, name):
                content.update(chunk)
                size += file.write(chunk)
        return Sum(content.hexdigest(), size)

    def names(self, prefix: str) -> list[str]:
        """All files below a folder, by their names relative to it."""
        root = self._path(prefix)
        with self._said(f"{prefix} cannot be listed"):
            found = self.filesystem.get_file_info(
                FileSelector(root, recursive=True, allow_not_found=True)
            )
        return sorted(
            info.path.removeprefix(f"{root}/") for info in found if info.type == FileType.File
        )

    def move(self, name: str, to: str) -> None:
        """Give a file another name."""
        with self._said(f"{name} cannot be renamed"):
            self._make_room(to)
            self.filesystem.move(self._path(name), self._path(to))

    def remove(self, name: str) -> None:
        """A file that may be there."""
        with self._said(f"{name} cannot be removed"):
            try:
                self.filesystem.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def remove_folder(self, name: str) -> None:
        """A folder with all that is in it, if it is there."""
        with self._said(f"{name} cannot be removed"):
            try:
                self.filesystem.delete_dir(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def _sink(self, name: str) -> Any:  # noqa: ANN401 - pyarrow's stream
        self._make_room(name)
        return self.filesystem.open_output_stream(self._path(name))

    def _make_room(self, name: str) -> None:
        if self.filesystem.type_name not in FLAT:
            self.filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _chunk(self, source: Any, name: str) -> bytes:  # noqa: ANN401 - pyarrow's stream
        with self._said(f"{name} cannot be read"):
            return bytes(source.read(CHUNK_BYTES))

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StoreError(
                f"{self.uri}: {what}: {error}; see that the bucket is there, and that this machine "
                "can reach it and may read and write it"
            ) from error
