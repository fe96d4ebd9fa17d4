"""Results by fingerprint on any file system: published whole or not at all, computed once.

    KIND/KEY/manifest.json      written last: what makes the files below a result; names their hashes
    KIND/KEY/UPLOAD/...         the files; an upload that was cut short has no manifest and is none
    runs/NAME/result.json       the keys of the last flow of that name, and the net that it trained
    runs/NAME/KEY/...           checkpoints of a phase
    searches/NAME/...           what a search remembers

A folder and a bucket are the same to it. What lies in a bucket is copied to the cache of the machine
that uses it. A lock excludes the processes of one machine (or of all that share a folder); two machines
that want the same result of a bucket at the same time both compute it, and the first manifest wins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.storage.cache import Cache, cache_folder
from pipeline.storage.disk import full_disk_explained
from pipeline.storage.locks import Lock, wait_for
from pipeline.storage.object_store import FileDigest, ObjectStore

MANIFEST, RECORD = "manifest.json", "result.json"
UPLOAD, OBJECTS = "upload", "objects"
"""Keys of a manifest: the folder of its files, and by the name of each file its sha256 and size."""
COMPUTED = "is being computed by %s; waiting for its result"


def fingerprint(*parts: object) -> str:
    """Hash of plain values: the same parts give the same fingerprint on any machine."""
    plain = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StoredFile:
    """A result (`kind/key`) or a file of one (`kind/key/name`), to be used on any machine."""

    store: Store
    path: str

    def localize(self) -> Path:
        """Its path on this machine; it is downloaded and verified first if need be."""
        return self.store.localize(self.path)

    @property
    def size_bytes(self) -> int:
        """The size of a file, wherever it is."""
        kind, key, name = self.path.split("/", 2)
        return self.store.digests(kind, key)[name].size_bytes


File = Path | StoredFile


def localize(file: File) -> Path:
    """The path on this machine of a file in a store, or of one that is here anyway."""
    return file if isinstance(file, Path) else file.localize()


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


class Store:
    """`datasets/`, `weights/`, `nets/`, `scores/`, `models/` by fingerprint; `runs/` by name."""

    def __init__(self, root: Path | str) -> None:
        self.files = ObjectStore(root)
        self.cache = self.files.local or cache_folder(self.files.uri)
        """This machine's folder: the root itself, or what this machine keeps of a bucket."""
        self._inputs: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, tuple[str, dict[str, FileDigest]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.files.uri,), {"_inputs": self._inputs}

    def __str__(self) -> str:
        return self.files.uri

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder, which words for the user may depend on."""
        return self.files.local is not None

    # --- results

    def published(self, kind: str, key: str) -> dict[str, Any] | None:
        """The manifest of a result, None if there is none."""
        return self.read_json(f"{kind}/{key}/{MANIFEST}")

    def stored(self, kind: str, key: str, name: str | None = None) -> StoredFile:
        """A result or a file of one, for whatever machine uses it."""
        return StoredFile(self, f"{kind}/{key}" + (f"/{name}" if name else ""))

    def localize(self, path: str) -> Path:
        """A result (`kind/key`) or a file of one (`kind/key/name`), on this machine.

        Raises:
            StoreError: it is not in the store, or it is damaged there.
        """
        kind, key, *names = path.split("/", 2)
        digests = self.digests(kind, key)
        upload = f"{kind}/{key}/{self._digests[f'{kind}/{key}'][0]}"
        if unknown := [name for name in names if name not in digests]:
            raise StoreError(f"{self}: {kind}/{key} has no file {unknown[0]}")
        if not self.is_local:
            cache = Cache(self.files, self.cache)
            for name in names or digests:
                with full_disk_explained(self.cache, self.cache / upload, path):
                    cache.fetch(f"{upload}/{name}", digests[name], f"{kind}/{key}/{MANIFEST}")
        return self.cache / "/".join((upload, *names))

    def digests(self, kind: str, key: str) -> dict[str, FileDigest]:
        """The files of a result, by name.

        Raises:
            StoreError: there is no such result.
        """
        path = f"{kind}/{key}"
        if path not in self._digests:
            manifest = self.published(kind, key)
            if manifest is None:
                raise StoreError(f"{self} has no {path}; type the same command again to make it")
            files = {name: FileDigest(**digest) for name, digest in manifest[OBJECTS].items()}
            self._digests[path] = manifest[UPLOAD], files
        return self._digests[path][1]

    def address(self, name: str) -> str:
        """The URI by which a user finds what lies under a name."""
        return self.files.address(name)

    def set_inputs(self, key: str, stage: str, inputs: Sequence[str]) -> None:
        """Let the manifest of a key say which stage made it, from the results of which keys."""
        self._inputs[key] = {"stage": stage, "inputs": list(inputs)}

    @contextmanager
    def publish(self, kind: str, key: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """A folder to write into, which becomes the result when the block ends without an error.

        The manifest may be filled inside the block. If another process published the same key
        first, its result stays.

        Raises:
            StoreError: the disk is full; nothing is published, nothing is left.
        """
        upload = f"{kind}/{key}/{uuid.uuid4().hex[:8]}"
        draft, published = self.cache / upload, False
        try:
            with full_disk_explained(self.cache, draft, f"{kind}/{key}"):
                draft.mkdir(parents=True)
                yield draft
                published = self._complete(kind, key, draft, manifest)
        finally:
            if not published:
                shutil.rmtree(draft, ignore_errors=True)
                with suppress(StoreError):  # what is in the way of that was already said
                    self.files.remove_folder(upload)

    def _complete(self, kind: str, key: str, draft: Path, manifest: dict[str, Any]) -> bool:
        """Upload what is not uploaded yet, then the manifest; False if there is one by now."""
        digests = dict(manifest.get(OBJECTS, {}))
        for path in sorted(p for p in draft.rglob("*") if p.is_file()):
            name = path.relative_to(draft).as_posix()
            if name not in digests:
                target = path.relative_to(self.cache).as_posix()
                digests[name] = self.files.put(path, target)._asdict()
        self._digests.pop(f"{kind}/{key}", None)
        if self.published(kind, key) is not None:
            return False
        origin = self._inputs.get(key, {})
        self.write_json(
            f"{kind}/{key}/{MANIFEST}", manifest | origin | {UPLOAD: draft.name, OBJECTS: digests}
        )
        return True

    def stage_file(self, draft: Path, name: str) -> StagedFile:
        """A file of a draft that a task writes, on whatever machine it runs."""
        return StagedFile(self.files, draft.relative_to(self.cache).as_posix(), name)

    def remove(self, name: str) -> None:
        """Remove a folder; a result is none from the first moment on, however this ends.

        Raises:
            StoreError: the system does not allow it.
        """
        try:
            self.files.remove(f"{name}/{MANIFEST}")
            self.files.remove_folder(name)
            shutil.rmtree(self.cache / name, ignore_errors=True)
        except OSError as error:
            raise StoreError(
                f"{self}/{name} could not be removed: {error}; mend that and type the same command again"
            ) from error

    # --- locks

    def lock(self, key: str) -> Lock:
        """A lock, not yet held; `compute_once` and `flow_lock` take the right ones."""
        return Lock(self.cache / "locks" / f"{key}.lock")

    @contextmanager
    def compute_once(self, kind: str, key: str, name: str) -> Iterator[dict[str, Any] | None]:
        """The manifest of a result; or None, and within the block nobody else computes it.

        Whoever wants a result that is being computed waits for it, and no longer than for it.
        """
        lock = self.lock(key)

        def exists() -> bool:
            return self.published(kind, key) is not None

        if not exists() and wait_for(lock, f"{name} {COMPUTED}", exists):
            try:
                yield self.published(kind, key)
            finally:
                lock.free()
        else:
            yield self.published(kind, key)

    @contextmanager
    def flow_lock(self, key: str) -> Iterator[None]:
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
    def exclusive(self) -> Iterator[None]:
        """The block of a cleaning: flows that would begin now on this machine wait.

        Raises:
            StoreError: a flow is at work, or no flow ever was.
        """
        locks = self.cache / "locks"
        if not locks.is_dir() and not any(map(self.record, self.files.folders("runs"))):
            raise StoreError(
                f"there is no store in {self}: no flow has worked there; name one with --store"
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
            f"{self} is in use: {key} is held by {lock.holder()}; nothing is removed while "
            "a flow is at work. Type the command again when it has ended"
        )

    # --- runs

    def checkpoints(self, run: str, key: str) -> str:
        """The name of the folder of a phase's checkpoints, trained under the name of a run."""
        return f"runs/{run}/{key}"

    def marker(self, run: str, key: str) -> Marker:
        """Set once MLflow has all that is to be logged of a phase or an evaluation."""
        return Marker(self.files, f"runs/{run}/{key}.tracked")

    def record(self, name: str) -> dict[str, Any] | None:
        """What is remembered of a run: `steps`, the keys of its flow by name, and `net`."""
        return self.read_json(f"runs/{name}/{RECORD}")

    def begin_run(self, name: str, steps: Mapping[str, str]) -> None:
        """Remember that a flow of this name begins: its keys are in use from now on."""
        self._remember(name, steps=dict(steps))

    def remember_net(self, name: str, kind: str, key: str) -> None:
        """Remember the net that a run of this name trained last; `run:NAME` finds it."""
        self._remember(name, net=f"{kind}/{key}")

    def _remember(self, name: str, **facts: object) -> None:
        lock = self.lock(f"run-{name}")
        wait_for(lock, f"run:{name} is being written down by %s; waiting for its end")
        try:
            self.write_json(f"runs/{name}/{RECORD}", (self.record(name) or {}) | facts)
        finally:
            lock.free()

    # --- small documents

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small document, None if there is none.

        Raises:
            StoreError: it is not what was written.
        """
        content = self.files.read(name)
        try:
            return None if content is None else dict(json.loads(content))
        except ValueError as error:
            raise StoreError(
                f"{self}/{name} is not what was written: {error}; remove it, and the same command "
                "makes it again"
            ) from error

    def write_json(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a small document, whole or not at all."""
        with full_disk_explained(self.cache, self.cache / name, name):
            self.files.write(name, json.dumps(facts, indent=1).encode())
