"""The classifiers that an FCN grows from. A new family is one row of the table in `table.py`.

`table` needs no torch; the rest is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcn.backbones.backbone import Backbone, build_backbone
    from fcn.backbones.cut import STRIDES
    from fcn.backbones.published import BACKBONES, Classifier, classifier_of
    from fcn.backbones.table import CAFFE, PREPROCESSING, TORCHVISION, Preprocessing

__all__ = [
    "BACKBONES",
    "CAFFE",
    "PREPROCESSING",
    "STRIDES",
    "TORCHVISION",
    "Backbone",
    "Classifier",
    "Preprocessing",
    "build_backbone",
    "classifier_of",
]

_MODULES = {
    "backbone": ("Backbone", "build_backbone"),
    "cut": ("STRIDES",),
    "published": ("BACKBONES", "Classifier", "classifier_of"),
    "table": ("CAFFE", "PREPROCESSING", "TORCHVISION", "Preprocessing"),
}


def __getattr__(name: str) -> object:
    """Import on first use: the names of the table alone do not need torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"fcn.backbones.{module}"), name)
    raise AttributeError(f"module 'fcn.backbones' has no attribute {name!r}")
