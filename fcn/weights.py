"""Nets on disk: weights as safetensors, beside them all that is needed to build the net again."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fcn.images import InputRule
from fcn.labels import ClassTable
from fcn.nets import FCN, Blueprint

NET = "net.safetensors"
ABOUT = "net.json"
MAX_ABOUT_BYTES = 10**7


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of tensors; nothing in the file is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is a pickle of more than tensors, which could run code when opened, so it was "
            "not; save a plain state dict: torch.save(net.state_dict(), path)"
        ) from error
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        raise ValueError(f"{path} is not a readable weights file: {_words(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ValueError(
            f"{path} holds no state dict of tensors by name; save net.state_dict() into it"
        )
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
    if not (folder / NET).is_file():
        raise ValueError(f"{folder} holds no net: {NET} is missing; copy the whole folder again")
    if file_sha256(folder / NET) != about.get("sha256"):
        raise ValueError(
            f"{folder / NET} is not the file that was written: its sha256 differs from that in "
            f"{ABOUT}; copy the whole folder again"
        )
    state = read_weights(folder / NET)
    try:
        blueprint = Blueprint.from_json(about["blueprint"])
        if [blueprint.num_classes] != list(state["score.32.bias"].shape):
            raise ValueError(f"the weights are not those of {blueprint.num_classes} classes")
        net = FCN(blueprint)
        net.load_state_dict(state)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{folder / ABOUT} does not describe the weights beside it ({_words(error)}); copy the "
            "whole folder again"
        ) from error
    return net.eval()


def read_about(folder: Path) -> dict[str, Any]:
    """The description beside the weights.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(f"{folder} holds no net: {ABOUT} is missing; give a folder of save_net")
    try:
        if path.stat().st_size > MAX_ABOUT_BYTES:
            raise ValueError(f"it is larger than {MAX_ABOUT_BYTES:,} bytes")
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({_words(error)}); copy the whole folder again"
        ) from error


def describe(folder: Path, **about: Any) -> None:  # noqa: ANN401 - plain JSON values
    """Change the description beside the weights."""
    (folder / ABOUT).write_text(json.dumps(read_about(folder) | about, indent=1))


def class_table(about: dict[str, Any]) -> ClassTable:
    """The classes that a trained net was saved with.

    Raises:
        ValueError: it has none, or they are damaged.
    """
    try:
        plain = about["classes"]
        colours = [*plain["colours"], plain["void_colour"]]
        if not all(len(colour) == 3 and {*colour} <= {*range(256)} for colour in colours):
            raise ValueError("a colour is no [R, G, B] of 0 to 255")
        rgb = tuple((r, g, b) for r, g, b in colours)
        return ClassTable(tuple(map(str, plain["names"])), rgb[:-1], rgb[-1])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{ABOUT} lists no classes ({_words(error)}); give a net that was trained, unchanged"
        ) from error


def _words(error: BaseException) -> str:
    """The first line of what an error says, and of which kind it is."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def input_rule(about: dict[str, Any]) -> InputRule:
    """How images are read for a net that was saved; as they are stored if it does not say."""
    plain = about.get("input", {})
    low_high = plain.get("range")
    return InputRule(tuple(low_high) if low_high else None, plain.get("max_side_px"))


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
