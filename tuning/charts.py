"""Pictures of a search."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import JsonValue

from tuning.importance import Floats, Importances, coordinates, survival
from tuning.records import Search, Status
from tuning.space import LR, WEIGHT_DECAY, parse_space

INK, GREY, BLUE, ACCENT = "#1f2933", "#9aa5b1", "#2f6690", "#d1495b"
COLOURS = "viridis"
SIZE_IN = (5.6, 4.3)
"""Narrow, so that its letters can be read where a phone shrinks it."""
FORMS: dict[Status, str] = {
    "finished": "o",
    "pruned": "o",
    "stopped": "s",
    "running": "D",
    "failed": "X",
}
CURVES = {
    "best": (ACCENT, 2.6),
    "finished": (BLUE, 1.6),
    "pruned": (GREY, 1.2),
    "stopped": ("#e09f3e", 1.4),
    "running": ("#81a88d", 1.4),
    "failed": ("#5c4742", 1.4),
}
"""Colour and width of a trial's curve."""


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
    keys = list(search.plan.space)
    if {LR, WEIGHT_DECAY} <= set(keys):
        return [LR, WEIGHT_DECAY]
    return ([each.key for each in found.dimensions] if found else keys)[:2]


def point_map(search: Search, keys: Sequence[str]) -> Figure:
    """Trials by their place in one or two dimensions, coloured by mean IU."""
    figure, axes = _figure()
    trials = list(search.trials.values())
    x = _scale(axes, "x", search, keys[0])
    scores = np.array([t.mean_iu or 0.0 for t in trials])  # unscored trials lie on the floor
    y = _scale(axes, "y", search, keys[1]) if len(keys) > 1 else scores
    if len(keys) == 1:
        axes.set_ylabel("mean IU")
    scored = [t.mean_iu for t in trials if t.mean_iu is not None]
    norm = Normalize(min(scored), max(scored)) if len(set(scored)) > 1 else Normalize(0, 1)
    colours = ScalarMappable(norm, COLOURS)
    for status, form in FORMS.items():
        mine = [i for i, t in enumerate(trials) if t.status == status and t.mean_iu is not None]
        if mine:
            rgba, hollow = colours.to_rgba(scores[mine]), status == "pruned"
            face = "none" if hollow else rgba
            axes.scatter(x[mine], y[mine], s=85, marker=form, fc=face, ec=rgba, lw=1.8, zorder=3)
            fill = "none" if hollow else GREY
            axes.scatter([], [], s=60, marker=form, fc=fill, ec=GREY, lw=1.6, label=status)
    if rest := [i for i, t in enumerate(trials) if t.mean_iu is None]:
        axes.scatter(x[rest], y[rest], s=55, marker="x", color=GREY, lw=1.8, label="never scored")
    for name, trial in (("recipe", search.trials.get(0)), ("best", search.best())):
        if trial:
            _ring(axes, x[trials.index(trial)], y[trials.index(trial)], name)
    if scored:
        figure.colorbar(colours, ax=axes, label="mean IU", pad=0.02).outline.set_visible(False)
    return _with_legend(figure, axes)


RINGS = {"recipe": ("s", 190.0, INK), "best": ("o", 330.0, ACCENT)}
"""Form, area and colour of what is drawn around a trial."""


def _ring(axes: Axes, x: float, y: float, name: str) -> None:
    form, size, colour = RINGS[name]
    axes.scatter(x, y, size, marker=form, fc="none", ec=colour, lw=1.8, zorder=4)
    axes.scatter([], [], size / 2.5, marker=form, fc="none", ec=colour, lw=1.8, label=name)


