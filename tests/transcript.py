"""A head, a job, its stop and its resubmission on one machine, for real; prints the transcript.

    python -m tests.transcript      # what stands in docs/cluster.md

Ports, home, token and Ray's folder are its own: other Rays on this machine are left alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import tiny

ROOT = Path(__file__).parents[1]
WAIT_S = 600.0
SMALL = (
    "finetune.epochs=10",
    "finetune.validate_every_epochs=5",
    "finetune.checkpoint_every_steps=1",
)
SHOWN = (
    r"(submitted|follow|stop) +\S",
    r"\S+ (computed|unchanged) \(",
    r"\w+Error: ",
    r"\S+ goes on without you",
    r"\^C",
    r"Job '.*' was stopped",
    r"val of \d+ images",
    r"model .*@champion",
)
"""The lines that matter begin so; the others are Ray's and the progress."""
BEFORE = r"^([\d:]+)? +(INFO|WARNING) +|^[\d-]+ [\d:,]+\s(INFO|WARN) \S+ -- "
"""What the log lines of the flow and of Ray's commands begin with."""
TOKEN = "ray get-auth-token --generate"
SHOWN_ADDRESS = "http://127.0.0.1:8265"


def free_ports(number: int) -> list[int]:
    """Ports that nobody has now."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """A Ray head of two CPUs with token authentication, and the folder of someone who uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.work = folder / "store", folder / "work"
        self.temp = Path(tempfile.mkdtemp(prefix="fcn-ray-"))  # sockets lie there: a short path
        home = folder / "home"
        home.mkdir()
        self.work.mkdir()
        (self.work / "small.yaml").write_text(tiny(*SMALL, f"store={self.store}").to_yaml())
        self.ports = free_ports(7)
        self.address = f"http://127.0.0.1:{self.ports[0]}"
        outside = ("RAY_", "MLFLOW_", "PYTHONPATH")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(outside)} | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "FCN_TEST_HEAD": str(folder),  # whatever is started from here on inherits it
        }
        # Here lies the code of whoever submits; the head gets it with the job, or not at all.
        self.user = self.env | {"RAY_API_SERVER_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}

        subprocess.run(shlex.split(TOKEN), env=self.env, check=True, stdout=subprocess.DEVNULL)
        self.token = (home / ".ray" / "auth_token").read_text()

    def start(self) -> None:
        names = ("dashboard", "ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc")
        names += ("runtime-env-agent", "metrics-export")
        ports = [f"--{n}-port={p}" for n, p in zip(names, self.ports, strict=False)]
        options = [f"--port={self.ports[6]}", f"--temp-dir={self.temp}", "--num-cpus=2", *ports]
        with (self.folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(
                ["ray", "start", "--head", "--block", *options],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(self._answers, "the head did not answer")

    def stop(self) -> None:
        """By its own processes, and no others."""
        os.killpg(self.process.pid, signal.SIGKILL)
        while left := self.left():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        self.process.wait()
        shutil.rmtree(self.temp, ignore_errors=True)

    def left(self) -> list[int]:
        """The processes that stem from this head and from its user."""
        mark, found = f"FCN_TEST_HEAD={self.folder}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "head.log").read_text()
        with suppress(OSError):
            return self.get("/api/version") != b""
        return False

    def get(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.address + path, headers=headers)
        return urllib.request.urlopen(request, timeout=30).read()

    @staticmethod
    def wait(there: Callable[[], object], otherwise: str) -> None:
        ends_at = time.monotonic() + WAIT_S
        while not there():
            assert time.monotonic() < ends_at, otherwise
            time.sleep(0.2)

    def popen(self, command: str, **env: str) -> subprocess.Popen[str]:
        """A command as its user types it, with this interpreter."""
        arguments = shlex.split(command)
        if arguments[0] == "fcn-pipeline":
            arguments[:1] = [sys.executable, "-m", "pipeline"]
        return subprocess.Popen(
            arguments,
            cwd=self.work,
            env=self.user | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, **env: str) -> tuple[int, str]:
        process = self.popen(command, **env)
        output, _ = process.communicate(timeout=WAIT_S)
        return process.returncode, output

    def checkpoints(self) -> list[Path]:
        return list(self.store.glob("runs/*/*/*/checkpoint_*/manifest.json"))


@contextmanager
def head(folder: Path) -> Iterator[Head]:
    each = Head(folder)
    each.start()
    try:
        yield each
    finally:
        each.stop()


def record(head: Head) -> str:
    """The transcript: each command, the lines of its output that matter, its exit code if not 0."""
    lines: list[str] = []

    def add(command: str, code: int, output: str) -> None:
        lines.append(f"$ {command}")
        lines.extend(lines_that_matter(output.replace(head.address, SHOWN_ADDRESS)))
        if code:
            lines.extend(["$ echo $?", str(code)])

    def run(command: str) -> None:
        add(command, *head.run(command))

    lines += ["$ export RAY_AUTH_MODE=token", f"$ {TOKEN} >/dev/null"]
    lines.append("$ ray start --head --num-cpus=2")
    first = "fcn-pipeline submit small.yaml --name first"
    process = head.popen(first)
    head.wait(lambda: head.checkpoints() or process.poll() is not None, "no checkpoint appeared")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WAIT_S)
    add(first, process.returncode, output.replace("first goes on", "^C\nfirst goes on"))
    run("ray job stop first")
    run("ray job logs first")
    run("fcn-pipeline submit small.yaml --name second")
    run("fcn-pipeline submit camvid --set store=/shared/store")
    return "\n".join(lines)


def lines_that_matter(output: str) -> list[str]:
    """The lines that matter, without the clock and the colours."""
    plain = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in output.splitlines())
    texts = (re.sub(BEFORE, "", line).strip() for line in plain)
    return [text for text in texts if re.match("|".join(SHOWN), text)]


def shape(transcript: str) -> list[str]:
    """What does not change between recordings: no numbers, no fingerprints, no names of jobs."""
    text = re.sub(r"\braysubmit_\w+", "JOB", transcript)
    text = re.sub(r"\b[0-9a-f]{16}\b", "KEY", text)
    return re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "N", text).splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, head(Path(scratch)) as ray:
        sys.stdout.write(record(ray) + "\n")
