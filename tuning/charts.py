"""Pictures of a search, in colours that all eyes tell apart; no difference is shown by hue alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from pydantic import JsonValue

from tuning.importance import Floats, Importances, coordinates
from tuning.records import Search, Status
from tuning.space import LR, WEIGHT_DECAY

INK, GREY, BLUE, ACCENT = "#1f2933", "#8a94a0", "#0072b2", "#d55e00"
STYLE = "seaborn-v0_8-whitegrid"
WIDTH_IN, HEIGHT_IN = 5.6, 4.3
"""Narrow, so that its letters can be read where a phone shrinks it."""
FORMS: dict[Status, str] = {
    "finished": "o",
    "pruned": "o",
    "stopped": "s",
    "running": "D",
    "failed": "X",
}
RINGS = {"recipe": ("s", 190.0, INK), "best": ("o", 330.0, ACCENT)}
"""Form, area and colour of what is drawn around a trial."""
CURVES = {
    "best": (ACCENT, 2.6, "-"),
    "finished": (BLUE, 1.6, "-"),
    "pruned": (GREY, 1.2, "-"),
    "stopped": ("#e69f00", 1.6, "--"),
    "running": ("#56b4e9", 1.6, "-."),
    "failed": (INK, 1.4, ":"),
}
"""Colour, width and dashes of a trial's curve."""


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key; more where that would be ambiguous."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {
        key: last.replace("_", " ") if lasts.count(last) == 1 else key
        for key, last in zip(keys, lasts, strict=True)
    }


def word(value: JsonValue) -> str:
    """A value for a reader."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def axes_of(search: Search, found: Importances | None) -> list[str]:
    """The dimensions to draw: learning rate and weight decay, else the one or two that matter most."""
    keys = list(search.plan.space.dimensions)
    if {LR, WEIGHT_DECAY} <= set(keys):
        return [LR, WEIGHT_DECAY]
    return ([each.key for each in found.dimensions] if found else keys)[:2]


def point_map(search: Search, keys: Sequence[str]) -> Figure:
    """Trials by their place in one or two dimensions, coloured by mean IU."""
    figure, axes = _figure()
    trials = list(search.trials.values())
    scores = np.array([t.mean_iu or 0.0 for t in trials])  # unscored trials lie on the floor
    x = _scale(axes, "x", search, keys[0])
    y = _scale(axes, "y", search, keys[1]) if len(keys) > 1 else scores
    if len(keys) == 1:
        axes.set_ylabel("mean IU")
    scored = [t.mean_iu for t in trials if t.mean_iu is not None]
    norm = Normalize(min(scored), max(scored)) if len(set(scored)) > 1 else Normalize(0, 1)
    colours = ScalarMappable(norm, "viridis")
    for status, form in FORMS.items():
        if mine := [i for i, t in enumerate(trials) if t.status == status and t.scores]:
            rgba, hollow = colours.to_rgba(scores[mine]), status == "pruned"
            face, grey = ("none", "none") if hollow else (rgba, GREY)
            axes.scatter(x[mine], y[mine], s=85, marker=form, fc=face, ec=rgba, lw=1.8, zorder=3)
            axes.scatter([], [], s=60, marker=form, fc=grey, ec=GREY, lw=1.6, label=status)
    if rest := [i for i, t in enumerate(trials) if not t.scores]:
        axes.scatter(x[rest], y[rest], s=55, marker="x", color=GREY, lw=1.8, label="never scored")
    for name, trial in (("recipe", search.trials.get(0)), ("best", search.best())):
        if trial:
            at = trials.index(trial)
            _ring(axes, name, x[at], y[at])
    if scored:
        figure.colorbar(colours, ax=axes, label="mean IU", pad=0.02).outline.set_visible(False)
    return _with_legend(figure)


def _ring(axes: Axes, name: str, x: float, y: float) -> None:
    """Around a trial, and in the legend."""
    form, size, ink = RINGS[name]
    axes.scatter(x, y, size, marker=form, fc="none", ec=ink, lw=1.8, zorder=4)
    axes.scatter([], [], size / 2.5, marker=form, fc="none", ec=ink, lw=1.8, label=name)


def curves(search: Search) -> Figure:
    """Mean IU of all trials by images seen; along the top, how many trials came that far."""
    figure, axes = _figure()
    best, named = search.best(), set()
    for trial in sorted(search.trials.values(), key=lambda t: t == best):
        if trial.curve:
            kind = "best" if trial == best else trial.status
            colour, width, dashes = CURVES[kind]
            label = "" if kind in named else kind
            images, scores = list(trial.curve), list(trial.curve.values())
            axes.plot(images, scores, f"o{dashes}", color=colour, lw=width, ms=4, label=label)
            if trial.status == "failed":
                axes.plot(images[-1], scores[-1], "x", color=colour, ms=10, mew=2)
            named.add(kind)
    axes.set(xlabel="images seen in training", ylabel="mean IU", xlim=(0, None), ylim=(0, None))
    reached = list(search.survival().items())
    shown = reached[:: -(-len(reached) // 10)]
    top = axes.secondary_xaxis("top")
    top.set_xticks([images for images, _ in shown], [f"{count}" for _, count in shown])
    top.set_xlabel("trials that came so far")
    return _with_legend(figure)


def importance_bars(found: Importances) -> Figure:
    """The share of each dimension with its interval, and what chance alone would give."""
    figure, axes = _figure(1.5 + 0.62 * len(found.dimensions))
    keys = [each.key for each in found.dimensions]
    for row, each in enumerate(found.dimensions):
        axes.barh(row, each.share, 0.5, color=BLUE if each.share > each.chance else "#c5ced8")
        axes.plot([each.low, each.high], [row, row], color=INK, lw=1.5)
        axes.plot([each.chance] * 2, [row - 0.36, row + 0.36], color=ACCENT, lw=2.2)
    axes.set_yticks(range(len(keys)), list(short_names(keys).values()))
    axes.plot([], [], color=INK, lw=1.5, label="90 % interval")
    axes.plot([], [], color=ACCENT, lw=2.2, label="reached by chance")
    axes.set(xlabel="share of the variance of mean IU", xlim=(0, 1))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _with_legend(figure)


def _scale(axes: Axes, side: Literal["x", "y"], search: Search, key: str) -> Floats:
    """Set up an axis for a dimension, as wide as what was searched; where each trial lies on it."""
    distribution = search.plan.space.dimensions[key]
    values = [trial.point[key] for trial in search.trials.values()]
    where, axis = coordinates(distribution, values), getattr(axes, f"{side}axis")
    axis.set_label_text(short_names(list(search.plan.space.dimensions))[key])
    if distribution.choice is not None:
        listed = [*distribution.choice, *values]
        last = int(max(len(distribution.choice) - 1, *where))
        axis.set_ticks(range(last + 1), [word(value) for value in listed[: last + 1]])
        # Trials of one value are spread a little, the same way on each page.
        return where + np.random.default_rng(ord(side)).uniform(-0.28, 0.28, len(where))
    if distribution.log:
        axes.set(**{f"{side}scale": "log"})
    bounds = [(bound, bound) for bound in distribution.bounds]
    axes.update_datalim(bounds, updatex=side == "x", updatey=side == "y")
    return where


def _figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    with style.context(STYLE):
        figure = Figure((WIDTH_IN, height_in), layout="constrained", dpi=200)
        axes: Axes = figure.subplots()
    axes.margins(0.06)
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
