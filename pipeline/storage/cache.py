"""A store in an object store, of which each machine keeps what it uses.

Nothing can be renamed there. So every upload of a result is a folder of its own, and the manifest,
which is written last and names the sha256 of every file, is what makes it a result: an upload that
was cut short is none. A lock excludes the processes of one machine; two machines that want the
same result at the same time both compute it, and the first manifest wins.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import StoreError
from pipeline.storage.object_store import FileDigest, ObjectStore
from pipeline.storage.store import (
    DRAFT,
    MANIFEST,
    OBJECTS,
    URI,
    Mark,
    Part,
    Place,
    Store,
    fingerprint,
)

CACHE = "FCN_CACHE"
"""Names the folder of all mirrors of a machine, instead of ~/.cache/fcn-pipeline."""
SHARD = ".arrow"


def open_store(where: Path | str, cache_gb: float | None = None) -> Store:
    """A store by its folder or by its URI; `cache_gb` bounds the shards in each machine's mirror."""
    text = str(where)
    return MirroredStore(text, cache_gb) if re.match(URI, text) else Store(text)


def mirror_of(uri: str) -> Path:
    """This machine's folder for what it uses of a store."""
    cache = os.environ.get(CACHE)
    caches = Path(cache) if cache else Path.home() / ".cache" / "fcn-pipeline"
    return caches / fingerprint(uri)


@dataclass(frozen=True)
class Object:
    """A file of a result, as the manifest has it."""

    name: str
    """Below the store."""
    sha256: str
    size_bytes: int

    @property
    def sum(self) -> FileDigest:
        """What proves that a copy is whole."""
        return FileDigest(self.sha256, self.size_bytes)


@dataclass(frozen=True)
class Mirrored:
    """A result, or a file of one, by its path below the store; fetched where it is used."""

    store: MirroredStore
    path: str

    def here(self) -> Path:
        """Its path on this machine."""
        return self.store.fetch(self.path)

    @property
    def size_bytes(self) -> int:
        """Of a file, wherever it is."""
        return self.store.size_bytes(self.path)


def require_room(
    train: Sequence[Place], val: Sequence[Place], window: int | None, cache_gb: float | None
) -> None:
    """A training needs the shards of two windows, or all, and those of the validation.

    Raises:
        StoreError: the mirror of a node may not hold so much.
    """
    if cache_gb is None:
        return
    sizes = sorted((p.size_bytes for p in train if isinstance(p, Mirrored)), reverse=True)
    others = sum(p.size_bytes for p in val if isinstance(p, Mirrored))
    num = 2 * window if window else len(sizes)
    if (need := sum(sizes[:num]) + others) > (have := cache_gb * 1e9):
        fit = sum(total + others <= have for total in accumulate(sizes)) // 2
        remedy = f"finetune.window_shards={fit}" if fit else "smaller data.shard_rows"
        raise StoreError(
            f"cluster.cache_gb={cache_gb:g} is too small: {min(num, len(sizes))} of the {len(sizes)} "
            f"shards for training at a time and {len(val)} for validation take {need / 1e9:.3g} GB of a "
            f"node's disk; set {remedy} or a larger cluster.cache_gb"
        )


class RemoteMark(Mark):
    """An empty object that says that something was done, whichever machine did it."""

    def __init__(self, remote: ObjectStore, name: str) -> None:
        super().__init__(Path(name))
        self._remote, self._name = remote, name

    def exists(self) -> bool:
        """Whether it was done."""
        return self._remote.read(self._name) is not None

    def set(self) -> None:
        """It is done."""
        self._remote.write(self._name, b"")

    def clear(self) -> None:
        """It is to be done again."""
        self._remote.remove(self._name)


