"""Pictures of a search."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import JsonValue

from tuning.events import Status
from tuning.records import Search, Trial
from tuning.sensitivity import Floats, Sensitivity, coordinates, survival
from tuning.space import LR, WEIGHT_DECAY, Choice, Log, parse_space

INK, GREY, ACCENT = "#1f2933", "#9aa5b1", "#d1495b"
COLOURS = "viridis"
SIZE_IN = (5.6, 4.3)
"""Narrow, so that its letters can be read where a phone shrinks it."""


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key; more where that would be ambiguous."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {k: last if lasts.count(last) == 1 else k for k, last in zip(keys, lasts, strict=True)}


def axes_of(search: Search, found: Sensitivity | None) -> list[str]:
    """The dimensions to draw: learning rate and weight decay, else the one or two that matter most."""
    keys = list(search.begun.space)
    if {LR, WEIGHT_DECAY} <= set(keys):
        return [LR, WEIGHT_DECAY]
    return ([i.key for i in found.influences] if found else keys)[:2]


def point_map(path: Path, search: Search, keys: Sequence[str]) -> None:
    """Trials by their place in one or two dimensions, coloured by mean IU."""
    figure, axes = _figure()
    trials = list(search.trials.values())
    x = _scale(axes, "x", search, keys[0])
    y = _scale(axes, "y", search, keys[1]) if len(keys) > 1 else _scores(trials)
    if len(keys) == 1:
        axes.set_ylabel("mean IU")
    scored = [t.mean_iu for t in trials if t.mean_iu is not None]
    norm = Normalize(min(scored), max(scored)) if len(set(scored)) > 1 else Normalize(0, 1)
    colours = ScalarMappable(norm, COLOURS)
    _scatter(axes, trials, x, y, colours)
    for name, trial in (("recipe", search.trials.get(0)), ("best", search.best())):
        if trial:
            at = trials.index(trial)
            _ring(axes, x[at], y[at], name)
    if scored:
        figure.colorbar(colours, ax=axes, label="mean IU", pad=0.02).outline.set_visible(False)
    _legend_below(figure, axes)
    figure.savefig(path)


def _ring(axes: Axes, x: float, y: float, name: str) -> None:
    form, size, colour = RINGS[name]
    axes.scatter(x, y, size, marker=form, fc="none", ec=colour, lw=1.8, zorder=4)
    axes.scatter([], [], size / 2.5, marker=form, fc="none", ec=colour, lw=1.8, label=name)


RINGS = {"recipe": ("s", 190, INK), "best": ("o", 330, ACCENT)}
"""Form, area and colour of what is drawn around a trial."""


def _scatter(
    axes: Axes, trials: Sequence[Trial], x: Floats, y: Floats, colours: ScalarMappable
) -> None:
    """Each status in its own form."""
    for status, form in FORMS.items():
        mine = [i for i, t in enumerate(trials) if t.status == status and t.mean_iu is not None]
        if mine:
            rgba = colours.to_rgba(_scores([trials[i] for i in mine]))
            face = "none" if status == "pruned" else rgba
            axes.scatter(x[mine], y[mine], s=85, marker=form, fc=face, ec=rgba, lw=1.8, zorder=3)
            fill = "none" if status == "pruned" else GREY
            axes.scatter([], [], s=60, marker=form, fc=fill, ec=GREY, lw=1.6, label=status)
    unscored = [i for i, t in enumerate(trials) if t.mean_iu is None]
    if unscored:
        axes.scatter(
            x[unscored], y[unscored], s=55, marker="x", color=GREY, lw=1.8, label="never scored"
        )


FORMS: dict[Status, str] = {
    "finished": "o",
    "pruned": "o",
    "stopped": "s",
    "running": "D",
    "failed": "X",
}


def _scores(trials: Sequence[Trial]) -> Floats:
    """Mean IU as a height; unscored trials lie on the floor."""
    return np.array([t.mean_iu or 0.0 for t in trials])


def _scale(axes: Axes, side: Literal["x", "y"], search: Search, key: str) -> Floats:
    """Set up an axis for a dimension, as wide as what was searched; where each trial lies on it."""
    distribution = parse_space(search.begun.space, "journal").dimensions[key]
    where, categories = coordinates(distribution, [t.point[key] for t in search.trials.values()])
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_label_text(short_names(list(search.begun.space))[key].replace("_", " "))
    if isinstance(distribution, Choice):
        axis.set_ticks(range(len(categories)), [word(value) for value in categories])
        axes.set(**{f"{side}lim": (-0.5, len(categories) - 0.5)})
        return where + _aside(len(where), np.sin if side == "x" else np.cos)
    low, high = min(distribution.bounds[0], *where), max(distribution.bounds[1], *where)
    if isinstance(distribution, Log):
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


def word(value: JsonValue) -> str:
    """A value for a reader."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def curves(path: Path, search: Search) -> None:
    """Mean IU of all trials by step, a mark at each rung."""
    figure, axes = _figure()
    best = search.best()
    named: set[str] = set()
    for trial in sorted(search.trials.values(), key=lambda t: t == best):
        if not trial.rungs:
            continue
        kind = "best" if trial == best else trial.status
        colour, width, alpha = CURVES[kind]
        label = kind if kind not in named else None
        named.add(kind)
        steps, scores = list(trial.rungs), list(trial.rungs.values())
        axes.plot(steps, scores, color=colour, lw=width, alpha=alpha, marker="o", ms=4, label=label)
        if kind == "failed":
            axes.plot(steps[-1], scores[-1], "x", color=colour, ms=10, mew=2)
    rungs = list(survival(search))
    if len(rungs) <= 12:
        for step in rungs:
            axes.axvline(step, color=GREY, lw=0.7, ls=":", zorder=0)
    axes.set(xlabel="optimiser step", ylabel="mean IU", xlim=(0, None))
    axes.set_ylim(bottom=0)
    _legend_below(figure, axes)
    figure.savefig(path)


