"""Which layout a folder has: the trees that are known by their own marks, then pairs by counting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.schema import Split
from pipeline.data.sources.folder import IMAGE_SUFFIXES, listed_names
from pipeline.errors import DataError, RecipeError
from pipeline.ops.new.names import Table, find_table
from pipeline.ops.new.pairs import SPLITS, Pairing, best_pairing
from pipeline.ops.new.tree import Tree

JSON_HEAD = 4096
IMAGE_COLUMNS = ("image", "pixel_values", "img")
LISTED_FRAC = 0.9
"""So much of a text file's lines name samples if it is a list of a split."""
SPLIT_ORDER: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Found:
    """A layout, and what is known of it before a label is opened."""

    source: str
    root: Path
    why: str
    """How it was recognised."""
    splits: Mapping[Split, Mapping[str, str]] = field(default_factory=dict)
    """Empty if the layout knows its own."""
    pairs: str = ""
    """How images and labels were matched."""
    table: Table | None = None
    held_out: bool = False
    """Whether splits have to be made."""
    stems: tuple[str, ...] = ()
    """Names of the samples that splits would be made of."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """More keys of the data section."""
    void_255: bool = False
    """Whether 255 is void by the layout's convention."""
    covered: bool = False
    """Whether annotations are meant to cover the images, so that what they leave is void."""
    undecided: str = ""
    """Why it is not known which files are the labels; empty if it is."""
    notes: tuple[str, ...] = ()


def detect(tree: Tree, flatness: Callable[[str], float]) -> Found:
    """The layout of a folder.

    Raises:
        RecipeError: there is nothing in it that could be images and labels.
    """
    for layout in _LAYOUTS:
        if found := layout(tree):
            return found
    if found := _pairs(tree, flatness):
        return found
    endings = {Path(name).suffix.lower() for name in tree.files}
    raise RecipeError(
        f"{tree.root}: no images and labels that belong together are among its {len(tree.files)} files "
        f"({', '.join(sorted(endings)[:12]) or 'none'}). Images end in {' '.join(IMAGE_SUFFIXES)}, and "
        "labels have names that agree with theirs: photos/a.jpg and masks/a.png, or a.jpg and "
        "a_mask.png. docs/data.md lists the layouts that are read"
    )


def _huggingface(tree: Tree) -> Found | None:
    files = tree.ending(".parquet")
    if not files or (column := _label_column(tree.root / files[0])) is None:
        return None
    splits: dict[Split, Mapping[str, str]] = {}
    for name in files:
        folder, _, file = name.rpartition("/")
        inside = f"{folder}/" if folder else ""
        if word := re.match("|".join(SPLITS), file):
            split, place = SPLITS[word[0]], f"{inside}{word[0]}*.parquet"
        else:
            word = re.match("|".join(SPLITS), folder.rpartition("/")[2])
            split, place = SPLITS[word[0]] if word else "train", f"{inside}*.parquet"
        splits.setdefault(split, {"images": place, "labels": column})
    return Found(
        *("huggingface", tree.root, f"{len(files)} parquet files"), _ordered(splits),
        f"columns of images and of {column}", find_table(tree), held_out="val" not in splits,
    )  # fmt: skip


