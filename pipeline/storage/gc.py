"""What lies in the store and is referred to by nothing: found here, shown, removed.

What stays: the steps and the net that a run's record names, every registered model, and whatever
these were made of, as their manifests say.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from pipeline.storage.files import ATTEMPT_MARKER, DRAFT, OBJECTS
from pipeline.storage.store import MANIFEST, UPLOAD, Store

QUARANTINE = ".quarantine.csv"
"""Ending of the list of rejected samples that an ingest leaves when it refuses a data set."""
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
    files: tuple[str, ...] = ()
    """What alone goes of it, because somebody else's files lie in it too; () is the whole folder."""


def find_garbage(store: Store, kinds: Sequence[str], models: str) -> list[Garbage]:
    """Everything that can go; nothing is touched, and nothing is listed that is not surely ours.

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
    return [
        *_unfinished(store, results),
        *_drill(store),
        *_unreached(store, results, kept),
        *_checkpoints(store, named, nets),
    ]


def find_foreign(store: Store, kinds: Sequence[str]) -> list[str]:
    """What lies among the results, checkpoints and drills of a store and is none of them."""
    found = {
        f"{kind}/{name}"
        for kind in kinds
        for key, names in _by_folder(store, kind)
        for name in _foreign_results(store, kind, key, names)
    }
    for run, names in _by_folder(store, "runs"):
        if not names or store.record(run) is None:
            found.add(f"runs/{run}")
            continue
        attempts = {
            place
            for place in {"/".join(name.split("/")[:2]) for name in names if name.count("/") > 1}
            if _is_attempt(store, f"runs/{run}/{place}")
        }
        found |= {f"runs/{run}/{n}" for n in names if "/" in n and not _within(n, attempts)}
    if store.files.names("drill") and not store.drill_marker().exists():
        found.add("drill")
    return sorted(found)


def _by_folder(store: Store, folder: str) -> Iterator[tuple[str, list[str]]]:
    """The folders in a folder with the names of their files; a file that lies beside them has none."""
    for first, names in groupby(store.files.names(folder), lambda name: name.partition("/")[0]):
        yield first, [rest for name in names if (rest := name.partition("/")[2])]


def _foreign_results(store: Store, kind: str, key: str, names: Sequence[str]) -> Iterator[str]:
    ours = _files(store, kind, key) | _drafts(store, kind, key) if names else set()
    if ours:
        yield from (f"{key}/{name}" for name in names if not _within(name, ours))
    elif not key.endswith(QUARANTINE):
        yield key


def remove(store: Store, garbage: Garbage) -> None:
    """Remove it; what lies in it and is not ours stays.

    Raises:
        StoreError: the system does not allow it.
    """
    if not garbage.files:
        store.remove(garbage.name)
    for name in garbage.files:
        store.files.remove(name)


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


def _folders(store: Store, name: str = "") -> list[str]:
    return store.files.folders(name)


def _garbage(store: Store, kind: str, name: str, why: str, ours: Container[str]) -> Garbage:
    """A folder with its size, or its files that are ours if there are others."""
    entries = store.files.entries(name)
    mine = [entry for entry in entries if _within(entry.name, ours)]
    mine.sort(key=lambda entry: entry.name != MANIFEST)  # without it a result is none
    files = () if len(mine) == len(entries) else tuple(f"{name}/{entry.name}" for entry in mine)
    return Garbage(kind, name, why, sum(entry.size_bytes for entry in mine), files)


def _within(name: str, ours: Container[str]) -> bool:
    """Whether a file is one of ours, or in a folder that is."""
    parts = name.split("/")
    return any("/".join(parts[:n]) in ours for n in range(len(parts) + 1))


def _files(store: Store, kind: str, key: str) -> set[str]:
    """The files of a result as its manifest names them; none without a manifest of ours."""
    manifest = store.published(kind, key) or {}
    if UPLOAD not in manifest:
        return set()
    return {MANIFEST, *(f"{manifest[UPLOAD]}/{name}" for name in manifest.get(OBJECTS, {}))}


def _drafts(store: Store, kind: str, key: str) -> set[str]:
    """The uploads of a result that were marked when they began, and their marks."""
    names = [name for name in store.files.names(f"{kind}/{key}") if name.endswith(DRAFT)]
    marks = {name for name in names if "/" not in name}
    return marks | {mark.removesuffix(DRAFT) for mark in marks}


def _is_attempt(store: Store, name: str) -> bool:
    """Whether a folder is what an attempt at a training writes."""
    return store.files.read(f"{name}/{ATTEMPT_MARKER}") is not None


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


def _unfinished(
    store: Store, results: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Iterator[Garbage]:
    """Uploads that were being written when their process was killed."""
    for kind, found in results.items():
        for key, manifest in found.items():
            for draft in sorted(_drafts(store, kind, key)):
                name = f"{kind}/{key}/{draft}"
                upload = draft != manifest.get(UPLOAD) and not draft.endswith(DRAFT)
                if upload and _abandoned(store, name):
                    yield _draft(store, name)


def _draft(store: Store, name: str) -> Garbage:
    entries = store.files.entries(name)
    files = (*(f"{name}/{entry.name}" for entry in entries), f"{name}{DRAFT}")
    size = sum(entry.size_bytes for entry in entries)
    return Garbage("draft", name, "unfinished; its process is gone", size, files)


def _abandoned(store: Store, name: str) -> bool:
    """On a disk the locks say that nobody is at work; in a bucket only the time does."""
    newest = max((entry.changed_s for entry in store.files.entries(name)), default=0.0)
    return store.is_local or time.time() - newest > UNFINISHED_S


def _drill(store: Store) -> Iterator[Garbage]:
    if store.drill_marker().exists():
        yield _garbage(store, "drill", "drill", "a drill that is over", ("",))


def _unreached(
    store: Store,
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    kept: Container[str],
) -> Iterator[Garbage]:
    for kind, found in results.items():
        for key, manifest in found.items():
            if key not in kept and UPLOAD in manifest:
                ours = _files(store, kind, key) | _drafts(store, kind, key)
                why = "no run and no kept result refers to it"
                yield _garbage(store, kind, f"{kind}/{key}", why, ours)


def _checkpoints(
    store: Store, named: Container[str], published: Container[str]
) -> Iterator[Garbage]:
    for run in _folders(store, "runs"):
        for key in _folders(store, f"runs/{run}"):
            name = f"runs/{run}/{key}"
            ours = [each for each in _folders(store, name) if _is_attempt(store, f"{name}/{each}")]
            if ours and key in published:
                why = "the phase has ended, its net is published"
                yield _garbage(store, "checkpoints", name, why, ours)
            elif ours and key not in named:
                yield _garbage(store, "checkpoints", name, "no run's record names it", ours)
