"""All that a training needs to go on: weights, optimiser and TrainState, to and from one folder.

The folder's manifest is written last and names the sha256 of every file. What a killed writer or a
bad disk leaves behind does not match its manifest, so `damage` finds it.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fcn.nets import FCN
from fcn.weights import NET, file_sha256, save_net

BEST = "best.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "train_state.json"
HISTORY = "history.arrow"
MANIFEST = "manifest.json"

Metrics = dict[str, float]
Row = tuple[int, Metrics]


class History:
    """All metrics so far by step, at 16 bytes a number.

    A resumed training sends them once more, so that none is lost that was still on its way to MLflow
    when the driver died.
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def add(self, step: int, metrics: Metrics) -> None:
        """Add what was measured after a step."""
        for key, value in metrics.items():
            steps, values = self._columns.setdefault(key, (array("q"), array("d")))
            steps.append(step)
            values.append(value)

    def rows(self) -> list[Row]:
        """Return the metrics of each step, in the order of the steps."""
        by_step: dict[int, Metrics] = {}
        for key, (steps, values) in self._columns.items():
            for step, value in zip(steps, values, strict=True):
                by_step.setdefault(step, {})[key] = value
        return sorted(by_step.items(), key=lambda row: row[0])

    def write(self, path: Path) -> None:
        """Write an Arrow file with the columns key, step and value."""
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
        """Read what `write` wrote."""
        return cls.parse(path.read_bytes())

    @classmethod
    def parse(cls, content: bytes) -> History:
        """Read the content of a file that `write` wrote."""
        history, table = cls(), pa.ipc.open_file(pa.BufferReader(content)).read_all()
        columns = [table[name].to_pylist() for name in ("key", "step", "value")]
        for key, step, value in zip(*columns, strict=True):
            history.add(step, {key: value})
        return history


@dataclass(frozen=True)
class BestNet:
    """The net with the best validation so far."""

    step: int
    metrics: Metrics
    weights: dict[str, Tensor]
    """They are on the CPU."""


@dataclass
class TrainState:
    """Where a training stands. Order, augmentation and dropout follow from the step and the seed."""

    step: int = 0
    """Optimiser steps done in this phase."""
    best: BestNet | None = None
    history: History = field(default_factory=History)

    def beaten_by(self, metrics: Metrics) -> bool:
        """Whether a validation is better than the best so far."""
        return self.best is None or metrics["val/mean_iu"] > self.best.metrics["val/mean_iu"]


def save_state(folder: Path, net: FCN, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Write a checkpoint into an empty folder, its manifest last.

    The best net has a file of its own only where it is not the net of this step.
    """
    save_net(folder, net)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    state.history.write(folder / HISTORY)
    best = state.best
    if best and best.step != state.step:
        save_file(best.weights, folder / BEST)
    plain = {"best": best and {"step": best.step, "metrics": best.metrics}}
    (folder / STATE).write_text(json.dumps(plain))
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"step": state.step, "files": files}))


def load_state(folder: Path, net: FCN, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load a checkpoint's weights and optimiser state; return where to go on.

    Learning rates and weight decays stay as the recipe has them, whatever the checkpoint says.
    """
    net.load_state_dict(load_file(folder / NET))
    saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    return TrainState(step_of(folder), read_best(folder), History.read(folder / HISTORY))


def step_of(folder: Path) -> int:
    """Return how many steps were done when the checkpoint was written."""
    return step_in((folder / MANIFEST).read_text())


def step_in(manifest: str | bytes) -> int:
    """Return how many steps a checkpoint holds, by its manifest.

    Raises:
        ValueError, KeyError, TypeError: it is no manifest.
    """
    return int(json.loads(manifest)["step"])


def read_best(folder: Path) -> BestNet | None:
    """Return the best net that a checkpoint holds, None before the first validation."""
    best = json.loads((folder / STATE).read_text())["best"]
    if best is None:
        return None
    own_file = folder / BEST
    weights = load_file(own_file if own_file.exists() else folder / NET)
    return BestNet(best["step"], best["metrics"], weights)


def damage(folder: Path) -> str | None:
    """Say why a checkpoint cannot be trusted; None if all its files are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        int(manifest["step"])
        files: dict[str, str] = manifest["files"]
        for name, sha256 in files.items():
            if file_sha256(folder / name) != sha256:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"it cannot be read ({error})"
    return None
