"""A search on the terminal."""

from __future__ import annotations

from rich.table import Table

from tuning.charts import short_names, word
from tuning.records import Search
from tuning.settings import Settings


def head_line(search: Search, settings: Settings, under_way: str) -> str:
    """How far it has come, in a line."""
    ended = len([t for t in search.trials.values() if t.status not in ("running", "stopped")])
    words = [f"{ended} of {settings.trials} trials are over"]
    words += [
        f"{count} {status}"
        for status in ("finished", "pruned", "failed")
        if (count := search.count(status))
    ]
    if settings.budget_s is not None:
        left_s = max(0.0, settings.budget_s - search.spent_s)
        words.append(f"{left_s / 60:.0f} of {settings.budget_s / 60:.0f} min of the budget left")
    state = f"under way, {under_way}" if under_way else "nobody is at it"
    return f"{settings.name}: {', '.join(words)}; {state}"


def trial_table(search: Search) -> Table:
    """A trial a row, the best first."""
    names = short_names(list(search.begun.space))
    table = Table(box=None)
    for name in ("trial", "mean IU", *names.values(), "steps", "status"):
        table.add_column(name, justify="right" if name != "status" else "left")
    for trial in search.ranked():
        score = "" if trial.mean_iu is None else f"{trial.mean_iu:.4f}"
        values = [word(trial.point[key]) for key in names]
        how = f"{trial.status} {trial.reason}".strip()
        table.add_row(str(trial.number), score, *values, f"{trial.steps:,}", how)
    return table
