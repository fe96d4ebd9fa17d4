"""A real MLflow server for tests, which can go away and come back."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

START_S = 180.0


class Server:
    """`mlflow server` over a database in a folder, on one port, as often as it is started."""

    def __init__(
        self, folder: Path, flags: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.flags, self.env = folder, flags, env or {}
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        what = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        what += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, *what, *self.flags],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ends_at = time.monotonic() + START_S
        while not self.answers():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < ends_at, "the server did not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        with suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        return False

    def require(self) -> None:
        if not self.answers():
            self.start()

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
