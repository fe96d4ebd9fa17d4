"""The files under a folder, listed once."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.sources.folder import IMAGE_SUFFIXES

LABEL_ONLY_SUFFIX = ".npy"
MOST_TEXT_BYTES = 1 << 20
MOST_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class Tree:
    """A folder and all files below it, as sorted relative paths; hidden ones and pipes are left out."""

    root: Path
    files: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """The files of a folder, through links, each real folder once."""
        found: list[str] = []
        seen: set[str] = set()
        for folder, inner, files in os.walk(root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
            below = os.path.relpath(folder, root)
            prefix = "" if below == "." else f"{below}/"
            found += [
                prefix + name
                for name in files
                if not name.startswith(".") and Path(folder, name).is_file()  # no pipe, no device
            ]
        return cls(root, tuple(sorted(found)))

    def under(self, folder: str) -> Tree:
        """The same, from a folder below."""
        if not folder:
            return self
        start = f"{folder}/"
        inner = tuple(name.removeprefix(start) for name in self.files if name.startswith(start))
        return Tree(self.root / folder, inner)

    def ending(self, *suffixes: str) -> list[str]:
        """The files with one of some endings, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def pictures(self) -> list[str]:
        """The files that may be images or label maps."""
        return self.ending(*IMAGE_SUFFIXES, LABEL_ONLY_SUFFIX)

    def base_of(self, *inside: str) -> str | None:
        """The folder nearest to the root that has a file whose path holds each of some parts."""
        tops = [_tops(self.files, part) for part in inside]
        common = set.intersection(*tops)
        return min(common, key=lambda top: (top.count("/"), top)) if common else None

    def text(self, name: str) -> str:
        """The text of a small file; empty if it is none."""
        path = self.root / name
        try:
            if path.stat().st_size > MOST_TEXT_BYTES:
                return ""
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return ""

    def json(self, name: str) -> Any:  # noqa: ANN401 - what a JSON file holds
        """What a JSON file holds; None if it is none."""
        path = self.root / name
        try:
            if path.stat().st_size > MOST_JSON_BYTES:
                return None
            return json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None


def _tops(files: tuple[str, ...], part: str) -> set[str]:
    """The folders right below which a path goes on with some text."""
    found = set()
    for name in files:
        at = f"/{name}".find(f"/{part}")
        if at >= 0:
            found.add(name[: max(0, at - 1)])
    return found
