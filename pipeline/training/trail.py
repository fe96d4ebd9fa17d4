"""The checkpoints of a phase, in a folder that all machines share or in an object store."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from filelock import FileLock

from pipeline.errors import StoreError
from pipeline.storage.cache import MirroredStore
from pipeline.storage.store import Store
from pipeline.training import checkpoint
from pipeline.training.checkpoint import KEPT, MANIFEST, RAYS_LIST, damage


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


class RemoteTrail(Trail):
    """Checkpoints in an object store; each machine downloads the one that it goes on from, once."""

    def __init__(self, store: MirroredStore, run: str, key: str) -> None:
        super().__init__(store.checkpoints(run, key))
        self._store, self._run, self._key = store, run, key
        self._remote, self._prefix = store.remote, f"runs/{run}/{key}"
        self.place = PurePosixPath(self._remote.base) / self._prefix
        self.filesystem = self._remote.filesystem

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTrail, (self._store, self._run, self._key)

    def __str__(self) -> str:
        return f"{self._store}/{self._prefix}"

    def newest(self) -> tuple[Path | None, list[str]]:
        """The furthest checkpoint that is sound once it is here."""
        return self._soundest(self._furthest_first(self._listed()))

    def _soundest(self, names: Iterable[str]) -> tuple[Path | None, list[str]]:
        complaints: list[str] = []
        for name in names:
            if (wrong := self._fetch(name)) is None:
                return self.folder / name, complaints
            complaints.append(f"{name} is damaged and left out: {wrong}")
        return None, complaints

    def local(self, name: str) -> Path:
        """A checkpoint that another process has found to be sound, on this machine.

        Raises:
            StoreError: it did not come here whole.
        """
        if wrong := self._fetch(name):
            raise StoreError(
                f"{self}/{name} did not come here whole, though another machine has it: {wrong}; "
                "see that this machine can read the store, and type the same command again"
            )
        return self.folder / name

    def _fetch(self, name: str) -> str | None:
        """One process of a machine downloads, the others wait; what is still wrong with it then."""
        target = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "fetch.lock"):
            for _ in range(2):  # a transfer may fail; an object that is damaged stays so
                if damage(target) is None:
                    return None
                self._download(name, target)
            return damage(target)

    def tidy(self) -> list[str]:
        """The furthest sound checkpoint and the one behind it stay; this machine keeps the former.

        A damaged one is put aside, one that was never finished is removed, and so is Ray's own list.
        """
        self._remote.remove(f"{self._prefix}/{RAYS_LIST}")
        listed = self._listed()
        names = self._furthest_first(listed)
        found, complaints = self._soundest(names)
        beyond = names.index(found.name) if found else len(names)
        for name in names[:beyond]:
            finished = MANIFEST in listed[name]
            self._empty(name, listed[name], f"damaged_{name}" if finished else None)
        for name in names[beyond + KEPT :]:
            self._empty(name, listed[name], None)
        return complaints

    def _listed(self) -> dict[str, list[str]]:
        """The files of each checkpoint."""
        found: dict[str, list[str]] = {}
        for name in self._remote.names(self._prefix):
            folder, _, file = name.partition("/")
            if folder.startswith("checkpoint_") and file:
                found.setdefault(folder, []).append(file)
        return found

    def _furthest_first(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: (self._step(name), name), reverse=True)

    def _step(self, name: str) -> int:
        """Those that cannot say it come first, so that they are looked at and complained about."""
        content = self._remote.read(f"{self._prefix}/{name}/{MANIFEST}")
        with suppress(ValueError, KeyError):
            if content is not None:
                return int(json.loads(content)["step"])
        return sys.maxsize

    def _download(self, name: str, target: Path) -> None:
        """In place of those that were needed here before."""
        draft = self.folder / f"draft-{name}"
        for folder in (*self.folder.glob("draft-*"), *self.folder.glob("checkpoint_*")):
            shutil.rmtree(folder, ignore_errors=True)
        draft.mkdir()
        for file in self._remote.names(f"{self._prefix}/{name}"):
            self._remote.get(f"{self._prefix}/{name}/{file}", draft / file)
        draft.rename(target)

    def _empty(self, name: str, files: list[str], to: str | None) -> None:
        for file in files:
            path = f"{self._prefix}/{name}/{file}"
            if to:
                self._remote.move(path, f"{self._prefix}/{to}/{file}")
            else:
                self._remote.remove(path)


def trail_of(store: Store, run: str, key: str) -> Trail:
    """Where a phase's checkpoints lie, trained under the name of a run."""
    if isinstance(store, MirroredStore):
        return RemoteTrail(store, run, key)
    return Trail(store.checkpoints(run, key))
