"""The data section of a recipe, and what it knows of each layout of data sets.

A new layout is a row of `LAYOUTS` here and a row of `READERS` in `pipeline/data/sources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from fcn.labels import ClassTable, Colour, voc_colour
from pipeline.config.schema import Fraction, Positive, Spec, Split


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


@dataclass(frozen=True)
class Layout:
    """What is known of a layout without looking at its files."""

    table: ClassTable | None = None
    """None if the recipe lists the classes."""
    splits: tuple[Split, ...] = ()
    """Empty if the recipe names them."""
    folders: Mapping[Split, SplitSpec] = field(default_factory=dict)
    """Where the files of each split lie; empty if the recipe says so or there are none."""


VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_SPLITS: tuple[Split, ...] = ("train", "val")
LAYOUTS = {
    "shapes": Layout(
        ClassTable(
            ("ground", "disc", "square", "triangle", "cross"),
            ((96, 96, 96), (230, 80, 60), (60, 160, 80), (240, 200, 60), (70, 110, 220)),
        ),
        ("train", "val", "test"),
    ),
    "folder": Layout(),
    "voc": Layout(
        ClassTable(VOC_NAMES, tuple(map(voc_colour, range(len(VOC_NAMES))))),
        VOC_SPLITS,
        {
            split: SplitSpec(
                images="JPEGImages",
                labels="SegmentationClass",
                list=f"ImageSets/Segmentation/{split}.txt",
            )
            for split in VOC_SPLITS
        },
    ),
}


class DataSpec(Spec):
    """What is learned from."""

    source: str
    """The layout of the data set: shapes, folder or voc."""
    root: Path | None = None
    """Folder of the data set; `shapes` has none."""
    shapes: ShapesSpec = ShapesSpec()
    splits: dict[Split, SplitSpec] = Field(default={})
    """Folders of each split; `voc` knows its own."""
    classes: tuple[ClassSpec, ...] = ()
    """The class table of a `folder`; the other sources know theirs."""
    void_ids: tuple[Annotated[int, Field(ge=0, le=255)], ...] = ()
    """Ids in the label files that are neither trained on nor scored; 255 never is."""
    max_quarantined_frac: Fraction = 0.01
    """The ingest fails if a greater share of the samples is rejected."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in LAYOUTS:
            raise ValueError(f"source={source} is no layout; known are {', '.join(LAYOUTS)}")
        return source

    @model_validator(mode="after")
    def _complete(self) -> DataSpec:
        if self._layout.table is None:
            if len(self.classes) < 2:
                raise ValueError(
                    f"classes lists {len(self.classes)}; source {self.source} needs at least 2"
                )
            self.class_table()  # refuses a name that two classes have
        elif self.classes:
            raise ValueError(
                f"classes are for source folder; {self.source} has its own table, leave them out"
            )
        if not self._layout.splits and (missing := {"train", "val"} - set(self.splits)):
            raise ValueError(f"splits lacks {', '.join(sorted(missing))}")
        return self

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.source]

    def split_names(self) -> tuple[Split, ...]:
        """The splits that the data set has."""
        return tuple(self.split_folders()) or self._layout.splits

    def split_folders(self) -> Mapping[Split, SplitSpec]:
        """Folders of each split of a source that has folders."""
        return self.splits or self._layout.folders

    def class_table(self) -> ClassTable:
        """The classes in the order of their ids."""
        if self._layout.table is not None:
            return self._layout.table
        names = tuple(c.name for c in self.classes)
        colours = tuple(c.colour or voc_colour(i) for i, c in enumerate(self.classes))
        return ClassTable(names, colours)