CURVES = {
    "best": (ACCENT, 2.6, 1.0),
    "finished": ("#2f6690", 1.6, 0.8),
    "pruned": (GREY, 1.2, 0.9),
    "stopped": ("#e09f3e", 1.4, 0.9),
    "running": ("#81a88d", 1.4, 0.9),
    "failed": ("#5c4742", 1.4, 0.9),
}
"""Colour, width and opacity of a trial's curve."""


def influence_bars(path: Path, found: Sensitivity, keys: Sequence[str]) -> None:
    """The share of each dimension with its interval, and what chance alone would give."""
    figure, axes = _figure(1.5 + 0.62 * len(found.influences))
    names = short_names(keys)
    for row, influence in enumerate(found.influences):
        matters = influence.share > influence.chance
        axes.barh(row, influence.share, 0.5, color="#2f6690" if matters else "#c5ced8")
        axes.plot([influence.low, influence.high], [row, row], color=INK, lw=1.5)
        axes.plot([influence.chance] * 2, [row - 0.36, row + 0.36], color=ACCENT, lw=2.2)
    axes.set_yticks(
        range(len(found.influences)), [names[i.key].replace("_", " ") for i in found.influences]
    )
    axes.plot([], [], color=INK, lw=1.5, label="90 % interval")
    axes.plot([], [], color=ACCENT, lw=2.2, label="reached by chance")
    axes.set(xlabel="share of the variance of mean IU", xlim=(0, 1))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _legend_below(figure, axes)
    figure.savefig(path)


def survival_bars(path: Path, search: Search) -> None:
    """How many trials were scored at each rung."""
    figure, axes = _figure(3.1)
    reached = survival(search)
    bars = axes.bar(range(len(reached)), list(reached.values()), 0.72, color="#2f6690")
    if len(reached) <= 20:
        axes.bar_label(bars, padding=2, size=9)
    every = -(-len(reached) // 10)
    places = range(0, len(reached), every)
    axes.set_xticks(places, [str(list(reached)[i]) for i in places])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="rung (optimiser step)", ylabel="trials", ylim=(0, len(search.trials) * 1.12))
    axes.grid(visible=False, axis="x")
    figure.savefig(path)


def _figure(height_in: float = SIZE_IN[1]) -> tuple[Figure, Axes]:
    figure = Figure((SIZE_IN[0], height_in), layout="constrained", dpi=200)
    axes: Axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, which="both", color=GREY)
    axes.grid(alpha=0.25, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=5,
            columnspacing=1.2,
            handletextpad=0.3,
            frameon=False,
            fontsize=9,
        )
