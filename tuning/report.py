"""A search for its reader: on one page that needs nothing else, and on the terminal."""

from __future__ import annotations

import base64
import shlex
from datetime import timedelta
from pathlib import Path

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from tuning.charts import axes_of, curves, importance_bars, point_map, short_names, word
from tuning.importance import MIN_TRIALS, Importances, importances
from tuning.records import Search, Trial
from tuning.settings import Settings
from tuning.space import Distribution


def write_report(search: Search, folder: Path) -> Path:
    """The page and its pictures in a folder; the page holds the pictures too.

    Written whole or not at all, so that it can be looked at while the search goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan, found = search.plan, importances(search)
    trained, saved = search.steps_trained, search.steps_saved
    pages = Environment(loader=PackageLoader("tuning", ""), autoescape=True, trim_blocks=True)
    pages.filters |= {"quote": shlex.quote, "word": word, "score": _score}
    text = pages.get_template("page.html").render(
        title=f"Search {plan.name}, {plan.created[:10]}, data {plan.data[:8]}",
        search=search,
        plan=plan,
        best=search.best(),
        own=search.trials.get(0),
        names=short_names(list(plan.space.dimensions)),
        drawn=" and ".join(short_names(axes_of(search, found)).values()),
        trained=trained,
        saved_percent=100 * saved / ((trained + saved) or 1),
        found=found,
        too_few=MIN_TRIALS,
        pictures=_pictures(search, found, folder),
        searched={key: _words(each) for key, each in plan.space.dimensions.items()},
        duration=lambda trial: timedelta(seconds=round(trial.seconds)),
    )
    page = folder / f"search-{plan.name}-{plan.created[:10]}-{plan.data[:8]}.html"
    draft = page.with_suffix(".draft")
    draft.write_text(text)
    return draft.replace(page)


def _score(trial: Trial) -> str:
    return "" if trial.mean_iu is None else f"{trial.mean_iu:.4f}"


def _words(distribution: Distribution) -> str:
    choice = distribution.choice is not None
    words = (" or " if choice else " to ").join(word(value) for value in distribution.ends())
    return words + ("" if choice else ", log-uniform" if distribution.log else ", uniform")


def _pictures(search: Search, found: Importances | None, folder: Path) -> dict[str, str]:
    """Each picture that there is something to draw in, as a file in the folder and in base64."""
    drawn: dict[str, Figure] = {}
    if search.trials:
        drawn["map"] = point_map(search, axes_of(search, found))
    if search.survival():
        drawn["curves"] = curves(search)
    if found:
        drawn["importance"] = importance_bars(found)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png")
    return {
        name: base64.b64encode((folder / f"{name}.png").read_bytes()).decode() for name in drawn
    }


def head_line(search: Search, settings: Settings, under_way: str) -> str:
    """How far a search has come, in a line for the terminal."""
    over, left = len(search.over()), settings.words_left(search.spent_s)
    wanted = search.plan.grid_trials or settings.trials
    state = f"under way, {under_way}" if under_way else "nobody is at it"
    words = f"{over} of {wanted} trials are over, {search.words()}{left}"
    return f"{settings.name}: {words}; {state}"


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
