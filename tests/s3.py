"""A real S3 server on loopback: moto's."""

import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

BUCKET = "results"


class S3:
    """The server, with one bucket."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends_at = time.monotonic() + 60
        while not self._answers(port):
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < ends_at, "the server did not start"
            time.sleep(0.1)
        # Once: a second request for the bucket would empty it in the middle of the first test.
        request = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()

    def _answers(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