def curves(search: Search) -> Figure:
    """Mean IU of all trials by images seen."""
    figure, axes = _figure()
    best, named = search.best(), set()
    for trial in sorted(search.trials.values(), key=lambda t: t == best):
        if not trial.curve:
            continue
        kind = "best" if trial == best else trial.status
        colour, width = CURVES[kind]
        images, scores = list(trial.curve), list(trial.curve.values())
        label = kind if kind not in named else None
        axes.plot(images, scores, color=colour, lw=width, marker="o", ms=4, label=label)
        if kind == "failed":
            axes.plot(images[-1], scores[-1], "x", color=colour, ms=10, mew=2)
        named.add(kind)
    axes.set(xlabel="images seen in training", ylabel="mean IU", xlim=(0, None))
    axes.set_ylim(bottom=0)
    return _with_legend(figure, axes)


def importance_bars(found: Importances, keys: Sequence[str]) -> Figure:
    """The share of each dimension with its interval, and what chance alone would give."""
    figure, axes = _figure(1.5 + 0.62 * len(found.dimensions))
    names = short_names(keys)
    for row, each in enumerate(found.dimensions):
        colour = BLUE if each.share > each.chance else "#c5ced8"
        axes.barh(row, each.share, 0.5, color=colour)
        axes.plot([each.low, each.high], [row, row], color=INK, lw=1.5)
        axes.plot([each.chance] * 2, [row - 0.36, row + 0.36], color=ACCENT, lw=2.2)
    axes.set_yticks(range(len(found.dimensions)), [names[each.key] for each in found.dimensions])
    axes.plot([], [], color=INK, lw=1.5, label="90 % interval")
    axes.plot([], [], color=ACCENT, lw=2.2, label="reached by chance")
    axes.set(xlabel="share of the variance of mean IU", xlim=(0, 1))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _with_legend(figure, axes)


def survival_bars(search: Search) -> Figure:
    """How many trials were scored at each validation."""
    figure, axes = _figure(3.1)
    reached = survival(search)
    bars = axes.bar(range(len(reached)), list(reached.values()), 0.72, color=BLUE)
    if len(reached) <= 20:
        axes.bar_label(bars, padding=2, size=9)
    places = range(0, len(reached), -(-len(reached) // 10))
    axes.set_xticks(places, [f"{list(reached)[i]:,}" for i in places])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="images seen", ylabel="trials", ylim=(0, len(search.trials) * 1.12))
    axes.grid(visible=False, axis="x")
    return figure


def _scale(axes: Axes, side: Literal["x", "y"], search: Search, key: str) -> Floats:
    """Set up an axis for a dimension, as wide as what was searched; where each trial lies on it."""
    distribution = parse_space(search.plan.space, "space").dimensions[key]
    where, categories = coordinates(distribution, [t.point[key] for t in search.trials.values()])
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_label_text(short_names(list(search.plan.space))[key])
    if distribution.choice is not None:
        axis.set_ticks(range(len(categories)), [word(value) for value in categories])
        axes.set(**{f"{side}lim": (-0.5, len(categories) - 0.5)})
        return where + _aside(len(where), np.sin if side == "x" else np.cos)
    low, high = min(distribution.bounds[0], *where), max(distribution.bounds[1], *where)
    if distribution.log:
        margin = (high / low) ** 0.06
        axes.set(**{f"{side}scale": "log", f"{side}lim": (low / margin, high * margin)})
    else:
        margin = 0.06 * (high - low)
        axes.set(**{f"{side}lim": (low - margin, high + margin)})
    return where


def _aside(count: int, wave: Callable[[Floats], Floats]) -> Floats:
    """Small shifts, always the same, that spread trials of one category like a sunflower's seeds."""
    seeds = np.arange(count, dtype=np.float64)
    return 0.3 * np.sqrt((seeds + 0.5) / count) * wave(2.39996 * seeds)


def _figure(height_in: float = SIZE_IN[1]) -> tuple[Figure, Axes]:
    figure = Figure((SIZE_IN[0], height_in), layout="constrained", dpi=200)
    axes: Axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, which="both", color=GREY)
    axes.grid(alpha=0.25, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9
        )
    return figure
