"""Small data sets in the layouts that people have, made by the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
NAMES = ("ground", "car", "tree")


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A photograph: no two neighbours are equal."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ids(seed: int, height: int = HEIGHT, width: int = WIDTH, num: int = 3) -> np.ndarray:
    """A label map of blocks, with all of `num` classes."""
    label = np.zeros((height, width), np.uint8)
    for k in range(1, num):
        label[height // (k + 1) :, (seed + 3 * k) % 20 : (seed + 3 * k) % 20 + width // 3 + k] = k
    label[:4, :num] = np.arange(num)
    return label


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def pairs(root: Path, image: str, label: str, num: int = 8, make=ids, start: int = 0) -> None:
    """Pairs whose paths have {} where their number stands."""
    for i in range(start, start + num):
        save(root / image.format(f"{i:03d}"), noise(i))
        save(root / label.format(f"{i:03d}"), make(i))


def in_colours(label: np.ndarray) -> np.ndarray:
    return np.array(COLOURS, np.uint8)[label]


def outlines(seed: int) -> list[tuple[str, list[list[float]]]]:
    """A car and a tree, as polygons of (x, y)."""
    x = 4.0 + seed % 10
    return [
        ("car", [[x, 8], [x + 20, 8], [x + 20, 30], [x, 30]]),
        ("tree", [[40, 4], [58, 4], [58, 40], [40, 40]]),
    ]


def labelme(root: Path, num: int = 8) -> None:
    for i in range(num):
        save(root / f"{i:03d}.jpg", noise(i))
        shapes = [
            {"label": name, "points": points, "shape_type": "polygon"}
            for name, points in outlines(i)
        ]
        held = {"version": "5.0.1", "shapes": shapes, "imagePath": f"{i:03d}.jpg"}
        held |= {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
        (root / f"{i:03d}.json").write_text(json.dumps(held))


def coco(root: Path) -> None:
    for split, start, num in (("train", 0, 8), ("val", 100, 4)):
        images, annotations = [], []
        for i in range(start, start + num):
            save(root / f"{split}2017" / f"{i:03d}.jpg", noise(i))
            images.append({"id": i, "file_name": f"{i:03d}.jpg", "height": HEIGHT, "width": WIDTH})
            for name, points in outlines(i):
                ring = [value for point in points for value in point]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": {"car": 3, "tree": 7}[name],
                        "segmentation": [ring],
                        "iscrowd": 0,
                    }
                )
        held = {"images": images, "annotations": annotations}
        held["categories"] = [{"id": 3, "name": "car"}, {"id": 7, "name": "tree"}]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(held))


def labelstudio(root: Path) -> None:
    tasks = []
    for i in range(8):
        save(root / "images" / f"{i:03d}.jpg", noise(i))
        results = [
            {
                "type": "polygonlabels",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "value": {
                    "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points],
                    "polygonlabels": [name],
                },
            }
            for name, points in outlines(i)
        ]
        tasks.append(
            {
                "id": i,
                "data": {"image": f"/data/upload/1/{i:03d}.jpg"},
                "annotations": [{"result": results}],
            }
        )
    (root / "export.json").write_text(json.dumps(tasks))


def yolo(root: Path) -> None:
    for split, start, num in (("train", 0, 8), ("val", 100, 4)):
        for i in range(start, start + num):
            save(root / "images" / split / f"{i:03d}.jpg", noise(i))
            lines = []
            for number, (_, points) in enumerate(outlines(i)):
                flat = [v for x, y in points for v in (x / WIDTH, y / HEIGHT)]
                lines.append(" ".join([str(number), *(f"{v:.6f}" for v in flat)]))
            text = root / "labels" / split / f"{i:03d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join(lines))
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 1: tree}\n"
    )
