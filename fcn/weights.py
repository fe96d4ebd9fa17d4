"""Nets on disk: weights as safetensors, beside them all that is needed to build the net again."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fcn.labels import ClassTable
from fcn.nets import FCN, Blueprint

NET = "net.safetensors"
ABOUT = "net.json"


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of tensors; nothing in the file is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ValueError(
            f"no weights file at {path}; give the path of a .pth, .safetensors or .npz file"
        )
    try:
        state = _opened(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is a pickle of more than tensors, which could run code when opened, so it was "
            "not; save a plain state dict: torch.save(net.state_dict(), path)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds no state dict of tensors by name; save net.state_dict() into it"
        )
    return state


def _opened(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            return state[key]
    return state


def save_net(folder: Path | str, net: FCN, **about: Any) -> None:  # noqa: ANN401 - plain JSON values
    """Write weights and description; `about` adds plain values to the description."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    save_file(state, folder / NET)
    about |= {"blueprint": net.blueprint.to_json(), "sha256": file_sha256(folder / NET)}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def load_net(folder: Path | str) -> FCN:
    """The net that `save_net` wrote, in evaluation mode.

    Raises:
        ValueError: a file is missing, or the weights are not those that were written.
    """
    folder = Path(folder)
    about = read_about(folder)
    if file_sha256(folder / NET) != about["sha256"]:
        raise ValueError(
            f"{folder / NET} is not the file that was written: its sha256 differs from that in "
            f"{ABOUT}; copy the whole folder again"
        )
    net = FCN(Blueprint.from_json(about["blueprint"]))
    net.load_state_dict(load_file(folder / NET))
    return net.eval()


def read_about(folder: Path) -> dict[str, Any]:
    """The description beside the weights.

    Raises:
        ValueError: there is none.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(f"{folder} holds no net: {ABOUT} is missing; give a folder of save_net")
    return dict(json.loads(path.read_text()))


def class_table(about: dict[str, Any]) -> ClassTable:
    """The classes that a trained net was saved with."""
    plain = about["classes"]
    return ClassTable(
        tuple(plain["names"]), tuple(map(tuple, plain["colours"])), tuple(plain["void_colour"])
    )


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
