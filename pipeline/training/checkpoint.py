"""The checkpoints of one training, in a folder or an object store, and which attempt may write them.

Every driver that trains a phase is an attempt of its own and writes into a folder of its own:

    <prefix>/attempt-000002-5e1f09ab/attempt.json    who it is: host, process, time
    <prefix>/attempt-000002-5e1f09ab/checkpoint_*    what it has written

No file system that we support can write a file only if nobody else did. So a new attempt writes its
marker first and lists all markers afterwards: the greatest one owns the training, and every other
attempt stops when it next wants to save. A listing shows every file whose writing has ended, on disks
and on S3, so two attempts at once cannot both believe that they are the greatest.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import torch
from filelock import FileLock

from fcn.nets import FCN
from pipeline.errors import StoreError, SupersededError
from pipeline.storage.cache import cache_folder
from pipeline.storage.files import ATTEMPT_MARKER
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Store
from pipeline.training.state import (
    MANIFEST,
    TrainState,
    damage,
    load_state,
    save_state,
    step_in,
    step_of,
)

log = logging.getLogger(__name__)

KEPT = 2
"""The furthest checkpoint, and the one before in case the furthest turns out to be damaged."""
ATTEMPT = re.compile(r"attempt-(\d{6,})-([0-9a-f]{8})")
ControlAction = Literal["continue", "save", "stop"]


class _Found(NamedTuple):
    """A checkpoint as its manifest shows it, not yet verified."""

    step: int
    """Those that cannot say it come first, so that they are looked at and complained about."""
    name: str
    """`attempt/checkpoint`."""
    finished: bool
    """Whether it has a manifest."""


class Checkpoints:
    """All checkpoints of a training, whichever attempt wrote them.

    It pickles. Each process verifies a checkpoint once: pass one instance on within a process.

    Args:
        files: Where they lie.
        prefix: Their folder there, for example `runs/<run>/<key>`.
        cache: Where this machine keeps what it downloads from an object store; None is its usual place.
    """

    def __init__(self, files: ObjectStore, prefix: str, cache: Path | None = None) -> None:
        self.files, self.prefix = files, prefix
        self.cache = cache or (files.local or cache_folder(files.uri))
        self.attempt: str | None = None
        """Set by `claim`, here and in copies that are made later."""
        self._sound: set[str] = set()

    @classmethod
    def of_run(cls, store: Store, run: str, key: str) -> Checkpoints:
        """Those of a phase that is trained under the name of a run."""
        return cls(store.files, store.checkpoints(run, key), store.cache)

    @classmethod
    def in_folder(cls, folder: Path) -> Checkpoints:
        """Those below a folder of this machine."""
        return cls(ObjectStore(folder.parent), folder.name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another machine has a cache of its own, and has yet to verify what it reads.
        return Checkpoints, (self.files, self.prefix), {"attempt": self.attempt}

    def __str__(self) -> str:
        return f"{self.files.uri.partition('?')[0].rstrip('/')}/{self.prefix}"

    def claim(self) -> None:
        """Begin an attempt; attempts that began before stop when they next want to save.

        Raises:
            SupersededError: another one began in the same moment and comes first.
        """
        number = max((_order(attempt)[0] for attempt in self._attempts()), default=0) + 1
        self.attempt = f"attempt-{number:06d}-{uuid.uuid4().hex[:8]}"
        began = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"host": socket.gethostname(), "pid": os.getpid(), "began": began}
        self.files.write(
            f"{self.prefix}/{self.attempt}/{ATTEMPT_MARKER}", json.dumps(about).encode()
        )
        self.check()

    def check(self) -> None:
        """Make sure that this attempt still owns the training.

        Raises:
            SupersededError: a later attempt has taken it over.
        """
        owner = max(self._attempts(), key=_order, default=None)
        if owner is None or self.attempt is None or _order(owner) <= _order(self.attempt):
            return
        about = json.loads(self.files.read(f"{self.prefix}/{owner}/{ATTEMPT_MARKER}") or b"{}")
        raise SupersededError(
            f"{self.attempt} of {self} was taken over by {owner}, which process {about.get('pid')} on "
            f"{about.get('host')} began at {about.get('began')}; this attempt stops and writes no more "
            "checkpoints. Nothing is lost: the other one goes on from the furthest checkpoint of both. "
            "To go on here instead, end that process and type the same command again"
        )

    def newest(self) -> tuple[Path | None, list[str]]:
        """The furthest sound checkpoint, on this machine, and what is wrong with those beyond it."""
        complaints: list[str] = []
        for found in self._furthest_first():
            if (wrong := self._damage(found)) is None:
                self._keep_here(found.name)
                return self.path(found.name), complaints
            complaints.append(_complaint(found, wrong))
        return None, complaints

    def furthest(self) -> int | None:
        """The step of the checkpoint that a training would go on from; None if it would begin anew.

        Those of a bucket are believed to be what their manifests say: nothing is downloaded.
        """
        if self.files.local is not None:
            found, _ = self.newest()
            return step_of(found) if found else None
        steps = (found.step for found in self._furthest_first() if found.finished)
        return next((step for step in steps if step < sys.maxsize), None)

    def localize(self, name: str) -> Path:
        """A checkpoint that another process has found to be sound, on this machine.

        Raises:
            StoreError: it did not come here whole.
        """
        if self.files.local is None and (wrong := self._damage(_Found(0, name, finished=True))):
            raise StoreError(
                f"{self}/{name} did not come here whole, though another machine has it: {wrong}; "
                "see that this machine can read the store, and type the same command again"
            )
        self._keep_here(name)
        return self.path(name)

    def tidy(self) -> list[str]:
        """Keep the furthest sound checkpoints, before an attempt begins; what is wrong with others.

        A damaged checkpoint is put aside, one that was never finished is removed, and so are attempts
        that hold nothing any more.

        Raises:
            SupersededError: as `check` does.
        """
        self.check()
        sound: list[str] = []
        complaints: list[str] = []
        for found in self._furthest_first():
            if len(sound) == KEPT:
                self.remove(found.name)
            elif (wrong := self._damage(found)) is None:
                sound.append(found.name)
            else:
                complaints.append(_complaint(found, wrong))
                self._put_aside(found)
        self._keep_here(*sound[:1])
        # The newest marker stays, even if it is not ours: it is what older attempts stop at.
        for attempt in sorted(self._attempts(), key=_order)[:-1]:
            folder = f"{self.prefix}/{attempt}"
            if attempt != self.attempt and not self.files.folders(folder):
                self.files.remove_folder(folder)
        return complaints

    @contextmanager
    def draft(self, step: int) -> Iterator[Path]:
        """An empty folder to write a checkpoint of this attempt into; after the block it is stored."""
        name = f"{self.attempt}/checkpoint_{step:09d}"
        if self.files.local is not None:
            self.files.remove_folder(f"{self.prefix}/{name}")  # half written before a kill
            self.path(name).mkdir(parents=True)
            yield self.path(name)
            return
        with tempfile.TemporaryDirectory(prefix="fcn-checkpoint-") as folder:
            yield Path(folder)
            # The manifest comes last, as on a disk: without it the checkpoint does not count.
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == MANIFEST):
                self.files.put(path, f"{self.prefix}/{name}/{path.name}")

    def remove(self, name: str) -> None:
        """Remove a checkpoint."""
        self.files.remove_folder(f"{self.prefix}/{name}")

    def names(self) -> list[str]:
        """All checkpoints as `attempt/checkpoint`, the furthest first, verified or not."""
        return [found.name for found in self._furthest_first()]

    def path(self, name: str) -> Path:
        """Where a checkpoint is on this machine, or will be once it is downloaded."""
        return (self.files.local or self.cache) / self.prefix / name

    def ray_storage(self) -> tuple[PurePosixPath, Any]:
        """The folder into which Ray Train is to carry this attempt's checkpoints; its file system.

        Ray writes a list of its checkpoints there too. As each attempt has a folder of its own, Ray
        never finds the list of another one, which it would refuse if it were damaged.
        """
        assert self.attempt is not None
        filesystem = None if self.files.local is not None else self.files.filesystem
        return PurePosixPath(self.files.base) / self.prefix / self.attempt, filesystem

    def _attempts(self) -> list[str]:
        return [name for name in self.files.folders(self.prefix) if ATTEMPT.fullmatch(name)]

    def _furthest_first(self) -> list[_Found]:
        found = [
            self._look(f"{attempt}/{folder}")
            for attempt in self._attempts()
            for folder in self.files.folders(f"{self.prefix}/{attempt}")
            if folder.startswith("checkpoint_")
        ]
        return sorted(found, reverse=True)

    def _look(self, name: str) -> _Found:
        manifest = self.files.read(f"{self.prefix}/{name}/{MANIFEST}")
        with suppress(ValueError, KeyError, TypeError):
            if manifest is not None:
                return _Found(step_in(manifest), name, finished=True)
        return _Found(sys.maxsize, name, finished=manifest is not None)

    def _damage(self, found: _Found) -> str | None:
        """Why a checkpoint cannot be trusted; None if it is sound, and then it is on this machine."""
        folder = self.path(found.name)
        if found.name in self._sound and folder.is_dir():
            return None
        if self.files.local is not None:
            wrong = damage(folder)
        elif not found.finished:
            wrong = f"{MANIFEST} is missing"
        else:
            wrong = self._download(found.name, folder)
        if wrong is None:
            self._sound.add(found.name)
        return wrong

    def _download(self, name: str, folder: Path) -> str | None:
        """One process of a machine downloads, the others wait; what is still wrong with it then."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"draft-{folder.name}")
        with FileLock(self.path("download.lock")):
            wrong = damage(folder)
            for _ in range(2):  # a transfer may fail; an object that is damaged stays so
                if wrong is None:
                    break
                for each in (draft, folder):
                    shutil.rmtree(each, ignore_errors=True)
                draft.mkdir()
                for file in self.files.names(f"{self.prefix}/{name}"):
                    self.files.get(f"{self.prefix}/{name}/{file}", draft / file)
                draft.rename(folder)
                wrong = damage(folder)
            return wrong

    def _keep_here(self, *names: str) -> None:
        """Remove the copies of all other checkpoints from this machine."""
        if self.files.local is None:
            for folder in self.path("").glob("attempt-*/*"):
                if f"{folder.parent.name}/{folder.name}" not in names:
                    shutil.rmtree(folder, ignore_errors=True)

    def _put_aside(self, found: _Found) -> None:
        attempt, _, checkpoint = found.name.partition("/")
        folder = f"{self.prefix}/{found.name}"
        if found.finished:
            for file in self.files.names(folder):
                target = f"{self.prefix}/{attempt}/damaged_{checkpoint}/{file}"
                self.files.move(f"{folder}/{file}", target)
        self.files.remove_folder(folder)


