"""Does memory stay flat? Trains, samples every process, prints a line a minute and the trend.

    python benchmarks/memory.py --minutes 30

Two workers, a validation and checkpoints all the time, so that whatever could pile up does. PSS of each
process (its own memory and its part of what is shared), from Linux's /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import click
import numpy as np

RECIPE = (
    "data.shapes={num_train: 64, num_val: 8, num_test: 8, height_px: 48, width_px: 64}",
    "finetune.augment.crop_px=[48, 64]",
    "finetune.global_batch=8",
    "finetune.micro_batch=4",
    "finetune.epochs=100000",
    "finetune.validate_every_epochs=1",
    "finetune.checkpoint_every_steps=4",
    "cluster.address=local",
)
MARK = "FCN_MEMORY_RUN"
KINDS = {
    "ray::RayTrainWorker": "workers",
    "ray::MetricsActor": "metrics actor",
    "ray::TrainController": "controller",
    "python": "driver",
}


def sample(mark: str) -> Counter[str]:
    """PSS in MiB by kind of process, of all that inherited the mark."""
    found: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() not in (process / "environ").read_bytes():
                continue
            name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            pss = next(
                line
                for line in (process / "smaps_rollup").read_text().splitlines()
                if line.startswith("Pss:")
            )
        except (OSError, StopIteration):  # it ended meanwhile
            continue
        driver = " -m pipeline " in name
        kind = next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), "ray")
        found["driver" if driver else "ray" if kind == "driver" else kind] += (
            int(pss.split()[1]) / 1024
        )
    return found


@click.command(help=__doc__)
@click.option("--minutes", default=30, show_default=True)
@click.option("--every", default=10.0, show_default=True, help="Seconds between samples.")
def main(minutes: int, every: float) -> None:
    """Train, sample, report."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "pipeline", "finetune", "demo"]
        process = subprocess.Popen(
            [*command, *(f"--set={value}" for value in (*RECIPE, f"store={store}/store"))],
            env=os.environ | {MARK: mark},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not sample(mark)["workers"]:
                time.sleep(1)
            time.sleep(60)  # caches fill, libraries load
            rows = list(watch(process, mark, minutes, every))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(10)  # Ray's processes notice
    report(rows)


def watch(process: subprocess.Popen[bytes], mark: str, minutes: int, every: float):  # noqa: ANN201
    """Seconds and samples, with a line a minute."""
    began = told = time.monotonic()
    while (now := time.monotonic()) - began < 60 * minutes:
        assert process.poll() is None, "training ended"
        found = sample(mark)
        yield now - began, found
        if now >= told:
            told += 60
            parts = "  ".join(f"{kind} {found[kind]:,.0f}" for kind in sorted(found))
            click.echo(f"{(now - began) / 60:4.0f} min  {parts}  total {found.total():,.0f} MiB")
        time.sleep(every)


def report(rows: list[tuple[float, Counter[str]]]) -> None:
    """First and last fifth, and the slope of a line through all samples."""
    hours = np.array([seconds for seconds, _ in rows]) / 3600
    fifth = max(len(rows) // 5, 1)
    click.echo(f"{'MiB':12} {'first fifth':>12} {'last fifth':>12} {'peak':>8} {'per hour':>9}")
    for kind in [*sorted(rows[0][1]), "total"]:
        values = np.array([s.total() if kind == "total" else s[kind] for _, s in rows])
        slope = np.polyfit(hours, values, 1)[0]
        first, last = values[:fifth].mean(), values[-fifth:].mean()
        click.echo(f"{kind:12} {first:12,.0f} {last:12,.0f} {values.max():8,.0f} {slope:+9,.1f}")


if __name__ == "__main__":
    main()
