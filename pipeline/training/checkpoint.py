"""All that is needed to go on: weights, optimiser, cursor; to and from a folder that proves itself.

A checkpoint's manifest is written last and names the sha256 of every file. What a killed writer or a
bad disk leaves behind does not match it, and the checkpoint before counts instead.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fcn.nets import FCN
from fcn.weights import NET, file_sha256, save_net

log = logging.getLogger(__name__)

BEST = "best.safetensors"
OPTIMIZER = "optimizer.pt"
CURSOR = "cursor.json"
HISTORY = "history.arrow"
MANIFEST = "manifest.json"
RAYS_LIST = "checkpoint_manager_snapshot.json"
KEPT = 2
"""The newest, and the one before in case the newest turns out to be damaged."""

Metrics = dict[str, float]
Row = tuple[int, Metrics]


class History:
    """All metrics so far by step, at 16 bytes a number.

    A resumed run tells them again, so that none is lost that was still on its way when the driver died.
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def add(self, step: int, metrics: Metrics) -> None:
        """What was measured after a step."""
        for key, value in metrics.items():
            steps, values = self._columns.setdefault(key, (array("q"), array("d")))
            steps.append(step)
            values.append(value)

    def rows(self) -> list[Row]:
        """Each step's metrics, in the order of the steps."""
        by_step: dict[int, Metrics] = {}
        for key, (steps, values) in self._columns.items():
            for step, value in zip(steps, values, strict=True):
                by_step.setdefault(step, {})[key] = value
        return sorted(by_step.items(), key=lambda row: row[0])

    def write(self, path: Path) -> None:
        """As an Arrow file with the columns key, step, value."""
        columns = self._columns.values()
        keys = [key for key, (steps, _) in self._columns.items() for _ in steps]
        table = pa.table(
            {
                "key": pa.array(keys, pa.string()).dictionary_encode(),
                "step": np.concatenate([np.empty(0, np.int64), *(steps for steps, _ in columns)]),
                "value": np.concatenate([np.empty(0), *(values for _, values in columns)]),
            }
        )
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, path: Path) -> History:
        """What `write` wrote."""
        history = cls()
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            columns = [table[name].to_pylist() for name in ("key", "step", "value")]
        for key, step, value in zip(*columns, strict=True):
            history.add(step, {key: value})
        return history


@dataclass(frozen=True)
class BestNet:
    """The net of the best validation so far."""

    step: int
    metrics: Metrics
    weights: dict[str, Tensor]
    """On the CPU."""


@dataclass
class TrainState:
    """Where training stands. Order, augmentation and dropout follow from it and the seed."""

    step: int = 0
    """Optimiser steps done in this phase."""
    best: BestNet | None = None
    history: History = field(default_factory=History)

    def beaten_by(self, metrics: Metrics) -> bool:
        """Whether a validation is better than the best so far."""
        return self.best is None or metrics["val/mean_iu"] > self.best.metrics["val/mean_iu"]


def save_state(
    folder: Path, net: FCN, optimizer: torch.optim.Optimizer, cursor: TrainState
) -> None:
    """A checkpoint. The best net is written apart if it is not this one."""
    save_net(folder, net)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    cursor.history.write(folder / HISTORY)
    best = cursor.best
    if best and best.step != cursor.step:
        save_file(best.weights, folder / BEST)
    plain = {"best": best and {"step": best.step, "metrics": best.metrics}}
    (folder / CURSOR).write_text(json.dumps(plain))
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"step": cursor.step, "files": files}))


def load_state(folder: Path, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and optimiser state in place; its cursor says where to go on.

    Learning rates and the like are not a checkpoint's to set: they stay as the recipe has them.
    """
    net.load_state_dict(load_file(folder / NET))
    saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    return TrainState(step_of(folder), read_best(folder), History.read(folder / HISTORY))


def step_of(folder: Path) -> int:
    """How many steps were done when it was written."""
    return int(json.loads((folder / MANIFEST).read_text())["step"])


def read_best(folder: Path) -> BestNet | None:
    """The best net that a checkpoint holds."""
    best = json.loads((folder / CURSOR).read_text())["best"]
    if best is None:
        return None
    apart = folder / BEST
    return BestNet(
        best["step"], best["metrics"], load_file(apart if apart.exists() else folder / NET)
    )


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, None if all its files are as they were written."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
        for name, sha256 in files.items():
            if file_sha256(folder / name) != sha256:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, OSError) as error:
        return f"it cannot be read ({error})"
    return None


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The furthest sound checkpoint of a phase, and what is wrong with those beyond it."""
    complaints: list[str] = []
    for folder in _furthest_first(run):
        wrong = damage(folder)
        if wrong is None:
            return folder, complaints
        complaints.append(_left_out(folder, wrong))
    return None, complaints


def tidy(run: Path) -> list[str]:
    """Before a driver begins: the two furthest sound checkpoints stay; what was wrong with others.

    Ray's own list of checkpoints goes, because Ray refuses to start if that file was cut short, was
    written by another version or names a checkpoint that is gone. A damaged checkpoint is put aside, one
    that was never finished is removed.
    """
    (run / RAYS_LIST).unlink(missing_ok=True)
    sound = 0
    complaints: list[str] = []
    for folder in _furthest_first(run):
        if sound == KEPT:
            shutil.rmtree(folder)
        elif (wrong := damage(folder)) is None:
            sound += 1
        else:
            complaints.append(_left_out(folder, wrong))
            if (folder / MANIFEST).exists():
                folder.rename(folder.with_name(f"damaged_{folder.name}"))
            else:
                shutil.rmtree(folder)
    return complaints


class LocalCheckpointManager:
    """Checkpoints of a training in this process, straight into their folder; up to a step."""

    def __init__(self, folder: Path, until: int | None = None) -> None:
        self.folder, self.until = folder, until
        self._coming = 0

    def restore(self, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
        """From the furthest checkpoint that is sound."""
        for complaint in tidy(self.folder):
            log.warning("%s", complaint)
        found, _ = newest(self.folder)
        cursor = load_state(found, net, optimizer) if found else TrainState()
        self._coming = cursor.step
        return cursor

    def save(self, net: FCN, optimizer: torch.optim.Optimizer, cursor: TrainState) -> None:
        """Its manifest is written last; those that are no longer needed go."""
        target = self.folder / f"checkpoint_{cursor.step:09d}"
        shutil.rmtree(target, ignore_errors=True)  # half written before a kill
        target.mkdir(parents=True)
        save_state(target, net, optimizer, cursor)
        for old in sorted(self.folder.glob("checkpoint_*"))[:-KEPT]:
            shutil.rmtree(old)

    def noticed(self) -> bool:
        """Whether the coming step is as far as it is to go, or somebody wants it to leave."""
        self._coming += 1
        return self._coming == self.until or self.wanted_elsewhere()

    def wish(self) -> Literal["leave"]:
        """There is but one."""
        return "leave"

    def wanted_elsewhere(self) -> bool:
        """Whether to leave before that."""
        return False


def _left_out(folder: Path, wrong: str) -> str:
    return f"{folder.name} is damaged and left out: {wrong}"


def _furthest_first(run: Path) -> list[Path]:
    """Those that cannot say their step come first, so that they are looked at and complained about."""

    def order(folder: Path) -> tuple[int, str]:
        try:
            return step_of(folder), folder.name
        except (OSError, ValueError, KeyError):
            return sys.maxsize, folder.name

    return sorted(run.glob("checkpoint_*"), key=order, reverse=True)
