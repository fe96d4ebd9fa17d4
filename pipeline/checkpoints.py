"""All that is needed to go on: weights, optimiser, cursor; to and from a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fcn.nets import FCN
from fcn.weights import NET, save_net

OPTIMIZER = "optimizer.pt"
CURSOR = "cursor.json"


@dataclass(frozen=True)
class Cursor:
    """Where training stands. Order, augmentation and dropout follow from it and the seed."""

    step: int = 0
    """Optimiser steps done in this phase."""
    history: tuple[tuple[int, dict[str, float]], ...] = ()
    """All metrics so far, by step: a resume tells them again, so that none is lost that was still on
    its way when the driver died. A few hundred bytes a step."""


def save_state(folder: Path, net: FCN, optimizer: torch.optim.Optimizer, cursor: Cursor) -> None:
    """A checkpoint."""
    save_net(folder, net)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    (folder / CURSOR).write_text(json.dumps(asdict(cursor)))


def load_state(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> Cursor:
    """Put a checkpoint's weights and optimiser state in place; its cursor says where to go on."""
    net.load_state_dict(load_file(folder / NET))
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state)
    plain = json.loads((folder / CURSOR).read_text())
    return Cursor(plain["step"], tuple((step, metrics) for step, metrics in plain["history"]))
