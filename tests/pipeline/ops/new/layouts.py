"""Layouts and label kinds that `new` is tried on: how each is made, and what is to be found in it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.pipeline.ops.new import folders
from tests.pipeline.ops.new.folders import COLOURS, ids, in_colours, noise, pairs, save

Make = Callable[[Path], None]


def with_255(seed: int) -> np.ndarray:
    label = ids(seed)
    label[10:12] = 255
    return label


def binary(value: int) -> Callable[[int], np.ndarray]:
    return lambda seed: ids(seed, num=2) * np.uint8(value)


def coloured(seed: int) -> np.ndarray:
    return in_colours(ids(seed))


def both(image: str, label: str, **made: object) -> Make:
    """Train and val splits; {split} stands for their name."""

    def make(root: Path) -> None:
        for split, num, start in (("train", 8, 0), ("val", 4, 50)):
            image_, label_ = (path.replace("SPLIT", split) for path in (image, label))
            pairs(root, image_, label_, num, start=start, **made)

    return make


def one(image: str, label: str, **made: object) -> Make:
    return lambda root: pairs(root, image, label, **made)


def with_file(make: Make, name: str, text: str) -> Make:
    def made(root: Path) -> None:
        make(root)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    return made


def voc(root: Path) -> None:
    """Palette PNGs with a border of 255, and lists."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:3], palette[255] = COLOURS, (224, 224, 192)
    (root / "SegmentationClass").mkdir(parents=True)
    for i in range(8):
        save(root / "JPEGImages" / f"{i:03d}.jpg", noise(i))
        label = Image.fromarray(with_255(i)).convert("P")
        label.putpalette(palette.ravel().tolist())
        label.save(root / "SegmentationClass" / f"{i:03d}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"{i:03d}" for i in range(6)))
    (lists / "val.txt").write_text("006\n007\n")


def cvat(root: Path) -> None:
    """CVAT's export `Segmentation mask 1.1`."""
    pairs(root, "JPEGImages/{}.png", "SegmentationClass/{}.png", make=coloured)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("\n".join(f"{i:03d}" for i in range(8)))
    rows = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(folders.NAMES, COLOURS, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(rows))


def cityscapes(root: Path) -> None:
    raw = np.array([7, 26, 21], np.uint8)  # road, car, vegetation
    for split, numbers in (("train", range(6)), ("val", range(50, 53))):
        for i in numbers:
            name = f"ulm/ulm_{i:06d}_000019"
            save(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", noise(i))
            save(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", raw[ids(i)])
            save(root / f"gtFine/{split}/{name}_gtFine_color.png", coloured(i))


def ade20k(root: Path) -> None:
    for word, num, start in (("training", 8, 0), ("validation", 3, 50)):
        pairs(root, f"images/{word}/A_{{}}.jpg", f"annotations/{word}/A_{{}}.png", num, start=start)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    (root / "objectInfo150.txt").write_text(
        f"{head}\n1\t.1\t1\t1\t1\twall\n2\t.1\t1\t1\t1\tsky, air\n"
    )


def listed(root: Path) -> None:
    pairs(root, "images/{}.jpg", "masks/{}.png")
    (root / "train.txt").write_text("\n".join(f"images/{i:03d}.jpg" for i in range(5)))
    (root / "val.txt").write_text("\n".join(f"{i:03d}" for i in range(5, 8)))


def tree(root: Path) -> None:
    for start, city in ((0, "a"), (50, "b")):
        pairs(root, f"images/{city}/{{}}.jpg", f"gt/{city}/{{}}.tif", start=start)


def videos(root: Path) -> None:
    for video in range(6):
        pairs(root, f"images/v{video}_{{}}.jpg", f"masks/v{video}_{{}}.png", 4, start=10 * video)


def deep(root: Path) -> None:
    for i in range(8):
        save(root / f"images/{i}.png", noise(i)[..., 0].astype(np.uint16) * 200)
        save(root / f"masks/{i}.png", ids(i))


def sbd(root: Path) -> None:
    import scipy.io

    voc(root / "VOC2012")
    for i in range(100, 106):
        save(root / f"sbd/img/{i:03d}.jpg", noise(i))
        (root / "sbd/cls").mkdir(exist_ok=True)
        held = {"GTcls": {"Segmentation": ids(i)}}
        scipy.io.savemat(root / f"sbd/cls/{i:03d}.mat", held)
    (root / "sbd/train.txt").write_text("\n".join(map(str, range(100, 104))))
    (root / "sbd/val.txt").write_text("104\n105\n")


def huggingface(root: Path) -> None:
    def cell(pixels: np.ndarray, kind: str) -> dict[str, object]:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, kind)
        return {"bytes": encoded.getvalue(), "path": None}

    (root / "data").mkdir()
    for split, start, num in (("train", 0, 8), ("validation", 50, 3)):
        numbers = range(start, start + num)
        columns = {
            "image": [cell(noise(i), "JPEG") for i in numbers],
            "label": [cell(ids(i), "PNG") for i in numbers],
        }
        pq.write_table(pa.table(columns), root / "data" / f"{split}-00000-of-00001.parquet")


THREE = ("class_0", "class_1", "class_2")
NAMED = folders.NAMES
FIELDS = "ground\ncar\ntree\n"
DRAWN = ("background", "car", "tree")
MADE: dict[str, tuple[Make, str, tuple[str, ...], dict[str, int]]] = {
    # name: how it is made; layout, classes and counts that are to be found
    "parallel": (
        both("SPLIT/{}.png", "SPLITannot/{}.png"),
        *("folder", THREE, {"train": 8, "val": 4}),
    ),
    "splits inside": (
        both("images/SPLIT/{}.jpg", "labels/SPLIT/{}.png"),
        *("folder", THREE, {"train": 8, "val": 4}),
    ),
    "splits outside": (
        both("SPLIT/images/{}.jpg", "SPLIT/masks/{}.png"),
        *("folder", THREE, {"train": 8, "val": 4}),
    ),
    "binary": (
        one("imgs/{}.jpg", "masks/{}.png", make=binary(255)),
        *("folder", ("background", "foreground"), {"train": 7, "val": 1}),
    ),
    "binary suffixes": (
        one("{}.jpg", "{}_mask.png", make=binary(255)),
        *("folder", ("background", "foreground"), {"train": 7, "val": 1}),
    ),
    "one ending": (
        one("{}.png", "{}_mask.png"),
        *("folder", THREE, {"train": 7, "val": 1}),
    ),
    "prefixes": (
        one("d/img_{}.png", "d/mask_{}.png"),
        *("folder", THREE, {"train": 7, "val": 1}),
    ),
    "tree": (
        tree,
        *("folder", THREE, {"train": 14, "val": 2}),
    ),
    "colours": (
        one("all/{}.png", "all/{}_L.png", make=coloured),
        *("folder", THREE, {"train": 7, "val": 1}),
    ),
    "colour table": (
        with_file(
            both("SPLIT/{}.png", "SPLIT_labels/{}_L.png", make=coloured),
            "class_dict.csv",
            "name,r,g,b\nVoid,0,0,0\nCar,128,0,0\nTree,0,128,0\n",
        ),
        *("folder", ("Car", "Tree"), {"train": 8, "val": 4}),
    ),
    "arrays": (
        one("images/{}.jpg", "labels/{}.npy"),
        *("folder", THREE, {"train": 7, "val": 1}),
    ),
    "names": (
        with_file(one("images/{}.jpg", "masks/{}.png"), "classes.txt", FIELDS),
        *("folder", NAMED, {"train": 7, "val": 1}),
    ),
    "from one": (
        with_file(
            one("images/{}.jpg", "masks/{}.png", make=lambda i: ids(i) + 1), "classes.txt", FIELDS
        ),
        *("folder", NAMED, {"train": 7, "val": 1}),
    ),
    "void by name": (
        with_file(
            one("images/{}.jpg", "masks/{}.png", make=lambda i: ids(i, num=4)),
            *("classes.txt", FIELDS + "void\n"),
        ),
        *("folder", NAMED, {"train": 7, "val": 1}),
    ),
    "sparse": (
        one("images/{}.jpg", "masks/{}.png", make=lambda i: ids(i) * 100),
        *("folder", ("class_0", "class_100", "class_200"), {"train": 7, "val": 1}),
    ),
    "lists": (listed, "folder", THREE, {"train": 5, "val": 3}),
    "videos": (videos, "folder", THREE, {"train": 16, "val": 4, "test": 4}),
    "deep": (deep, "folder", THREE, {"train": 7, "val": 1}),
    "voc": (voc, "voc", ("background", "aeroplane"), {"train": 6, "val": 2}),
    "cvat": (cvat, "voc", NAMED, {"train": 7, "val": 1}),
    "cityscapes": (cityscapes, "cityscapes", ("road", "sidewalk"), {"train": 6, "val": 3}),
    "ade20k": (ade20k, "folder", ("wall", "sky, air"), {"train": 8, "val": 3}),
    "sbd": (sbd, "sbd", ("background", "aeroplane"), {"train": 4, "val": 2}),
    "labelme": (folders.labelme, "labelme", DRAWN, {"train": 7, "val": 1}),
    "coco": (folders.coco, "coco", DRAWN, {"train": 8, "val": 4}),
    "labelstudio": (folders.labelstudio, "labelstudio", DRAWN, {"train": 7, "val": 1}),
    "yolo": (folders.yolo, "yolo", DRAWN, {"train": 8, "val": 4}),
    "huggingface": (huggingface, "huggingface", THREE, {"train": 8, "val": 3}),
}
