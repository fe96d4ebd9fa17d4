"""Parameter groups and learning rate schedules, as the paper's solvers have them and newer ones."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from fcn.nets import FCN


def freeze_trunk(net: FCN) -> None:
    """Train the score layers (and learned upsampling) alone: the paper's FCN-32s-fixed."""
    net.backbone.requires_grad_(False)


def parameter_groups(
    net: FCN,
    *,
    lr: float,
    weight_decay: float,
    head_lr_mult: float = 1.0,
    bias_lr_mult: float = 1.0,
    decay_biases: bool = True,
) -> list[dict[str, Any]]:
    """Groups for torch.optim: the backbone and the new layers, each with weights and biases apart.

    "Biases" are all parameters of one dimension, which batch normalisation's gains are too. The new
    layers (score, learned upscore) learn at lr * head_lr_mult. The reference solvers have
    bias_lr_mult=2 and decay_biases=False. Frozen parameters are left out.
    """
    groups: list[dict[str, Any]] = []
    for part, part_lr in (
        (net.backbone, lr),
        (net.score, lr * head_lr_mult),
        (net.upscore, lr * head_lr_mult),
    ):
        weights, biases = _by_dimension(part)
        groups.append({"params": weights, "lr": part_lr, "weight_decay": weight_decay})
        decay = weight_decay if decay_biases else 0.0
        groups.append({"params": biases, "lr": part_lr * bias_lr_mult, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["base_lr"] = group["lr"]
    return groups


def _by_dimension(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    trained = [p for p in part.parameters() if p.requires_grad]
    return [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]


def lr_factor(
    step: int,
    num_steps: int,
    *,
    kind: Literal["poly", "fixed"],
    power: float = 0.9,
    warmup_steps: int = 0,
) -> float:
    """What base learning rates are multiplied by at a step in [0, num_steps); a pure function.

    `poly` falls as (1 - step / num_steps) ** power; warm-up rises linearly over the first steps.
    """
    decay = (1 - step / num_steps) ** power if kind == "poly" else 1.0
    return decay * min(1.0, (step + 1) / (warmup_steps + 1))