class UploadedPart(Part):
    """A file of a draft that is uploaded once it is written; whoever changes it downloads it first."""

    def __init__(self, remote: ObjectStore, prefix: str, name: str, *, written: bool) -> None:
        super().__init__(Path(name))
        self._remote, self._object, self._written = remote, f"{prefix}/{name}", written

    @contextmanager
    def open(self) -> Iterator[Path]:
        """In a folder of this machine; uploaded after the block, if that ends without an error."""
        with tempfile.TemporaryDirectory(prefix="fcn-part-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / self.path.name
            if self._written:
                self._remote.get(self._object, path)
            yield path
            done = self._remote.put(path, self._object)
            self.objects[self.path.name] = vars(Object(self._object, *done))


class MirroredStore(Store):
    """Results in an object store; `root` is this machine's mirror of it."""

    def __init__(self, uri: str, cache_gb: float | None = None) -> None:
        self.remote, self.cache_gb = ObjectStore(uri), cache_gb
        super().__init__(mirror_of(uri))
        self._known: dict[str, dict[str, Object]] = {}

    def __str__(self) -> str:
        return self.remote.uri

    def __reduce__(self) -> tuple[Any, ...]:
        return MirroredStore, (self.remote.uri, self.cache_gb), {"_origins": self._origins}

    def begun(self, run: str, key: str) -> bool:
        """Whether a phase has checkpoints."""
        return bool(self.remote.names(f"runs/{run}/{key}"))

    def local(self, kind: str, key: str, *names: str) -> Path:
        """The folder of a result on this machine, with all its files or with some."""
        for name in names or self._objects(kind, key):
            self._fetch(kind, key, name)
        return self.folder(kind, key)

    def holds(self, kind: str, key: str, name: str) -> bool:
        """Whether a result that is there has a file of this name, fetched or not."""
        return name in self._objects(kind, key)

    def uri(self, path: Path) -> str:
        """That of the object store, not that of the mirror."""
        return self.remote.address(path.relative_to(self.root).as_posix())

    def mark(self, run: str, key: str) -> Mark:
        """Seen by all machines."""
        return RemoteMark(self.remote, f"runs/{run}/{key}.tracked")

    def anywhere(self, path: Path) -> Place:
        """It is fetched to the machine that uses it."""
        return Mirrored(self, path.relative_to(self.root).as_posix())

    def fetch(self, path: str) -> Path:
        """A result (`kind/key`) or a file of it (`kind/key/name`), on this machine.

        Raises:
            StoreError: it is not in the store, or it is damaged there.
        """
        kind, key, *name = path.split("/", 2)
        self.local(kind, key, *name)
        return self.root / path

    def part(self, draft: Path, name: str, *, written: bool = False) -> Part:
        """A file of a draft, written on one machine and uploaded from there."""
        return UploadedPart(self.remote, self._prefix(draft), name, written=written)

    def _complete(self, kind: str, key: str, draft: Path, manifest: dict[str, Any]) -> None:
        """Upload what is not uploaded yet; then the manifest, unless there is one."""
        self._known.pop(f"{kind}/{key}", None)
        if self.published(kind, key) is not None:
            return
        objects = dict(manifest.get(OBJECTS, {}))
        for path in sorted(p for p in draft.rglob("*") if p.is_file()):
            name = path.relative_to(draft).as_posix()
            target = f"{self._prefix(draft)}/{name}"
            objects[name] = vars(Object(target, *self.remote.put(path, target)))
        whole = manifest | {OBJECTS: objects}
        text = json.dumps(whole, indent=1)
        if self.published(kind, key) is None:
            self.remote.write(f"{kind}/{key}/{MANIFEST}", text.encode())
            (draft / MANIFEST).write_text(text)
            with self._guard(f"{kind}/{key}"):
                shutil.rmtree(self.folder(kind, key), ignore_errors=True)
                draft.rename(self.folder(kind, key))

    def _prefix(self, draft: Path) -> str:
        """The folder of an upload, which has the name of its draft."""
        key, _, upload = draft.name.removeprefix(DRAFT).rpartition("-")
        return f"{draft.parent.name}/{key}/{upload}"

    def _text(self, name: str) -> str | None:
        content = self.remote.read(name)
        return None if content is None else content.decode()

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        self.remote.write(name, json.dumps(facts, indent=1).encode())

    def _objects(self, kind: str, key: str) -> dict[str, Object]:
        """The files of a result; those of another upload of the same key make room for them."""
        path = f"{kind}/{key}"
        if path not in self._known:
            manifest = self.published(kind, key)
            if manifest is None:
                raise StoreError(f"{self} has no {path}; type the same command again to make it")
            with self._guard(path):
                self._adopt(self.folder(kind, key), manifest)
            self._known[path] = {k: Object(**v) for k, v in manifest[OBJECTS].items()}
        return self._known[path]

    def _object(self, kind: str, key: str, name: str) -> Object:
        known = self._objects(kind, key).get(name)
        if known is None:
            raise StoreError(f"{self}: {kind}/{key} has no file {name}")
        return known

    def _adopt(self, folder: Path, manifest: dict[str, Any]) -> None:
        note = folder / MANIFEST
        if note.is_file() and json.loads(note.read_text()) == manifest:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        draft = folder / f".{MANIFEST}"
        draft.write_text(json.dumps(manifest, indent=1))
        draft.replace(note)

    def _fetch(self, kind: str, key: str, name: str) -> None:
        """One file, unless it is here; whole or not at all."""
        known = self._object(kind, key, name)
        target = self.folder(kind, key) / name
        if _is_whole(target, known):
            return
        with self._guard(f"{kind}/{key}/{name}"):
            if not _is_whole(target, known):
                self._download(known, target)
        if self.cache_gb and target.suffix == SHARD:
            with self._guard("room"):
                self._make_room(self.cache_gb * 1e9, target)

    def _make_room(self, bound_bytes: float, newest: Path) -> None:
        """Remove the shards that were asked for the longest ago, until the others fit."""
        sizes = {path: path.stat() for path in self.root.glob(f"datasets/*/*{SHARD}")}
        excess = sum(stat.st_size for stat in sizes.values()) - bound_bytes
        for path in sorted(sizes, key=lambda path: sizes[path].st_mtime_ns):
            if excess > 0 and path != newest:
                path.unlink()
                excess -= sizes[path].st_size

    def size_bytes(self, path: str) -> int:
        """Of a file of a result (`kind/key/name`)."""
        kind, key, name = path.split("/", 2)
        return self._object(kind, key, name).size_bytes

    def _download(self, known: Object, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{uuid.uuid4().hex[:8]}.part")
        try:
            for _ in range(2):  # a transfer may fail; an object that is damaged stays so
                with self._room(draft, known.name):
                    arrived = self._get(known, draft)
                if arrived == known.sum:
                    draft.replace(target)
                    return
        finally:
            draft.unlink(missing_ok=True)
        result = "/".join(known.name.split("/")[:2])
        raise StoreError(
            f"{self.remote.address(known.name)} is not what was uploaded: sha256 {arrived.sha256[:12]}, "
            f"{arrived.size_bytes} bytes instead of {known.sha256[:12]}, {known.size_bytes} bytes; "
            f"remove {result}/{MANIFEST} there, and the same command makes it again"
        )

    def _get(self, known: Object, draft: Path) -> FileDigest:
        try:
            return self.remote.get(known.name, draft)
        except FileNotFoundError:
            return FileDigest("none", 0)

    def _guard(self, path: str) -> FileLock:
        """One process of this machine at a time."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"fetch-{fingerprint(path)}.lock")


def _is_whole(path: Path, known: Object) -> bool:
    """By its size: it was proved when it came, and was not in place before; from now on it is in use."""
    with suppress(FileNotFoundError):
        if path.stat().st_size == known.size_bytes:
            os.utime(path)
            return True
    return False
