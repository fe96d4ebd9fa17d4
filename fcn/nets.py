"""FCN-32s, FCN-16s and FCN-8s over any backbone (Long, Shelhamer, Darrell; CVPR 2015, figure 3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.backbones import STRIDES, Preprocessing, build_backbone, classifier_of
from fcn.geometry import Geometry, align, fused
from fcn.upsample import Upscore


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a net, and to use its weights; stored beside them."""

    backbone: str
    num_classes: int
    stride: Literal[8, 16, 32]
    """The finest map that is scored: FCN-8s, 16s or 32s."""
    upscore: Literal["fixed", "learned"] = "fixed"
    border: Literal["compact", "paper"] = "compact"
    """How the net treats the border of the image.

    `paper` is the layout of the reference code: the first convolution is padded by 100 px, fc6 not at
    all, and the max pools round up. Over VGG16 the scores equal the reference net's at every size.
    GoogLeNet, ResNet and EfficientNet have no reference; there `paper` is the padding of 100 px alone,
    and the image grows by zeros at its far edges to a multiple of 32.

    `compact` is this project's own layout and no published net: the image is not padded by 100 px, it
    grows by zeros at its far edges to a multiple of 32, and fc6 is padded so that its map keeps its
    size. Far from the border both score alike; near it they do not. `compact` costs less time.
    """
    skip_scale: tuple[float, float] = (1.0, 1.0)
    """Factors on the stride 16 and stride 8 maps before they are scored; (0.01, 0.0001) over VGG16 is
    the paper's FCN-8s-atonce."""
    preprocessing: Preprocessing | None = None
    """None: that of the backbone's published weights."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Blueprint:
        """The blueprint that `to_json` wrote."""
        plain = dict(plain, skip_scale=tuple(plain["skip_scale"]))
        if plain["preprocessing"] is not None:
            pre = dict(plain["preprocessing"])
            pre |= {key: tuple(pre[key]) for key in ("mean", "deviation")}
            if {len(pre["mean"]), len(pre["deviation"])} != {3}:
                raise ValueError("mean and deviation of the preprocessing have 3 values each")
            plain["preprocessing"] = Preprocessing(**pre)
        return cls(**plain)


class FCN(nn.Module):
    """Score every stride, fuse coarse into fine, upsample to the image.

    The net takes images of any size as they are, RGB in 0..255: the preprocessing that its weights
    need is inside. All score layers start at zero, so that a new skip adds nothing at first: the finer
    net starts with the scores of the coarser one, exactly where the grids of their maps coincide, else
    within the bound in docs/exactness.md.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        known = classifier_of(blueprint.backbone)
        # Weights and preprocessing stay together: a saved net never depends on a default.
        blueprint = replace(blueprint, preprocessing=blueprint.preprocessing or known.preprocessing)
        self.blueprint = blueprint
        self.strides = [s for s in reversed(STRIDES) if s >= blueprint.stride]  # coarse to fine
        self.backbone = build_backbone(blueprint.backbone, blueprint.preprocessing)
        self.score = nn.ModuleDict(
            {str(s): _zeros(self.backbone.channels[s], blueprint.num_classes) for s in self.strides}
        )
        self.scale = dict(zip((32, 16, 8), (1.0, *blueprint.skip_scale), strict=True))
        paper = blueprint.border == "paper"
        # After a convolution, zeros that grew around the image hold relu(bias). The reference's pools
        # round up over nothing instead, so where there is a reference the pools do the same.
        self.rounds_up = paper and not known.pooled
        self.margin_px = 0 if paper else known.margin_px
        self.border_px = self._pad_as_the_paper() if paper else self._pad_fc6()
        self._align(learned=blueprint.upscore == "learned")

    def forward(self, image: Tensor) -> Tensor:
        """Score maps (N, K, H, W) float from RGB images (N, 3, H, W), uint8 or float in 0..255."""
        taps = self.backbone(self._pad(self.backbone.normalise(image)))
        fused = self.score["32"](taps[32])
        for coarse, fine in zip(self.strides, self.strides[1:], strict=False):
            skip = self.score[str(fine)](taps[fine] * self.scale[fine])
            fused = self._fuse(self.upscore[str(coarse)](fused), skip, str(coarse))
        scores = self.upscore["image"](fused)
        top = self.alignment["image"].crop_coarse
        height, width = image.shape[-2:]
        return scores[..., top : top + height, top : top + width]

    def _fuse(self, up: Tensor, skip: Tensor, at: str) -> Tensor:
        """Sum of two score maps, where both exist."""
        alignment = self.alignment[at]
        up = up[..., alignment.crop_coarse :, alignment.crop_coarse :]
        skip = skip[..., alignment.crop_fine :, alignment.crop_fine :]
        height, width = (min(up.shape[d], skip.shape[d]) for d in (-2, -1))
        return up[..., :height, :width] + skip[..., :height, :width]

    def _pad(self, x: Tensor) -> Tensor:
        """Put zeros (the mean colour) around the image.

        Unless the pools round up, the sides also grow to a multiple of 32, so that floor is ceil.
        """
        b = self.border_px
        if self.rounds_up:
            return F.pad(x, (b, b, b, b))
        grow_h, grow_w = (-(n + 2 * b) % 32 + self.margin_px for n in x.shape[-2:])
        return F.pad(x, (b, b + grow_w, b, b + grow_h))

    def _pad_as_the_paper(self) -> int:
        """Make the pools round up, and return what the first convolution's padding lacks of 100 px."""
        if self.rounds_up:
            for layer in self.backbone.trunk.modules():
                if isinstance(layer, nn.MaxPool2d):
                    layer.ceil_mode = True
        first = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
        assert isinstance(first.padding, tuple)
        return 100 - first.padding[0]

    def _pad_fc6(self) -> int:
        """Let fc6, where there is one, keep the size of its map; the image is padded by 0 px."""
        head = self.backbone.head
        for i, layer in enumerate(head):
            if isinstance(layer, nn.ZeroPad2d):
                window = next(m.kernel_size[0] for m in head if isinstance(m, nn.Conv2d))
                before, after = window // 2, (window - 1) // 2
                head[i] = nn.ZeroPad2d((before, after, before, after))
        return 0

    def _align(self, *, learned: bool) -> None:
        """Derive every kernel and every crop from where the maps lie on the image."""
        image = Geometry()
        taps = self.backbone.geometry(Geometry(offset_px=-self.border_px))
        self.alignment, self.upscore = {}, nn.ModuleDict()
        here = taps[32]
        for coarse, fine in zip(self.strides, [*self.strides[1:], 1], strict=True):
            name, target = ("image", image) if fine == 1 else (str(coarse), taps[fine])
            a = self.alignment[name] = align(here, target)
            self.upscore[name] = Upscore(
                self.blueprint.num_classes, a.kernel, a.factor, learned=learned
            )
            here = fused(target, a)
        if self.alignment["image"].crop_fine:
            raise ValueError(f"the maps of {self.blueprint} begin inside the image")


def _zeros(channels: int, num_classes: int) -> nn.Conv2d:
    score = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(score.weight)
    assert score.bias is not None
    nn.init.zeros_(score.bias)
    return score


def coarsest_map_px(blueprint: Blueprint, crop_px: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the smallest map that is batch-normalised, for images of this crop.

    Batch normalisation in training needs more than one value a channel: images of a micro-batch x
    height x width. The net runs on the meta device, so nothing is computed. None: the net has no
    batch normalisation (VGG16, AlexNet).
    """
    sizes: list[tuple[int, int]] = []

    def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
        height, width = inputs[0].shape[-2:]
        sizes.append((height, width))

    with torch.device("meta"):
        net = FCN(blueprint).eval()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(note)
        net(torch.empty(1, 3, *crop_px))
    return min(sizes, key=lambda size: size[0] * size[1], default=None)
