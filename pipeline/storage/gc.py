"""What lies in the store and is referred to by nothing: found here, shown, removed.

What stays: the steps and the net that a run's record names, every registered model, and whatever
these were made of, as their manifests say.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.storage.store import UPLOAD, Store

UNFINISHED_S = 24 * 3600.0
"""In a bucket an upload may be another machine's at work; one that is older is nobody's any more."""


@dataclass(frozen=True)
class Garbage:
    """A folder that can go, and why."""

    kind: str
    name: str
    """Its name below the store."""
    why: str
    size_bytes: int


def find_garbage(store: Store, kinds: Sequence[str], models: str) -> list[Garbage]:
    """Everything that can go; nothing is touched.

    Args:
        store: The store to look through.
        kinds: The folders of the stages' results.
        models: The one of them whose results always stay: registered models.
    """
    results = {kind: _manifests(store, kind) for kind in kinds}
    made_of = {key: list(m["inputs"]) for found in results.values() for key, m in found.items()}
    named = _named(store)
    kept = reachable(named | set(results[models]), made_of)
    nets = {key for found in results.values() for key, m in found.items() if UPLOAD in m}
    useless = [
        *_unfinished(store, results),
        *(
            ("drill", "drill", "a drill that is over")
            for name in _folders(store)
            if name == "drill"
        ),
        *_unreached(results, kept),
        *_checkpoints(store, named, nets),
    ]
    return [Garbage(kind, name, why, _size(store, name)) for kind, name, why in useless]


def reachable(roots: Iterable[str], made_of: Mapping[str, Sequence[str]]) -> set[str]:
    """The roots and all that they were made of."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            waiting += made_of.get(key, ())
    return seen


def garbage_table(found: Iterable[Garbage]) -> Table:
    """A table with a row for each folder."""
    table = Table("kind", box=None)
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("why")
    for each in found:
        table.add_row(each.kind, each.name, megabytes(each.size_bytes), each.why)
    return table


def megabytes(size_bytes: int) -> str:
    """A size in MiB, with its unit."""
    return f"{size_bytes / 2**20:,.1f} MiB"


Found = Iterator[tuple[str, str, str]]


def _folders(store: Store, name: str = "") -> list[str]:
    return store.files.folders(name)


def _size(store: Store, name: str) -> int:
    return sum(entry.size_bytes for entry in store.files.entries(name))


def _named(store: Store) -> set[str]:
    """The keys of all steps and nets that a run's record names."""
    named: set[str] = set()
    for run in _folders(store, "runs"):
        record = store.record(run) or {}
        named |= set(record.get("steps", {}).values())
        named |= {record["net"].rpartition("/")[2]} if "net" in record else set()
    return named


def _manifests(store: Store, kind: str) -> dict[str, dict[str, Any]]:
    """The manifest of each result of a kind, by key; an unfinished one has an empty one."""
    found = {key: store.published(kind, key) for key in _folders(store, kind)}
    return {key: {"inputs": []} | (manifest or {}) for key, manifest in found.items()}


def _unfinished(store: Store, results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Found:
    """Uploads that were being written when their process was killed."""
    for kind, found in results.items():
        for key, manifest in found.items():
            for upload in _folders(store, f"{kind}/{key}"):
                name = f"{kind}/{key}/{upload}"
                if upload != manifest.get(UPLOAD) and _abandoned(store, name):
                    yield "draft", name, "unfinished; its process is gone"


def _abandoned(store: Store, name: str) -> bool:
    """On a disk the locks say that nobody is at work; in a bucket only the time does."""
    newest = max((entry.changed_s for entry in store.files.entries(name)), default=0.0)
    return store.is_local or time.time() - newest > UNFINISHED_S


def _unreached(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], kept: Container[str]
) -> Found:
    for kind, found in results.items():
        for key, manifest in found.items():
            if key not in kept and UPLOAD in manifest:
                yield kind, f"{kind}/{key}", "no run and no kept result refers to it"


def _checkpoints(store: Store, named: Container[str], published: Container[str]) -> Found:
    for run in _folders(store, "runs"):
        for key in _folders(store, f"runs/{run}"):
            name = f"runs/{run}/{key}"
            if key in published:
                yield "checkpoints", name, "the phase has ended, its net is published"
            elif key not in named:
                yield "checkpoints", name, "no run's record names it"
