"""Temporary folders that no other user of the machine can read, gone when their process has ended."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import StoreError


def private_folder() -> Path:
    """This user's own folder among the temporary files of the machine.

    Raises:
        StoreError: something else has its name.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"fcn-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StoreError(
            f"{folder}, for temporary files, is not a folder of this user; have it removed, or name "
            "another place in TMPDIR"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def scratch_folder(purpose: str) -> Path:
    """A new folder, removed when this process ends; if it is killed, when the next one asks for one.

    A lock beside it says that its process lives, whatever the number of that process is to others.
    """
    base = private_folder()
    _sweep(base)
    folder = base / f"{purpose}-{secrets.token_hex(4)}"
    lock = FileLock(base / f"{folder.name}.lock")
    lock.acquire()
    folder.mkdir(mode=0o700)
    atexit.register(_remove, folder, lock, os.getpid())
    return folder


def _sweep(base: Path) -> None:
    for path in base.glob("*.lock"):
        lock = FileLock(path)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            _remove(path.with_suffix(""), lock, os.getpid())


def _remove(folder: Path, lock: FileLock, owner: int) -> None:
    if os.getpid() != owner:  # a fork, to which the folder does not belong
        return
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
