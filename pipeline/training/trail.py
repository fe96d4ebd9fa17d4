"""The checkpoints of a phase, in a folder that all machines share or in an object store."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from pipeline.storage.store import Store
from pipeline.training import checkpoint


class Trail:
    """Checkpoints in a folder that all machines share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: PurePath = folder
        """Where Ray Train puts them."""
        self.filesystem: Any = None
        """That of the place; None is this machine's."""

    def __str__(self) -> str:
        return str(self.folder)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The furthest sound checkpoint, on this machine, and what is wrong with those beyond it."""
        return checkpoint.newest(self.folder)

    def local(self, name: str) -> Path:
        """A checkpoint that another process has found to be sound, on this machine."""
        return self.folder / name

    def tidy(self) -> list[str]:
        """Before a driver begins, as `checkpoint.tidy` does."""
        return checkpoint.tidy(self.folder)


def trail_of(store: Store, run: str, key: str) -> Trail:
    """Where a phase's checkpoints lie, trained under the name of a run."""
    return Trail(store.cache / store.checkpoints(run, key))
