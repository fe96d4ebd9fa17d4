"""Where results lie: a folder a fingerprint, published whole or not at all, computed once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import PipelineError, StoreError
from pipeline.storage.locks import Lock, wait_for

URI = r"^[a-z][a-z0-9+.-]*://"
"""How the URI of a store begins."""
KINDS = {
    "ingest": "datasets",
    "transplant": "weights",
    "finetune": "nets",
    "evaluate": "scores",
    "register": "models",
}
"""The folder of each stage's results."""
MANIFEST, RECORD = "manifest.json", "result.json"
OBJECTS = "objects"
"""In a manifest: by the name of each file, its object, sha256 and size."""
DRAFT = ".draft-"
COMPUTED = "is being computed by %s; waiting for its result"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fingerprint(*parts: object) -> str:
    """Hash of plain values; equal parts in, equal fingerprint out, on any machine."""
    plain = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


class Held(Protocol):
    """A result or a file of one, on whatever machine it is used."""

    def here(self) -> Path:
        """Its path on this machine; it is fetched first if need be."""


Place = Path | Held


def here(place: Place) -> Path:
    """The path on this machine of what lies in a store, shared or not."""
    return place if isinstance(place, Path) else place.here()


class Part:
    """A file of a draft that a task writes; all machines share the draft's disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects: dict[str, Any] = {}
        """What the manifest must say of it under `OBJECTS`, once it is written."""

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Where to write it; after the block it is where it belongs."""
        yield self.path


