"""A disk that is full, said in one way whatever words it was said in; sizes of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PipelineError, StoreError
from pipeline.storage.object_store import FULL


@contextmanager
def full_disk_explained(root: Path, draft: Path, what: str) -> Iterator[None]:
    """Raise what says that the disk of `root` is full as a StoreError with the remedies."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if not says_full(error):
            raise
        raise StoreError(
            f"{root} has no room: {what} needs more than the "
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
