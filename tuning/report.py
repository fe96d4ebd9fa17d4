"""A search for its reader: on one page that needs nothing else, and on the terminal."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from tuning.charts import (
    axes_of,
    curves,
    importance_bars,
    point_map,
    short_names,
    survival_bars,
    word,
)
from tuning.importance import MIN_TRIALS, Importances, importances
from tuning.records import Search, Status, Trial
from tuning.settings import Settings

SHOWN: tuple[Status, ...] = ("finished", "pruned", "failed", "stopped")
STYLE = """
body { max-width: 70rem; margin: 0 auto; padding: 1rem; line-height: 1.5; color: #1f2933;
  font-family: system-ui, sans-serif; }
h1 { overflow-wrap: anywhere; } h2 { font-size: 1.1rem; } .big { font-size: 3rem; font-weight: 650; }
.note, .why { color: #616e7c; font-size: .86rem; } pre, .wide { overflow-x: auto; }
pre { padding: .8rem; background: #f1f4f8; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); }
figure { margin: .5rem; min-width: 0; } img { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .88rem; } th { color: #616e7c; text-align: left; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid #e4e7eb; vertical-align: baseline; }
.n { text-align: right; white-space: nowrap; } .top td { background: #fdf1f3; }
"""


def write_report(search: Search, folder: Path) -> Path:
    """The page and its pictures in a folder; the page holds the pictures too.

    Written whole or not at all, so that it can be looked at while the search goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = [*_head(search), *_pictures(search, folder), *_table(search), *_about(search)]
    content = "\n".join(body)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(search))}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{content}\n</body></html>\n"
    )
    page = folder / f"search-{search.plan.name}-{search.plan.created[:10]}.html"
    draft = page.with_suffix(".draft")
    draft.write_text(text)
    return draft.replace(page)


def _title(search: Search) -> str:
    return f"Search {search.plan.name}, {search.plan.created[:10]}"


def _head(search: Search) -> Iterable[str]:
    plan, best = search.plan, search.best()
    over = ", ".join(short_names(list(plan.space)).values())
    going = f"; {_trials(len(search.under_way()))} not over yet" if search.under_way() else ""
    yield f"<h1>{escape(_title(search))}</h1>"
    yield f"<p>{_trials(len(search.trials))} of {escape(plan.recipe)} over {escape(over)}{going}</p>"
    if best is None or best.mean_iu is None:
        waiting = not search.trials or search.under_way()
        yield f"<h2>{'No score yet' if waiting else 'No trial came through'}</h2>"
        yield "<p>The table below says what became of each.</p>"
    else:
        sets = "\n".join(f"--set {escape(shlex.quote(o))}" for o in best.overrides())
        by = f"trial {best.number}{_against(search, best)}"
        yield f"<p><span class=big>{best.mean_iu:.4f}</span>"
        yield f"best mean IU on the validation images, by {by}</p>"
        yield f"<pre>{sets}</pre>"
    trained, saved = search.steps_trained, search.steps_saved
    percent = 100 * saved / (trained + saved) if saved else 0.0
    words = [f"{search.count(status)} {status}" for status in SHOWN if search.count(status)]
    words.append(f"{trained:,} steps trained, {percent:.0f} % of all saved by pruning")
    yield f"<p>{'; '.join(words)}.</p>"


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _against(search: Search, best: Trial) -> str:
    """How the best compares with the recipe as it was; that it was not trained to its end."""
    own, words = search.trials.get(0), ""
    if best.number == 0:
        words = ", the recipe as it is"
    elif own and own.mean_iu is not None and best.mean_iu is not None:
        words = f", {best.mean_iu - own.mean_iu:+.4f} against the recipe as it is"
        words += "" if own.status == "finished" else f" (which is {own.status})"
    if best.status != "finished":
        images = best.scores[-1].images if best.scores else 0
        words += (
            f". It is {best.status} after {images:,} of {search.plan.max_images:,} images; no trial has "
            "finished, so this may change"
        )
    return words


def _pictures(search: Search, folder: Path) -> Iterable[str]:
    if not search.trials:
        return
    found = importances(search)
    keys, names = axes_of(search, found), short_names(list(search.plan.space))
    yield "<div class=grid>"
    yield _figure(
        "Where the good values lie",
        f"Each mark is a trial at its {' and '.join(names[key] for key in keys)}. Pruned trials are "
        "hollow: their mean IU is of less training and so lower than it might have become.",
        folder / "map.png",
        point_map(search, keys),
    )
    if any(trial.scores for trial in search.trials.values()):
        note = "Mean IU on the validation images; at some of the dots a trial may be pruned."
        yield _figure("How they learned", note, folder / "curves.png", curves(search))
        yield _importance(search, found, folder)
        note = "Trials that were scored at each validation."
        yield _figure("How far they came", note, folder / "survival.png", survival_bars(search))
    yield "</div>"


def _importance(search: Search, found: Importances | None, folder: Path) -> str:
    title = "What mattered"
    if found is None:
        return (
            f"<figure><h2>{title}</h2><p class=note>Fewer than {MIN_TRIALS} trials were scored at the "
            "same validation: too few to tell one dimension's influence from another's.</p></figure>"
        )
    note = (
        f"From the {found.num_trials} trials scored after {found.images:,} images. The bar is how much "
        "of the variance of mean IU a parabola in that dimension alone follows (for a choice: the means "
        "of its values). The black line is where 90 % of the bars fall if the trials are drawn again. "
        "The red tick is what chance reaches: if no dimension mattered, in 95 % of searches no bar "
        "would cross its tick; a bar short of it, drawn grey, says nothing."
    )
    return _figure(
        title, note, folder / "importance.png", importance_bars(found, list(search.plan.space))
    )


def _figure(title: str, note: str, path: Path, figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    path.write_bytes(content.getvalue())
    data = base64.b64encode(content.getvalue()).decode()
    return (
        f'<figure><h2>{escape(title)}</h2><img alt="{escape(title)}" '
        f'src="data:image/png;base64,{data}"><p class=note>{escape(note)}</p></figure>'
    )


def _table(search: Search) -> Iterable[str]:
    names = short_names(list(search.plan.space))
    heads = "".join(f'<th class=n title="{escape(k)}">{escape(n)}</th>' for k, n in names.items())
    yield "<h2>All trials</h2><div class=wide><table><thead><tr><th class=n>trial</th>"
    yield f"<th class=n>mean IU</th>{heads}<th class=n>steps</th><th class=n>time</th><th>status</th>"
    yield "</tr></thead><tbody>"
    best = search.best()
    for trial in search.ranked():
        values = "".join(
            f"<td class=n>{escape(word(value))}</td>" for value in trial.point.values()
        )
        own = "<small>recipe</small> " if trial.number == 0 else ""
        yield (
            f"<tr{' class=top' if trial == best else ''}><td class=n>{own}{trial.number}</td>"
            f"<td class=n><b>{_score(trial)}</b></td>{values}<td class=n>{trial.steps:,}</td>"
            f"<td class=n>{_duration(trial.seconds)}</td>"
            f"<td>{trial.status} <span class=why>{escape(trial.reason)}</span></td></tr>"
        )
    yield "</tbody></table></div>"


def _score(trial: Trial) -> str:
    return "" if trial.mean_iu is None else f"{trial.mean_iu:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _about(search: Search) -> Iterable[str]:
    plan = search.plan
    yield "<h2>What was searched</h2><div class=wide><table>"
    for key, plain in plan.space.items():
        kind, values = next(iter(plain.items()))
        words = (" or " if kind == "choice" else " to ").join(word(value) for value in values)
        note = {"log": ", log-uniform", "uniform": ", uniform"}.get(kind, "")
        yield f"<tr><td><code>{escape(key)}</code></td><td>{escape(words)}{note}</td></tr>"
    yield (
        f"</table></div><p class=note>Sampler {escape(plan.sampler)}, scheduler "
        f"{escape(plan.scheduler)}, seed {plan.seed}, at most {plan.max_images:,} images a trial, data "
        f"{escape(plan.data)}. Trial 0 is the recipe as it is. A trial's mean IU is the highest of its "
        "validations. The best of many trials is chosen by the same images that score it, and so is a "
        "little better here than it will be elsewhere.</p>"
    )


def head_line(search: Search, settings: Settings, under_way: str) -> str:
    """How far a search has come, in a line for the terminal."""
    words = [f"{len(search.over())} of {settings.trials} trials are over"]
    words += [f"{count} {status}" for status in SHOWN[:3] if (count := search.count(status))]
    if settings.budget_s is not None:
        left_s = max(0.0, settings.budget_s - search.spent_s)
        words.append(f"{left_s / 60:.0f} of {settings.budget_s / 60:.0f} min of the budget left")
    state = f"under way, {under_way}" if under_way else "nobody is at it"
    return f"{settings.name}: {', '.join(words)}; {state}"


def trial_table(search: Search) -> Table:
    """A trial a row, the best first, for the terminal."""
    names = short_names(list(search.plan.space))
    table = Table(box=None)
    for name in ("trial", "mean IU", *names.values(), "steps", "status"):
        table.add_column(name, justify="right" if name != "status" else "left")
    for trial in search.ranked():
        values = [word(trial.point[key]) for key in names]
        how = f"{trial.status} {trial.reason}".strip()
        table.add_row(str(trial.number), _score(trial), *values, f"{trial.steps:,}", how)
    return table
