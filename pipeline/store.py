"""Where results lie: a folder a fingerprint, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def fingerprint(*parts: object) -> str:
    """Hash of plain values; equal parts in, equal fingerprint out, on any machine."""
    plain = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


class Store:
    """`datasets/`, `weights/`, `nets/`, `scores/` by fingerprint; `runs/` by name."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, kind: str, key: str) -> Path:
        """Where a result lies, or will."""
        return self.root / kind / key

    def published(self, kind: str, key: str) -> dict[str, Any] | None:
        """The manifest of a result, None if there is none."""
        path = self.folder(kind, key) / MANIFEST
        return json.loads(path.read_text()) if path.is_file() else None

    @contextmanager
    def publish(self, kind: str, key: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """A folder to write into, which becomes the result when the block ends without an error.

        The manifest may be filled inside the block; it is written last, and the folder is renamed
        into place in one step. If another process published the same key first, its result stays.
        """
        target = self.folder(kind, key)
        draft = target.with_name(f".draft-{key}-{uuid.uuid4().hex[:8]}")
        draft.mkdir(parents=True)
        try:
            yield draft
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
            if not (target / MANIFEST).is_file():
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def remember_run(self, name: str, net: Path) -> None:
        """The net that a run of this name trained last; `run:NAME` finds it."""
        path = self.folder("runs", name) / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"net": str(net.relative_to(self.root))}))
