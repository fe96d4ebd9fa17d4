"""What lies in the store and is referred to by nothing: found here, shown, removed.

What stays: the steps and the net that a run's record names, every registered model, and whatever
these were made of, as their manifests say. Results published before manifests said so are taken to
be made of all others of that age: such go together, and only if nothing at all refers to them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pipeline.storage.store import DRAFT, KINDS, Store, bytes_of


@dataclass(frozen=True)
class Garbage:
    """A folder that can go, and why."""

    kind: str
    name: str
    path: Path
    why: str
    size_bytes: int


def find_garbage(store: Store) -> list[Garbage]:
    """Everything that can go; nothing is touched."""
    results = {kind: _published(store, kind) for kind in KINDS.values()}
    made_of = {key: inputs for found in results.values() for key, inputs in found.items()}
    named = _named(store)
    kept = reachable(named | set(results["models"]), made_of)
    useless = [
        *_drafts(store),
        *_drill(store),
        *_unreached(store, results, kept),
        *_checkpoints(store, named, results["nets"]),
    ]
    return [Garbage(kind, name, path, why, bytes_of(path)) for kind, name, path, why in useless]


def reachable(roots: Iterable[str], made_of: Mapping[str, Sequence[str] | None]) -> set[str]:
    """The roots and all that they were made of; None is made of all whose origin is None too."""
    unknown = [key for key, inputs in made_of.items() if inputs is None]
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            inputs = made_of.get(key, ())
            waiting += unknown if inputs is None else inputs
    return seen


def garbage_table(found: Iterable[Garbage]) -> Table:
    """A row for each folder."""
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


Found = Iterator[tuple[str, str, Path, str]]


def _named(store: Store) -> set[str]:
    """Keys of all steps and nets that a run's record names."""
    named: set[str] = set()
    for folder in _folders(store.root / "runs"):
        record = store.record(folder.name) or {}
        named |= set(record.get("steps", {}).values())
        named |= {Path(record["net"]).name} if "net" in record else set()
    return named


def _published(store: Store, kind: str) -> dict[str, Sequence[str] | None]:
    """What each result of a kind was made of, by key; None if its manifest does not say."""
    return {
        folder.name: manifest.get("inputs")
        for folder in _folders(store.root / kind)
        if (manifest := store.published(kind, folder.name)) is not None
    }


def _drafts(store: Store) -> Found:
    """What was being written or removed when its process was killed."""
    for place in (*KINDS.values(), "runs/*"):
        for path in sorted(store.root.glob(f"{place}/{DRAFT}*")):
            name = str(path.relative_to(store.root))
            yield "draft", name, path, "unfinished; its process is gone"


def _drill(store: Store) -> Found:
    """A drill that is over leaves its trainings to be looked at."""
    if (path := store.root / "drill").is_dir():
        yield "drill", "drill", path, "a drill that is over"


def _unreached(store: Store, results: Mapping[str, Iterable[str]], kept: Container[str]) -> Found:
    for kind, keys in results.items():
        for key in keys:
            if key not in kept:
                yield kind, key, store.folder(kind, key), "no run and no kept result refers to it"


def _checkpoints(store: Store, named: Container[str], nets: Container[str]) -> Found:
    for run in _folders(store.root / "runs"):
        for folder in _folders(run):
            name = f"{run.name}/{folder.name}"
            if folder.name in nets:
                yield "checkpoints", name, folder, "the phase has ended, its net is published"
            elif folder.name not in named:
                yield "checkpoints", name, folder, "no run's record names it"


def _folders(root: Path) -> list[Path]:
    """The folders in one, without drafts: these are nothing yet."""
    there = root.iterdir() if root.is_dir() else ()
    return sorted(p for p in there if p.is_dir() and not p.name.startswith(DRAFT))
