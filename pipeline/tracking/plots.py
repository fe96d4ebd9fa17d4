"""Pictures of scores, of training curves and of label maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fcn.labels import VOID, ClassTable, overlay, palette_picture
from fcn.metrics import Scores

Points = Sequence[tuple[int, float]]
Pixels = NDArray[np.uint8]


def confusion_matrix(path: Path, counts: NDArray[np.int64], table: ClassTable) -> None:
    """Rows are the truth; each is shown as fractions of the class's pixels."""
    truth = counts.sum(1, keepdims=True)
    fraction = counts / np.maximum(truth, 1)
    size = 2.5 + 0.5 * len(table)
    figure = Figure((size + 1, size), layout="constrained", dpi=110)
    axes = figure.subplots()
    picture = axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(table)), table.names, rotation=60, ha="right")
    axes.set_yticks(range(len(table)), table.names)
    axes.set(xlabel="predicted", ylabel="truth", title="share of each class's pixels")
    for i, j in np.ndindex(*fraction.shape):
        if fraction[i, j] >= 0.005:
            colour = "white" if fraction[i, j] > 0.5 else "black"
            axes.text(j, i, f"{100 * fraction[i, j]:.0f}", ha="center", va="center", color=colour)
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path)


def class_bars(path: Path, scores: Scores, table: ClassTable, absent: Collection[str]) -> None:
    """IU of each class in its colour, the mean as a line; `absent` are those not in the split."""
    figure = Figure((7, 1.2 + 0.34 * len(table)), layout="constrained", dpi=110)
    axes = figure.subplots()
    values = np.nan_to_num(np.array(scores.class_iu))
    colours = [tuple(c / 255 for c in colour) for colour in table.colours]
    bars = axes.barh(table.names, values, color=colours, edgecolor="0.3", linewidth=0.6)
    labels = [
        ", ".join([f"{iu:.3f}"] * (not np.isnan(iu)) + ["not in the split"] * (name in absent))
        for name, iu in zip(table.names, scores.class_iu, strict=True)
    ]
    axes.bar_label(bars, labels, padding=3)
    axes.axvline(scores.mean_iu, color="0.3", ls="--", label=f"mean IU {scores.mean_iu:.3f}")
    axes.set(xlim=(0, 1.08), xlabel="intersection over union")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.savefig(path)


def curves(path: Path, loss: Mapping[str, Points], mean_iu: Mapping[str, Points]) -> None:
    """Loss per valid pixel by step (raw and smoothed), and mean IU of each validation."""
    figure = Figure((10, 3.6), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for i, points in enumerate(loss.values()):
        steps, values = np.array(points).T
        left.plot(steps, values, color=f"C{i}", lw=0.8, alpha=0.3)
        window = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        left.plot(steps[window - 1 :], smooth, color=f"C{i}")
    left.set(xlabel="step", ylabel="loss per valid pixel (nats)", yscale="log")
    for name, points in mean_iu.items():
        right.plot(*np.array(points).T, marker="o", ms=3, label=name)
    right.set(xlabel="step", ylabel="mean IU", ylim=(0, 1))
    right.grid(alpha=0.3)
    if mean_iu:
        right.legend()
    figure.savefig(path)


def panel(image: Pixels, truth: Pixels, prediction: Pixels, table: ClassTable) -> Pixels:
    """Image, truth, prediction, errors in a 2 x 2 panel; errors are red, void is grey."""
    wrong = (prediction != truth) & (truth != VOID)
    faded = (0.35 * image + 0.65 * 255).astype(np.uint8)
    errors = np.where(wrong[..., None], np.array([220, 30, 30], np.uint8), faded)
    errors = np.where((truth == VOID)[..., None], np.array([128, 128, 128], np.uint8), errors)
    quarters = [
        image,
        overlay(image, truth, table, 0.75),
        overlay(image, prediction, table, 0.75),
        errors,
    ]
    framed = [np.pad(q, ((2, 2), (2, 2), (0, 0)), constant_values=255) for q in quarters]
    return np.concatenate(
        [np.concatenate(framed[:2], axis=1), np.concatenate(framed[2:], axis=1)], axis=0
    )


def contact_sheet(
    path: Path, panels: Sequence[Pixels], table: ClassTable, width_px: int = 1500
) -> None:
    """Panels side by side, three in a row, over a legend of the classes."""
    per_row = min(3, len(panels))
    rows = -(-len(panels) // per_row)
    tallest, widest = max(p.shape[0] for p in panels), max(p.shape[1] for p in panels)
    side = width_px / per_row / 100
    figure = Figure((side * per_row, side * rows * tallest / widest + 0.5), dpi=100)
    figure.subplots_adjust(0.005, 0.5 / figure.get_size_inches()[1], 0.995, 0.995, 0.02, 0.02)
    for i, picture in enumerate(panels):
        axes = figure.add_subplot(rows, per_row, i + 1)
        axes.imshow(picture)
        axes.axis("off")
    handles = [
        figure.gca().scatter(
            [], [], s=90, marker="s", color=np.array([colour]) / 255, edgecolors="0.4"
        )
        for colour in table.colours
    ]
    figure.legend(
        handles, table.names, loc="lower center", ncols=min(11, len(table)), frameon=False
    )
    figure.savefig(path)


def label_png(path: Path, label: Pixels, table: ClassTable) -> None:
    """The label map as a palette PNG."""
    palette_picture(label, table).save(path)


def overlay_png(path: Path, image: Pixels, label: Pixels, table: ClassTable) -> None:
    """The label map laid over its image."""
    Image.fromarray(overlay(image, label, table)).save(path)


def rgb_png(path: Path, image: Pixels) -> None:
    """A picture (H, W, 3) as it is."""
    Image.fromarray(image).save(path)
