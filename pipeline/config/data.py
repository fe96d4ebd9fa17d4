"""The data section of a recipe, and what it knows of each layout of data sets.

A new layout is a row of `LAYOUTS` here and a row of `READERS` in `pipeline/data/sources`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fcn.images import InputRule
from fcn.labels import VOID, ClassTable, Colour, LabelRule, voc_colour
from pipeline.config.schema import Count, Fraction, Positive, Spec, Split

VOID_NAME = "void"
"""What a label map's row says for pixels that are neither trained on nor scored."""
COLOUR = re.compile(
    r"#(?P<hex>[0-9a-fA-F]{6})|(?P<r>\d{1,3}) *, *(?P<g>\d{1,3}) *, *(?P<b>\d{1,3})"
)


class ClassSpec(Spec):
    """One class; its position in the list is its id after the ingest."""

    name: str
    colour: Colour | None = None
    """RGB in pictures, and in labels that are colours; PASCAL VOC's of that index if not given."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class SplitSpec(Spec):
    """Where a split's files lie under `data.root`."""

    images: str
    """Folder of images, or a template such as `photos/{stem}.jpg`; what {stem} stands for is the name of
    the sample and may hold slashes. Folder of parquet files for `huggingface`."""
    labels: str
    """Folder of label maps with the same names, or a template such as `photos/{stem}_mask.png`; file of
    annotations for `coco` and `labelstudio`."""
    list: str | None = None
    """Text file that names the samples of the split, one a line, with or without ending; all images if
    not given."""


class HeldOutSpec(Spec):
    """Splits that are made by taking a share of the samples of the train split."""

    val: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the samples that become the val split."""
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the samples that become the test split."""
    group: str | None = None
    """Regular expression; samples in whose names it finds the same text, such as a patient or a video,
    stay together in one split."""
    seed: Count = 0

    @field_validator("group")
    @classmethod
    def _compiles(cls, group: str | None) -> str | None:
        try:
            re.compile(group or "")
        except re.error as error:
            raise ValueError(f"group={group} is no regular expression: {error}") from None
        return group

    @model_validator(mode="after")
    def _leaves_some(self) -> HeldOutSpec:
        if (taken := (self.val or 0) + (self.test or 0)) >= 1:
            raise ValueError(f"val and test take {taken:g} of the samples; leave some to train on")
        return self

    def splits(self) -> tuple[Split, ...]:
        """The splits that are made."""
        shares: dict[Split, float | None] = {"val": self.val, "test": self.test}
        return tuple(split for split, share in shares.items() if share)


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
    void_ids: tuple[int, ...] = ()
    """Ids that are void by the layout's own convention."""
    label_map: Mapping[str, str] = field(default_factory=dict)
    """Raw ids to class names or void, by the layout's own convention."""
    draws: bool = False
    """Whether label maps are drawn from annotations: polygons, boxes, run lengths."""


VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_TABLE = ClassTable(VOC_NAMES, tuple(map(voc_colour, range(len(VOC_NAMES)))))
VOC_SPLITS: tuple[Split, ...] = ("train", "val")
CITYSCAPES = {  # class: its id in the labelIds files, its colour
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES_SPLITS: tuple[Split, ...] = ("train", "val")
LAYOUTS = {
    "shapes": Layout(
        ClassTable(
            ("ground", "disc", "square", "triangle", "cross"),
            ((96, 96, 96), (230, 80, 60), (60, 160, 80), (240, 200, 60), (70, 110, 220)),
        ),
        ("train", "val", "test"),
        void_ids=(VOID,),
    ),
    "folder": Layout(),
    "voc": Layout(
        VOC_TABLE,
        VOC_SPLITS,
        {
            split: SplitSpec(
                images="JPEGImages",
                labels="SegmentationClass",
                list=f"ImageSets/Segmentation/{split}.txt",
            )
            for split in VOC_SPLITS
        },
        void_ids=(VOID,),
    ),
    "sbd": Layout(VOC_TABLE, VOC_SPLITS, void_ids=(VOID,)),
    "cityscapes": Layout(
        ClassTable(tuple(CITYSCAPES), tuple(colour for _, colour in CITYSCAPES.values())),
        CITYSCAPES_SPLITS,
        {
            split: SplitSpec(
                images=f"leftImg8bit/{split}/{{stem}}_leftImg8bit.png",
                labels=f"gtFine/{split}/{{stem}}_gtFine_labelIds.png",
            )
            for split in CITYSCAPES_SPLITS
        },
        label_map={str(i): VOID_NAME for i in range(34)}
        | {str(raw): name for name, (raw, _) in CITYSCAPES.items()},
    ),
    "coco": Layout(draws=True),
    "labelme": Layout(draws=True),
    "labelstudio": Layout(draws=True),
    "yolo": Layout(draws=True),
    "huggingface": Layout(),
}


class DataSpec(Spec):
    """What is learned from."""

    source: str
    """The layout of the data set: shapes, folder, voc, sbd, cityscapes, coco, labelme, labelstudio, yolo
    or huggingface; see docs/data.md."""
    root: Path | None = None
    """Folder of the data set; `shapes` has none."""
    voc_root: Path | None = None
    """For `sbd`: the folder of PASCAL VOC (with JPEGImages) that its val split is taken from."""
    shapes: ShapesSpec = ShapesSpec()
    splits: dict[Split, SplitSpec] = Field(default={})
    """Folders of each split; `voc`, `sbd` and `cityscapes` know their own."""
    held_out: HeldOutSpec | None = None
    """Splits to be made out of the train split, where the data set does not have them."""
    classes: tuple[ClassSpec, ...] = ()
    """The class table; some layouts know their own, which it replaces."""
    label_kind: Literal["ids", "colours"] = "ids"
    """Whether label files hold class ids (also as palette indices) or the classes' colours."""
    label_map: dict[str, str] = Field(default={})
    """What is in the labels (an id, a colour as `r,g,b` or `#rrggbb`, or a name in annotations) to the
    name of a class or to `void`. Ids: all there are. Colours and names: besides the classes' own."""
    unlabelled: str | None = None
    """For annotations: the class of pixels that nothing was drawn on, or `void`."""
    unknown_colours: Literal["quarantine", "void"] = "quarantine"
    """Whether a sample with colours that no class has is rejected, or those pixels are void."""
    colour_tolerance: Annotated[int, Field(ge=0, le=64)] = 0
    """Greatest difference in a channel at which a colour is taken for a class's, for lossy files."""
    void_ids: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = ()
    """Ids in the label files that are neither trained on nor scored."""
    range: Literal["auto"] | tuple[float, float] | None = None
    """For images of 16 or 32 bits or floats: the values that become black and white; `auto` takes the
    least and greatest of the train split. Kept with the weights."""
    max_side_px: Annotated[int, Field(ge=32)] | None = None
    """Images whose longer side is greater are made smaller at the ingest and in prediction; scores and
    predictions have the file's own size."""
    max_quarantined_frac: Fraction | None = None
    """The ingest fails if a greater share of the samples is rejected; if not given, if more than 1 % and
    more than 3 are."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in LAYOUTS:
            raise ValueError(f"source={source} is no layout; known are {', '.join(LAYOUTS)}")
        return source

    @field_validator("label_map", mode="before")
    @classmethod
    def _keys_as_text(cls, value: object) -> object:
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _complete(self) -> DataSpec:
        if self.source == "shapes" and (self.classes or self.label_map):
            raise ValueError("shapes has its own class table; leave classes and label_map out")
        if self._layout.table is None and len(self.classes) < 2:
            raise ValueError(
                f"classes lists {len(self.classes)}; source {self.source} needs at least 2"
            )
        self.label_rule()  # refuses names that two classes have, and rows that fit nothing
        if not self._layout.splits:
            self._require_splits()
        if self._layout.draws and self.unlabelled is None:
            raise ValueError(
                f"unlabelled is missing: say which class the pixels have that no annotation of "
                f"{self.source} covers, or {VOID_NAME}"
            )
        if isinstance(self.range, tuple) and not self.range[0] < self.range[1]:
            raise ValueError(f"range={list(self.range)}; write the value of black, then a greater")
        return self

    def _require_splits(self) -> None:
        made = self.held_out.splits() if self.held_out else ()
        if twice := set(made) & set(self.splits):
            raise ValueError(f"held_out makes {', '.join(sorted(twice))}, which splits names too")
        if missing := {"train", "val"} - set(self.splits) - set(made):
            raise ValueError(
                f"splits lacks {', '.join(sorted(missing))}; held_out: {{val: 0.15}} would take a val "
                "split from the train split"
            )

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.source]

    def split_names(self) -> tuple[Split, ...]:
        """The splits that the data set has."""
        own = tuple(self.split_folders()) or self._layout.splits
        return own + (self.held_out.splits() if self.held_out else ())

    def split_folders(self) -> Mapping[Split, SplitSpec]:
        """Folders of each split of a source that has folders."""
        return self.splits or self._layout.folders

    def class_table(self) -> ClassTable:
        """The classes in the order of their ids."""
        if not self.classes and self._layout.table is not None:
            return self._layout.table
        names = tuple(c.name for c in self.classes)
        colours = tuple(c.colour or voc_colour(i) for i, c in enumerate(self.classes))
        return ClassTable(names, colours)

    def input_rule(self) -> InputRule:
        """How image files become pixels; the ingest puts in the range that `auto` stands for."""
        return InputRule(None if self.range == "auto" else self.range, self.max_side_px)

    def label_rule(self) -> LabelRule:
        """How what is in the labels becomes class ids.

        Raises:
            ValueError: a row of the map names no class, or is no id, colour or name.
        """
        table = self.class_table()
        rows = {**(self._layout.label_map if not self.classes else {}), **self.label_map}
        targets = {raw: self._target(raw, name, table) for raw, name in rows.items()}
        void = set(self.void_ids) | set(self._layout.void_ids)
        if classes := sorted(void & set(range(len(table)))) if not rows else []:
            raise ValueError(
                f"void_ids={list(self.void_ids)} holds {classes}, which are ids of classes; use "
                f"label_map to give ids another meaning, or take the classes out"
            )
        own = {name: i for i, name in enumerate(table.names)}
        unlabelled = self._target("unlabelled", self.unlabelled or VOID_NAME, table)
        if self._layout.draws:
            return LabelRule(names=own | targets, unlabelled=unlabelled, num_classes=len(table))
        if self.label_kind == "colours":
            mapped = {_colour(raw): target for raw, target in targets.items()}
            return LabelRule(
                colours=dict(zip(self._own_colours(table), own.values(), strict=True)) | mapped,
                tolerance=self.colour_tolerance,
                void_rest=self.unknown_colours == "void",
                num_classes=len(table),
            )
        ids = {_id(raw): target for raw, target in targets.items()}
        ids = ids or {i: i for i in range(len(table))}
        return LabelRule(ids=ids | dict.fromkeys(void, VOID), num_classes=len(table))

    def _own_colours(self, table: ClassTable) -> tuple[Colour, ...]:
        if len(set(table.colours)) != len(table):
            twice = next(c for c in table.colours if table.colours.count(c) > 1)
            raise ValueError(f"colour {list(twice)} is given to two classes of a colour map")
        if lacking := [c.name for c in self.classes if c.colour is None]:
            raise ValueError(
                f"label_kind=colours, but {', '.join(lacking)} has no colour; write the one in the files"
            )
        return table.colours

    def _target(self, raw: str, name: str, table: ClassTable) -> int:
        if name == VOID_NAME:
            return VOID
        if name not in table.names:
            raise ValueError(
                f"label_map gives {raw} to {name}, which is no class; classes are "
                f"{', '.join(table.names)}, and {VOID_NAME}"
            )
        return table.names.index(name)


def _id(raw: str) -> int:
    if not raw.isdecimal():
        raise ValueError(
            f"label_map has a row {raw}; with label_kind=ids, rows are whole numbers of the files"
        )
    return int(raw)


def _colour(raw: str) -> Colour:
    match = COLOUR.fullmatch(raw.strip())
    if match and match["hex"]:
        return tuple(bytes.fromhex(match["hex"]))  # type: ignore[return-value]
    rgb = tuple(int(match[c]) for c in "rgb") if match else ()
    if len(rgb) != 3 or max(rgb) > 255:
        raise ValueError(
            f"label_map has a row {raw}; with label_kind=colours, rows are r,g,b or #rrggbb"
        )
    return rgb