class LocalCheckpointManager:
    """What a Trainer needs of checkpoints, for a training in this process.

    Args:
        checkpoints: Where they are read and written.
        until: The step after which the training stops; None is the end of its schedule.
    """

    def __init__(self, checkpoints: Checkpoints, until: int | None = None) -> None:
        self.checkpoints, self.until = checkpoints, until
        self.stop_requested = False
        """Whoever sets it makes the training save and stop after the step under way."""

    def restore(self, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
        """Begin an attempt, and go on from the furthest checkpoint that is sound."""
        self.checkpoints.claim()
        for complaint in self.checkpoints.tidy():
            log.warning("%s", complaint)
        self._kept = self.checkpoints.names()[::-1]
        found, _ = self.checkpoints.newest()
        return load_state(found, net, optimizer) if found else TrainState()

    def save(self, net: FCN, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Write a checkpoint; those that are no longer needed go."""
        self.checkpoints.check()
        with self.checkpoints.draft(state.step) as folder:
            save_state(folder, net, optimizer, state)
        self._kept.append(f"{self.checkpoints.attempt}/checkpoint_{state.step:09d}")
        while len(self._kept) > KEPT:
            self.checkpoints.remove(self._kept.pop(0))

    def noticed(self, step: int) -> bool:
        """Whether this process has a reason to poll after a step."""
        return step == self.until or self.stop_requested

    def poll(self, step: int) -> ControlAction:
        """What to do after a step for which there was a reason to ask: stop."""
        return "stop"


def _order(attempt: str) -> tuple[int, str]:
    """The attempts' order: by number; by chance between those that began in the same moment."""
    matched = ATTEMPT.fullmatch(attempt)
    assert matched is not None
    return int(matched[1]), matched[2]


def _complaint(found: _Found, wrong: str) -> str:
    return f"{found.name} is damaged and left out: {wrong}"
