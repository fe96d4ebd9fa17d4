"""The classifiers by name: how each is built, and which published weights fit it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fcn.backbones.table import FAMILIES, Family, Preprocessing, require_backbone


@dataclass(frozen=True)
class Classifier:
    """A row of the table, ready to build."""

    name: str
    family: Family

    def build(self) -> nn.Module:
        """The classifier with its own random initialisation."""
        net: nn.Module = _imported(self.family.build)(self.name, **self.family.options)
        return net

    @cached_property
    def torchvision_weights(self) -> str | None:
        """Torchvision's enum of the best published weights, with their address and hash."""
        if self.family.weights != "torchvision":
            return None
        return str(_default_weights(self.name))

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What the published weights were trained to see, as their own transforms say."""
        if self.family.preprocessing:
            return self.family.preprocessing
        transforms = _default_weights(self.name).transforms()
        return Preprocessing("RGB", 1 / 255, tuple(transforms.mean), tuple(transforms.std))

    def known_names(self) -> dict[str, str] | None:
        """The names in a published file that differ from the names here: theirs to ours."""
        if self.family.known_names is None:
            return None
        names: dict[str, str] = _imported(self.family.known_names)(self.name)
        return names


BACKBONES = {name: Classifier(name, family) for family in FAMILIES for name in family.names}


def classifier_of(name: str) -> Classifier:
    """Return the entry of BACKBONES; the error names those that are near."""
    return BACKBONES[require_backbone(name)]


def torchvision_net(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - torchvision's own
    """A classifier of torchvision by its name there."""
    # Imported for those nets alone: with it comes torch.compile, seconds for each process of a flow.
    from torchvision.models import get_model  # noqa: PLC0415

    with _CountsOnCPU():
        net: nn.Module = get_model(name, **options)
    return net


class _CountsOnCPU(TorchFunctionMode):
    """RegNets compute their widths with tensors, which the meta device does not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)


def densenet_names(name: str) -> dict[str, str]:
    """Files of torchvision write norm.1 and conv.2 where its DenseNets now have norm1 and conv2."""
    with torch.device("meta"):
        own = torchvision_net(name).state_dict()
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): key for key in own}


def _default_weights(name: str) -> Any:  # noqa: ANN401 - torchvision's WeightsEnum
    from torchvision.models import get_model_weights  # noqa: PLC0415 - as above

    return get_model_weights(name).DEFAULT


def _imported(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)
