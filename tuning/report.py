"""A search for its reader: on one page that needs nothing else, and on the terminal."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from tuning.charts import axes_of, curves, importance_bars, point_map, short_names, word
from tuning.importance import MIN_TRIALS, Importances, importances
from tuning.records import Search, Trial
from tuning.settings import Settings
from tuning.space import Distribution


class Picture(NamedTuple):
    """A picture of the page, or the words in its place."""

    title: str
    note: str
    png: str = ""
    """In base64; empty if there is nothing to draw."""


def write_report(search: Search, folder: Path) -> Path:
    """The page and its pictures in a folder; the page holds the pictures too.

    Written whole or not at all, so that it can be looked at while the search goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan, best = search.plan, search.best()
    trained, saved = search.steps_trained, search.steps_saved
    pages = Environment(loader=PackageLoader("tuning", ""), autoescape=True, trim_blocks=True)
    pages.filters["quote"] = shlex.quote
    text = pages.get_template("page.html").render(
        title=f"Search {plan.name}, {plan.created[:10]}, data {plan.data[:8]}",
        search=search,
        plan=plan,
        best=best,
        names=short_names(list(plan.space.dimensions)),
        against=_against(search, best),
        counts=_counts(search) or "no trial yet",
        trained=trained,
        saved_percent=100 * saved / ((trained + saved) or 1),
        pictures=list(_pictures(search, folder)),
        searched={key: _words(each) for key, each in plan.space.dimensions.items()},
        score=_score,
        word=word,
        duration=lambda trial: timedelta(seconds=round(trial.seconds)),
    )
    page = folder / f"search-{plan.name}-{plan.created[:10]}-{plan.data[:8]}.html"
    draft = page.with_suffix(".draft")
    draft.write_text(text)
    return draft.replace(page)


def _counts(search: Search) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(search.counts().items()))


def _score(trial: Trial) -> str:
    return "" if trial.mean_iu is None else f"{trial.mean_iu:.4f}"


def _words(distribution: Distribution) -> str:
    choice = distribution.choice is not None
    words = (" or " if choice else " to ").join(word(value) for value in distribution.ends())
    return words + ("" if choice else ", log-uniform" if distribution.log else ", uniform")


def _against(search: Search, best: Trial | None) -> str:
    """How the best compares with the recipe as it was; that it was not trained to its end."""
    own, words = search.trials.get(0), ""
    if best is not None and best.number == 0:
        words = ", the recipe as it is"
    elif best and own and own.mean_iu is not None and best.mean_iu is not None:
        words = f", {best.mean_iu - own.mean_iu:+.4f} against the recipe as it is"
        words += "" if own.status == "finished" else f" (which is {own.status})"
    if best is not None and best.status != "finished":
        words += (
            f". It is {best.status} after {best.scores[-1].images:,} of {search.plan.max_images:,} "
            "images; no trial has finished, so this may change"
        )
    return words


def _pictures(search: Search, folder: Path) -> Iterable[Picture]:
    if not search.trials:
        return
    found = importances(search)
    keys = axes_of(search, found)
    yield _drawn(
        "Where the good values lie",
        f"Each mark is a trial at its {' and '.join(short_names(keys).values())}. Pruned trials are "
        "hollow: their mean IU is of less training and so lower than it might have become.",
        folder / "map.png",
        point_map(search, keys),
    )
    if any(trial.scores for trial in search.trials.values()):
        note = (
            "Mean IU on the validation images; at some of the dots a trial may be pruned. Along the "
            "top: how many trials were scored there."
        )
        yield _drawn(
            "How they learned, how far they came", note, folder / "curves.png", curves(search)
        )
        yield _importance(found, folder)


def _importance(found: Importances | None, folder: Path) -> Picture:
    title = "What mattered"
    if found is None:
        note = f"Fewer than {MIN_TRIALS} trials were scored at the same validation: too few to tell one "
        return Picture(title, f"{note}dimension's influence from another's.")
    note = (
        f"From the {found.num_trials} trials scored after {found.images:,} images. The bar is how much "
        "of the variance of mean IU a parabola in that dimension alone follows (for a choice: the means "
        "of its values). The black line is where 90 % of the bars fall if the trials are drawn again. "
        "The tick across is what chance reaches: if no dimension mattered, in 95 % of searches no bar "
        "would cross its tick; a bar short of it, drawn grey, says nothing."
    )
    return _drawn(title, note, folder / "importance.png", importance_bars(found))


def _drawn(title: str, note: str, path: Path, figure: Figure) -> Picture:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    path.write_bytes(content.getvalue())
    return Picture(title, note, base64.b64encode(content.getvalue()).decode())


def head_line(search: Search, settings: Settings, under_way: str) -> str:
    """How far a search has come, in a line for the terminal."""
    words = [f"{len(search.over())} of {settings.trials} trials are over", _counts(search)]
    if settings.budget_s is not None:
        left_s = max(0.0, settings.budget_s - search.spent_s)
        words.append(f"{left_s / 60:.0f} of {settings.budget_s / 60:.0f} min of the budget left")
    state = f"under way, {under_way}" if under_way else "nobody is at it"
    return f"{settings.name}: {', '.join(filter(None, words))}; {state}"


def trial_table(search: Search) -> Table:
    """A trial a row, the best first, for the terminal."""
    names = short_names(list(search.plan.space.dimensions))
    table = Table(box=None)
    for name in ("trial", "mean IU", *names.values(), "steps", "status"):
        table.add_column(name, justify="right" if name != "status" else "left")
    for trial in search.ranked():
        values = [word(trial.point[key]) for key in names]
        how = f"{trial.status} {trial.reason}".strip()
        cells = (str(trial.number), _score(trial), *values, f"{trial.steps:,}", how)
        table.add_row(*map(Text, cells))  # a reason may hold what rich would take for markup
    return table
