"""Small annotated data sets, and what is the same to look for in all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fcn.images import ImageError
from fcn.labels import VOID
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.data.sources import Drawn, Sample, Source, open_source
from pipeline.errors import DataError

HEIGHT, WIDTH = 20, 30
ALLOWED = (ImageError, DataError, OSError)
"""What a reader may raise whatever is in the files."""


def recipe(source: str, root: Path, **data: object) -> Recipe:
    """A recipe of three classes over both splits; what no annotation covers is ground."""
    drawn = {} if source in ("huggingface", "sbd") else {"unlabelled": "ground"}
    classes = {} if source == "sbd" else {"classes": ["ground", "cat", "dog"]}
    keys = {"source": source, "root": str(root), **classes, **drawn, **data}
    return load_recipe("demo", [f"data={json.dumps(keys)}"])


def photo(path: Path, height: int = HEIGHT, width: int = WIDTH, **save: object) -> Path:
    """An image file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.name.encode())).integers(0, 256, (height, width, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path, **save)
    return path


def box(top: int, left: int, bottom: int, right: int) -> list[tuple[int, int]]:
    """The corners (x, y) of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def label(*drawn: tuple[int, tuple[int, int, int, int]]) -> np.ndarray:
    """The label map of rectangles (top, left, bottom, right) of some classes over ground."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k, (top, left, bottom, right) in drawn:
        ids[top:bottom, left:right] = k
    return ids


def read_all(source: Source) -> dict[str, np.ndarray | str]:
    """The label map of each sample, or the reason and evidence of why it is none."""
    whole, broken = source.samples()
    found: dict[str, np.ndarray | str] = {r.id: f"{r.reason}: {r.evidence}" for r in broken}
    for sample in whole:
        try:
            found[sample.id] = drawn(source, sample).ids
        except ImageError as error:
            found[sample.id] = str(error)
    return found


def drawn(source: Source, sample: Sample) -> Drawn:
    """The label map of a sample."""
    _, label = source.read(sample)
    assert isinstance(label, Drawn)
    assert set(np.unique(label.ids)) <= {0, 1, 2, VOID}
    return label


def survives(made: Recipe) -> None:
    """Read everything; nothing but what a reader may raise is raised."""
    try:
        source = open_source(made)
        source.state()
        whole, _ = source.samples()
    except ALLOWED:
        return
    for sample in whole:
        try:
            drawn(source, sample)
        except ALLOWED:
            continue


def mutations(tree: object) -> list[object]:
    """The same JSON with each value in turn replaced by others, and without each key and row."""
    found: list[object] = [None, 0, -1, "x", [], {}, 1e300, float("nan"), True, 1 << 70]
    if isinstance(tree, dict):
        for key, value in tree.items():
            rest = {k: v for k, v in tree.items() if k != key}
            found += [rest, *({**tree, key: other} for other in mutations(value))]
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            before, after = tree[:i], tree[i + 1 :]
            found += [before + after, [*tree, value]]
            found += [[*before, other, *after] for other in mutations(value)]
    return found
