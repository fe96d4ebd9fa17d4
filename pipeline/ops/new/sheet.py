"""The contact sheet: some images with their labels drawn over them, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fcn.labels import VOID, ClassTable, overlay
from pipeline.ops.new.look import Checked

NUM_SAMPLES = 12
TILE_PX = 240
"""Side of the square that an image is fitted into."""
GAP_PX = 12
TEXT_PX = 15
NAME_PX = 11
ALPHA = 0.75
"""More would hide the image under its label, less would change the colours of the legend."""
NAMED_FRAC = 0.02
"""A region of a smaller share of its image is too small for a name."""
LINE_PX = 22
COLUMNS = 3
HATCH_PX = 8
LEGEND_COLUMN_PX = 240
PAPER, INK = (255, 255, 255), (20, 20, 20)

Picture = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


def contact_sheet(checked: Checked, table: ClassTable, title: Sequence[str]) -> Image.Image:
    """Images and, beside each, the same under its label map; classes by share below.

    Void is hatched. Samples are chosen so that each class is seen where it is largest.
    """
    chosen = choose(checked.pictures, len(table))
    rows = -(-len(chosen) // COLUMNS)
    width = COLUMNS * (2 * TILE_PX + GAP_PX) + GAP_PX
    tall = max((_fitted_size(label)[1] for *_, label in chosen), default=0) + LINE_PX + GAP_PX
    per_row = max(1, (width - GAP_PX) // LEGEND_COLUMN_PX)
    legend_rows = -(-(len(table) + 1) // per_row)
    top = GAP_PX + LINE_PX * len(title) + GAP_PX
    sheet = Image.new(
        "RGB", (width, top + rows * tall + (legend_rows + 1) * LINE_PX + GAP_PX), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for i, text in enumerate(title):
        draw.text((GAP_PX, GAP_PX + i * LINE_PX), text, INK, font)
    for i, (name, image, label) in enumerate(chosen):
        x = GAP_PX + i % COLUMNS * (2 * TILE_PX + GAP_PX)
        y = top + i // COLUMNS * tall
        draw.text((x, y), _short(name, font), INK, font)
        small, ids = _fitted(image, label)
        sheet.paste(Image.fromarray(small), (x, y + LINE_PX))
        sheet.paste(_named(labelled(small, ids, table), ids, table), (x + TILE_PX, y + LINE_PX))
    _legend(draw, font, checked, table, top + rows * tall, per_row)
    return sheet


def choose(pictures: Sequence[Picture], num_classes: int) -> list[Picture]:
    """Some of the pictures: for each class the one with most of it, the rarest first; then others."""
    px = np.array(
        [np.bincount(label.ravel(), minlength=256)[:num_classes] for _, _, label in pictures]
    ).reshape(len(pictures), num_classes)
    order = [int(px[:, k].argmax()) for k in np.argsort(px.sum(0)) if px[:, k].any()]
    order += list(range(0, len(pictures), -(-len(pictures) // NUM_SAMPLES) or 1))
    return [pictures[i] for i in sorted(list(dict.fromkeys(order))[:NUM_SAMPLES])]


def labelled(
    image: NDArray[np.uint8], label: NDArray[np.uint8], table: ClassTable
) -> NDArray[np.uint8]:
    """An image under its label map: classes in colours with white edges, void hatched."""
    drawn = overlay(image, label, table, alpha=ALPHA)
    rows, columns = np.indices(label.shape)
    void = label == VOID
    stripe = (rows + columns) % HATCH_PX < HATCH_PX // 2
    drawn[void & stripe], drawn[void & ~stripe] = PAPER, INK
    edge = np.zeros(label.shape, np.bool_)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    drawn[edge & ~void] = PAPER
    return drawn


def _named(drawn: NDArray[np.uint8], label: NDArray[np.uint8], table: ClassTable) -> Image.Image:
    """The picture with the name of each large class where the class is widest."""
    picture = Image.fromarray(drawn)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(NAME_PX)
    for k in np.unique(label[label != VOID]):
        region = np.pad((label == k).astype(np.uint8), 1)
        if region.mean() < NAMED_FRAC:
            continue
        depth = cv2.distanceTransform(region, cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        text = table.names[k]
        margin = draw.textlength(text, font) / 2 + 2
        at = (min(max(float(x), margin), label.shape[1] - margin), float(y))
        draw.text(at, text, INK, font, anchor="mm", stroke_width=2, stroke_fill=PAPER)
    return picture


def _fitted_size(label: NDArray[np.uint8]) -> tuple[int, int]:
    height, width = label.shape
    factor = (TILE_PX - 2) / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _fitted(
    image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    size = _fitted_size(label)
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    ids = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return np.array(small), np.array(ids)


def _legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    checked: Checked,
    table: ClassTable,
    top: int,
    per_row: int,
) -> None:
    total = int(checked.class_px.sum()) + checked.void_px
    rows = [*zip(table.names, table.colours, checked.class_px.tolist(), strict=True)]
    for i, (name, colour, px) in enumerate([*rows, ("void", None, checked.void_px)]):
        x, y = GAP_PX + i % per_row * LEGEND_COLUMN_PX, top + i // per_row * LINE_PX
        box = (x, y + 2, x + 26, y + TEXT_PX + 2)
        draw.rectangle(box, colour or PAPER, INK)
        if colour is None:
            for at in range(2, 26, HATCH_PX):
                draw.line((x + at, y + TEXT_PX + 1, x + min(26, at + TEXT_PX), y + 3), INK, 2)
        text = f"{name} {px / max(1, total):.1%}"
        draw.text((x + 34, y), _short(text, font, LEGEND_COLUMN_PX - 44), INK, font)


def _short(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int = 2 * TILE_PX
) -> str:
    if font.getlength(text) <= most:
        return text
    while text and font.getlength(f"...{text}") > most:
        text = text[1:]
    return f"...{text}"
