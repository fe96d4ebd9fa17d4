"""Single files of a store: one that a task writes for a result, one that only says that it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.object_store import ObjectStore

OBJECTS = "objects"
"""Key of a manifest: by the name of each file its sha256 and size."""
ATTEMPT_MARKER = "attempt.json"
"""The file by which a folder is known to be an attempt at a training, and so full of checkpoints."""
DRAFT = ".draft"
"""Ending of the mark beside an upload that is not finished: it is ours, though no manifest says so."""


@dataclass
class StagedFile:
    """A file of a result that a task on any machine writes, before the result is published."""

    files: ObjectStore
    folder: str
    name: str
    digests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the manifest must say of the file, under `OBJECTS`, once it is written."""

    @contextmanager
    def open(self) -> Iterator[Path]:
        """A path to write to; after the block the file is where it belongs."""
        target = f"{self.folder}/{self.name}"
        if self.files.local is not None:  # all machines share the disk: written in its place
            path = self.files.local / target
            yield path
            digest = self.files.put(path, target)
        else:
            with tempfile.TemporaryDirectory(prefix="fcn-staged-") as scratch:
                path = Path(scratch) / self.name
                yield path
                digest = self.files.put(path, target)
        self.digests[self.name] = digest._asdict()

    @contextmanager
    def read(self) -> Iterator[Path]:
        """A path on this machine to what was written, which may be gone after the block."""
        target = f"{self.folder}/{self.name}"
        if self.files.local is not None:
            yield self.files.local / target
        else:
            with tempfile.TemporaryDirectory(prefix="fcn-staged-") as scratch:
                path = Path(scratch) / self.name
                self.files.get(target, path)
                yield path


class Marker:
    """An empty file that remembers that something was done, whichever machine did it."""

    def __init__(self, files: ObjectStore, name: str) -> None:
        self._files, self._name = files, name

    def exists(self) -> bool:
        """Whether it was done."""
        return self._files.read(self._name) is not None

    def set(self) -> None:
        """Remember that it was done."""
        self._files.write(self._name, b"")

    def clear(self) -> None:
        """Forget it: it is to be done again."""
        self._files.remove(self._name)