def _label_column(path: Path) -> str | None:
    """The column of pictures that is not the images'; None if there is none."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return None
    pictures = [f.name for f in schema if pa.types.is_struct(f.type) or pa.types.is_binary(f.type)]
    labels = [name for name in pictures if name not in IMAGE_COLUMNS]
    named = [name for name in labels if re.search("label|mask|annot|seg", name)]
    return next(iter([*named, *labels]), None) if set(pictures) & set(IMAGE_COLUMNS) else None


def _cityscapes(tree: Tree) -> Found | None:
    base = tree.base_of("leftImg8bit/", "gtFine/")
    if base is None or not any(name.endswith("_labelIds.png") for name in tree.under(base).files):
        return None
    return Found(
        *("cityscapes", tree.root / base, "folders leftImg8bit and gtFine with labelIds"),
        pairs="by city, sequence and frame",
    )


def _ade20k(tree: Tree) -> Found | None:
    base = tree.base_of("annotations/training/", "images/training/")
    info = [name for name in tree.files if name.endswith("objectInfo150.txt")]
    if base is None or not info:
        return None
    splits: dict[Split, Mapping[str, str]] = {
        "train": {"images": "images/training", "labels": "annotations/training"},
        "val": {"images": "images/validation", "labels": "annotations/validation"},
    }
    return Found(
        *("folder", tree.root / base, "ADE20K, by objectInfo150.txt"), splits, "by name",
        find_table(tree.under(info[0].rpartition("/")[0])),
    )  # fmt: skip


def _sbd(tree: Tree) -> Found | None:
    base = tree.base_of("cls/", "img/")
    if base is None or not any(re.match(r"cls/.*\.mat$", n) for n in tree.under(base).files):
        return None
    voc = tree.base_of("JPEGImages/", "SegmentationClass/")
    if voc is None:
        raise RecipeError(
            f"{tree.root} is the data set SBD, whose val split is taken from PASCAL VOC; name a folder "
            "that holds both, SBD (cls, img) and VOC (JPEGImages, SegmentationClass)"
        )
    return Found(
        *("sbd", tree.root / base, "folders cls with .mat and img"), pairs="by name",
        extra={"voc_root": str(tree.root / voc)}, void_255=True,
    )  # fmt: skip


def _voc(tree: Tree) -> Found | None:
    base = tree.base_of("JPEGImages/", "SegmentationClass/")
    if base is None:
        return None
    inside = tree.under(base)
    listed: dict[Split, Mapping[str, str]] = {}
    for name in inside.files:
        match = re.fullmatch(r"ImageSets/Segmentation/(\w+)\.txt", name)
        split = SPLITS.get(match[1], "train" if match[1] == "default" else None) if match else None
        if split and inside.text(name).strip():
            listed[split] = {"images": "JPEGImages", "labels": "SegmentationClass", "list": name}
    listed = listed or {"train": {"images": "JPEGImages", "labels": "SegmentationClass"}}
    own = set(listed) == {"train", "val"}
    return Found(
        *("voc", tree.root / base, "folders JPEGImages and SegmentationClass"),
        {} if own else _ordered(listed),
        "by name, as the lists in ImageSets/Segmentation say" if own else "by name",
        find_table(inside),
        held_out="val" not in listed,
        stems=tuple(Path(n).stem for n in inside.files if n.startswith("SegmentationClass/")),
        void_255=True,
    )


def _coco(tree: Tree) -> Found | None:
    splits: dict[Split, Mapping[str, str]] = {}
    names: list[str] = []
    panoptic = False
    for file in tree.ending(".json"):
        if not _head_has(tree, file, b'"images"', b'"annotations"', b'"categories"', b'"info"'):
            continue
        held = tree.json(file)
        if not isinstance(held, dict) or not {"images", "annotations", "categories"} <= held.keys():
            continue
        if not any(_draws(entry) for entry in held["annotations"]):
            continue
        if not (folder := _folder_of(tree, [str(i.get("file_name")) for i in held["images"][:20]])):
            continue
        words = re.findall("|".join(SPLITS), f"{Path(file).stem} {file}")
        split = SPLITS[words[0]] if words else "train"
        if split not in splits:
            splits[split] = {"images": folder, "labels": file}
            categories = sorted(held["categories"], key=lambda c: c["id"])
            panoptic |= any(entry.get("segments_info") for entry in held["annotations"])
            names += [c["name"] for c in categories if c["name"] not in names]
    if not splits:
        return None
    table = Table("categories", tuple(names))
    return Found(
        *("coco", tree.root, "JSON with images, annotations and categories"), _ordered(splits),
        "by file_name", table, held_out="val" not in splits, covered=panoptic,
    )  # fmt: skip


def _draws(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("segmentation") or annotation.get("segments_info"))


def _labelstudio(tree: Tree) -> Found | None:
    for file in tree.ending(".json"):
        if not _head_has(tree, file, b'"annotations"', b'"completions"', b'"data"'):
            continue
        tasks = tree.json(file)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            continue
        names = sorted(set(_labelstudio_names(tasks)))
        shown = [str(value) for task in tasks[:20] for value in (task.get("data") or {}).values()]
        if names and (folder := _folder_of(tree, shown)):
            return Found(
                *("labelstudio", tree.root, "JSON with a list of tasks"),
                {"train": {"images": folder, "labels": file}}, "by the image of each task",
                Table(file, tuple(names)), held_out=True,
            )  # fmt: skip
    return None


def _labelstudio_names(tasks: list[dict[str, Any]]) -> Iterator[str]:
    for task in tasks:
        for annotation in task.get("annotations") or []:
            for result in annotation.get("result") or []:
                for key in ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels"):
                    yield from (result.get("value") or {}).get(key) or []


def _labelme(tree: Tree) -> Found | None:
    files = [f for f in tree.ending(".json") if _head_has(tree, f, b'"shapes"', b'"imagePath"')]
    names = set()
    for file in files:
        held = tree.json(file)
        shapes = held.get("shapes", []) if isinstance(held, dict) else []
        names |= {str(shape.get("label")) for shape in shapes}
    pairing = best_pairing(tree.pictures, files, None) if names else None
    if pairing is None:
        return None
    found = _from_pairing(tree, "labelme", "a JSON with shapes for each image", pairing)
    return replace(found, table=Table("labels in the JSON files", tuple(sorted(names))))


_POLYGON = re.compile(r"\d+( +[\d.eE+-]+){4,}")


def _yolo(tree: Tree) -> Found | None:
    texts = [name for name in tree.ending(".txt") if _is_yolo(tree, name)]
    pairing = best_pairing(tree.pictures, texts, None) if texts else None
    if pairing is None:
        return None
    table = find_table(tree)
    if table is None:
        numbers = {
            int(line.split()[0]) for t in texts for line in tree.text(t).splitlines() if line
        }
        table = Table(
            "numbers in the text files", tuple(f"class_{i}" for i in range(max(numbers) + 1))
        )
    found = _from_pairing(tree, "yolo", "a text of polygons for each image", pairing)
    return replace(found, table=table)


def _is_yolo(tree: Tree, name: str) -> bool:
    lines = tree.text(name).split("\n", 3)[:3]
    return bool(lines) and _POLYGON.fullmatch(lines[0].strip()) is not None


def _pairs(tree: Tree, flatness: Callable[[str], float]) -> Found | None:
    pairing = best_pairing(tree.pictures, tree.pictures, flatness)
    if pairing is None:
        return None
    return replace(
        _from_pairing(tree, "folder", "images and label maps", pairing), table=find_table(tree)
    )


def _from_pairing(tree: Tree, source: str, why: str, pairing: Pairing) -> Found:
    splits: dict[Split, Mapping[str, str]] = {
        split or "train": {"images": images, "labels": labels}
        for split, (images, labels) in pairing.places.items()
        if split or len(pairing.places) == 1
    }
    notes = []
    if "train" not in splits:
        notes.append(f"no folder is named train; of {', '.join(splits)} one was taken for it")
        splits = {"train": next(iter(splits.values())), **dict(list(splits.items())[1:])}
    if lists := _lists(tree, pairing) if set(splits) == {"train"} else {}:
        splits = {split: {**splits["train"], "list": name} for split, name in lists.items()}
    counts = ", ".join(f"{len(s)} {split or 'in all'}" for split, s in pairing.stems.items())
    if pairing.others:
        notes.append(f"these look like label maps too: {', '.join(pairing.others[:3])}")
    undecided = ""
    if not pairing.sure:
        undecided = "both kinds of files look alike, and neither is named as labels"
    return Found(
        *(source, tree.root, why), _ordered(splits), f"by name; pairs: {counts}",
        held_out="val" not in splits, undecided=undecided, notes=tuple(notes),
        stems=tuple(next(iter(pairing.stems.values()))),
    )  # fmt: skip


def _lists(tree: Tree, pairing: Pairing) -> dict[Split, str]:
    """Text files whose names say a split and whose lines name samples."""
    known = dict.fromkeys(stem for stems in pairing.stems.values() for stem in stems)
    found: dict[Split, str] = {}
    for name in sorted(tree.ending(".txt"), key=lambda n: (n.count("/"), n)):
        word = re.fullmatch(rf"({'|'.join(SPLITS)})", Path(name).stem, re.I)
        if not word or (split := SPLITS[word[1].lower()]) in found:
            continue
        try:
            names = listed_names(tree.root / name, known)
        except DataError:
            continue
        if names and sum(n in known for n in names) >= LISTED_FRAC * len(names):
            found[split] = name
    return found if "train" in found else {}


def _head_has(tree: Tree, name: str, *words: bytes) -> bool:
    """Whether one of some words is at the beginning or at the end of a file."""
    path = tree.root / name
    with path.open("rb") as file:
        head = file.read(JSON_HEAD)
        file.seek(max(0, path.stat().st_size - JSON_HEAD))
        return any(word in head + file.read(JSON_HEAD) for word in words)


def _folder_of(tree: Tree, names: list[str]) -> str | None:
    """The folder that holds most of some images, which are named by paths or addresses."""
    wanted = {json.dumps(Path(name).name) for name in names}
    counts: dict[str, int] = {}
    for name in tree.pictures:
        if json.dumps(Path(name).name) in wanted:
            folder = name.rpartition("/")[0] or "."
            counts[folder] = counts.get(folder, 0) + 1
    return max(counts, key=lambda f: counts[f]) if counts else None


def _ordered(splits: Mapping[Split, Mapping[str, str]]) -> dict[Split, Mapping[str, str]]:
    return {split: splits[split] for split in SPLIT_ORDER if split in splits}


_LAYOUTS: tuple[Callable[[Tree], Found | None], ...] = (
    *(_huggingface, _cityscapes, _ade20k, _sbd, _voc, _coco, _labelstudio, _labelme, _yolo),
)
"""In the order in which they are tried: those with the clearest marks first."""
