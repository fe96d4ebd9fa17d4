"""Fully convolutional networks: the nets and their mathematics, in plain PyTorch.

A net with random weights, saved, loaded, and used on an image:

    >>> import numpy as np
    >>> from fcn import FCN, Blueprint, load_net, predict, save_net
    >>> save_net("my-net", FCN(Blueprint("resnet18", num_classes=21, stride=8)))
    >>> net = load_net("my-net")
    >>> predict(net, np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcn.backbones import BACKBONES, Preprocessing
    from fcn.inference import predict
    from fcn.labels import VOID, ClassTable
    from fcn.metrics import Confusion
    from fcn.nets import FCN, Blueprint
    from fcn.transplant import Receipt, transplant_classifier, transplant_net
    from fcn.weights import load_net, read_weights, save_net

__all__ = [
    "BACKBONES",
    "FCN",
    "VOID",
    "Blueprint",
    "ClassTable",
    "Confusion",
    "Preprocessing",
    "Receipt",
    "load_net",
    "predict",
    "read_weights",
    "save_net",
    "transplant_classifier",
    "transplant_net",
]

_MODULES = {
    "backbones": ("BACKBONES", "Preprocessing"),
    "inference": ("predict",),
    "labels": ("VOID", "ClassTable"),
    "metrics": ("Confusion",),
    "nets": ("FCN", "Blueprint"),
    "transplant": ("Receipt", "transplant_classifier", "transplant_net"),
    "weights": ("load_net", "read_weights", "save_net"),
}


def __getattr__(name: str) -> object:
    """Import on first use: torch takes seconds, and `fcn.labels` alone does not need it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"fcn.{module}"), name)
    raise AttributeError(f"module 'fcn' has no attribute {name!r}")