class Mark:
    """A marker: a file that says that something was done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether it was done."""
        return self.path.is_file()

    def set(self) -> None:
        """It is done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def clear(self) -> None:
        """It is to be done again."""
        self.path.unlink(missing_ok=True)


class Store:
    """`datasets/`, `weights/`, `nets/`, `scores/`, `models/` by fingerprint; `runs/` by name."""

    def __init__(self, root: Path | str) -> None:
        if ":/" in str(root):
            raise StoreError(
                f"{root} is not a folder; gc, drills and searches do not work on object stores yet, "
                "give them a store in a folder"
            )
        self.root = Path(root).absolute()
        self._origins: dict[str, dict[str, Any]] = {}

    def __str__(self) -> str:
        return str(self.root)

    def folder(self, kind: str, key: str) -> Path:
        """Where a result lies, or will."""
        return self.root / kind / key

    def checkpoints(self, run: str, key: str) -> Path:
        """Where a phase's checkpoints lie, trained under the name of a run."""
        return self.folder("runs", run) / key

    def begun(self, run: str, key: str) -> bool:
        """Whether a phase has checkpoints, or will soon."""
        return self.checkpoints(run, key).is_dir()

    def published(self, kind: str, key: str) -> dict[str, Any] | None:
        """The manifest of a result, None if there is none."""
        return self._read(f"{kind}/{key}/{MANIFEST}")

    def local(self, kind: str, key: str, *names: str) -> Path:
        """The folder of a result on this machine, with all its files or with these."""
        return self.folder(kind, key)

    def holds(self, kind: str, key: str, name: str) -> bool:
        """Whether a result that is there has a file of this name."""
        return (self.folder(kind, key) / name).is_file()

    def uri(self, path: Path) -> str:
        """What users find a result by."""
        return path.as_uri()

    def mark(self, run: str, key: str) -> Mark:
        """Left once MLflow has been told all of a phase or an evaluation."""
        return Mark(self.folder("runs", run) / f"{key}.tracked")

    def anywhere(self, path: Path) -> Place:
        """What a task on another machine finds a result or a file of one by."""
        return path

    def part(self, draft: Path, name: str, *, written: bool = False) -> Part:
        """A file of a draft for a task to write, or to change what another one wrote."""
        return Part(draft / name)

    def expect(self, key: str, stage: str, inputs: Sequence[str]) -> None:
        """What the manifest of a key will say of where it came from: the keys that it was made of."""
        self._origins[key] = {"stage": stage, "inputs": list(inputs)}

    @contextmanager
    def publish(self, kind: str, key: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """A folder to write into, which becomes the result when the block ends without an error.

        The manifest may be filled inside the block; it is written last, and the folder is renamed
        into place in one step. If another process published the same key first, its result stays.

        Raises:
            StoreError: the disk is full; nothing is published, nothing is left.
        """
        draft = self.folder(kind, f"{DRAFT}{key}-{uuid.uuid4().hex[:8]}")
        try:
            with self._room(draft, f"{kind}/{key}"):
                draft.mkdir(parents=True)
                yield draft
                self._complete(kind, key, draft, manifest | self._origins.get(key, {}))
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _complete(self, kind: str, key: str, draft: Path, manifest: dict[str, Any]) -> None:
        """Make a draft the result, unless there is one."""
        target = self.folder(kind, key)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if not (target / MANIFEST).is_file():
            if target.exists():  # without a manifest it is no result, but in the way of one
                shutil.rmtree(target)
            draft.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a folder; a result is none from the first moment on, however this ends.

        Raises:
            StoreError: the system does not allow it.
        """
        draft = path.with_name(f"{DRAFT}{path.name.removeprefix(DRAFT)}-{uuid.uuid4().hex[:8]}")
        try:
            path.rename(draft)
            shutil.rmtree(draft)
        except OSError as error:
            raise StoreError(
                f"{path} could not be removed: {error}; mend that and type the same command again"
            ) from error

    def lock(self, key: str) -> Lock:
        """Not yet held; `turn` and `flow` take the right ones."""
        return Lock(self.root / "locks" / f"{key}.lock")

    @contextmanager
    def turn(self, kind: str, key: str, name: str) -> Iterator[dict[str, Any] | None]:
        """The manifest of a result; or None, and within the block nobody else computes it.

        Whoever wants a result that is being computed waits for it, and no longer than for it.
        """
        lock = self.lock(key)

        def there() -> bool:
            return self.published(kind, key) is not None

        if not there() and wait_for(lock, f"{name} {COMPUTED}", there):
            try:
                yield self.published(kind, key)
            finally:
                lock.free()
        else:
            yield self.published(kind, key)

    @contextmanager
    def flow(self, key: str) -> Iterator[None]:
        """The block of a flow whose last step has this key; the same flow elsewhere waits.

        Every flow holds its lock before it passes the cleaning's, and the cleaning holds its own
        before it looks at the flows': neither can miss the other.
        """
        lock, cleaning = self.lock(f"flow-{key}"), self.lock("gc")
        wait_for(lock, "the same flow is being run by %s; waiting for its result")
        try:
            wait_for(cleaning, "the store is being cleaned by %s; waiting for its end")
            cleaning.free()
            yield
        finally:
            lock.free()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The block of a cleaning: flows that would begin now wait.

        Raises:
            StoreError: a flow is at work, or no flow ever was.
        """
        locks = self.root / "locks"
        if not locks.is_dir():
            raise StoreError(
                f"there is no store in {self.root}: no flow has worked there; name one with --store"
            )
        cleaning = self.lock("gc")
        if not cleaning.take():
            raise self._in_use("gc", cleaning)
        try:
            for key in sorted(path.stem for path in locks.glob("*.lock") if path.stem != "gc"):
                lock = self.lock(key)
                if not lock.take():
                    raise self._in_use(key, lock)
                lock.free()
            yield
        finally:
            cleaning.free()

    def _in_use(self, key: str, lock: Lock) -> StoreError:
        return StoreError(
            f"{self.root} is in use: {key} is held by {lock.holder()}; nothing is removed while "
            "a flow is at work. Type the command again when it has ended"
        )

    def record(self, name: str) -> dict[str, Any] | None:
        """What is remembered of a run: `steps`, the keys of its flow by name, and `net`."""
        return self._read(f"runs/{name}/{RECORD}")

    def begin_run(self, name: str, steps: Mapping[str, str]) -> None:
        """A flow of this name begins: its keys are referred to from now on, the last net still is."""
        self._remember(name, steps=dict(steps))

    def remember_run(self, name: str, net: Path) -> None:
        """The net that a run of this name trained last; `run:NAME` finds it."""
        self._remember(name, net=str(net.relative_to(self.root)))

    def _remember(self, name: str, **facts: object) -> None:
        lock = self.lock(f"run-{name}")
        wait_for(lock, f"run:{name} is being written down by %s; waiting for its end")
        try:
            self._write(f"runs/{name}/{RECORD}", (self.record(name) or {}) | facts)
        finally:
            lock.free()

    def _read(self, name: str) -> dict[str, Any] | None:
        """A small file of facts, None if there is none.

        Raises:
            StoreError: it is not what was written.
        """
        try:
            text = self._text(name)
            return None if text is None else dict(json.loads(text))
        except ValueError as error:
            raise StoreError(
                f"{self}/{name} is not what was written: {error}; remove it, and the same command "
                "makes it again"
            ) from error

    def _text(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text()
        except FileNotFoundError:
            return None

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        path = self.root / name
        draft = path.with_suffix(".tmp")
        with self._room(draft, name):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(facts, indent=1))
            draft.replace(path)

    @contextmanager
    def _room(self, draft: Path, what: str) -> Iterator[None]:
        """Say that the disk is full in our words, whatever words it was said in."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            if not says_full(error):
                raise
            raise StoreError(
                f"{self.root} has no room: {what} needs more than the "
                f"{bytes_of(draft) / 2**20:,.1f} MiB that could be written; free some "
                "(`fcn-pipeline gc` shows what nothing refers to) or set store=...; "
                "type the same command again, what is finished stays"
            ) from error


def says_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a file is full.

    Safetensors and Ray pass on the system's words, but not its number; torch has words of its own.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    words = (*map(os.strerror, FULL), "unexpected pos")
    return any(each in str(error) for each in words)


def bytes_of(path: Path) -> int:
    """The sizes of all files in a folder, or of a file; 0 if there is nothing."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())
