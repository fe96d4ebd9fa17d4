"""A search on one page that needs nothing else: no network, no script, readable on a phone."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from pydantic import JsonValue

from tuning.charts import (
    axes_of,
    curves,
    influence_bars,
    point_map,
    short_names,
    survival_bars,
    word,
)
from tuning.page import STYLE
from tuning.records import Search, Trial
from tuning.sensitivity import MIN_TRIALS, Sensitivity, sensitivity
from tuning.space import Space

PAGE = "search.html"


def write_report(search: Search, folder: Path) -> Path:
    """The page and its pictures in a folder; the page holds the pictures too.

    Written whole or not at all, so that it can be looked at while the search goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = sensitivity(search)
    body = [
        _head(search),
        *_best(search),
        _numbers(search),
        *_pictures(search, found, folder),
        _table(search),
        _about(search),
    ]
    page, draft = folder / PAGE, folder / f"{PAGE}.draft"
    draft.write_text(_document(f"Search over {search.begun.recipe}", "\n".join(body)))
    return draft.replace(page)


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(search: Search) -> str:
    keys = short_names(list(search.begun.space)).values()
    over = ", ".join(key.replace("_", " ") for key in keys)
    going = search.count("running")
    state = f"; {_trials(going)} not over yet" if going else ""
    return (
        f"<header><p class=kicker>Hyper-parameter search</p><h1>{escape(search.begun.recipe)}</h1>"
        f"<p>{_trials(len(search.trials))} over {escape(over)}{state}</p></header>"
    )


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _best(search: Search) -> Iterable[str]:
    best = search.best()
    if best is None or best.mean_iu is None:
        waiting = not search.trials or search.count("running")
        yield (
            f"<section class=best><div><h2>{'No score yet' if waiting else 'No trial came through'}</h2>"
            "<p>The table below says what became of each.</p></div></section>"
        )
        return
    sets = "\n".join(f"--set {escape(shlex.quote(o))}" for o in Space.overrides(dict(best.point)))
    yield (
        f"<section class=best><div><p class=big>{best.mean_iu:.4f}</p>"
        f"<p>best mean IU on the validation images, by trial {best.number}{_against(search, best)}</p>"
        f"</div><pre>{sets}</pre></section>"
    )


def _against(search: Search, best: Trial) -> str:
    """How the best compares with the recipe as it was; that it was not trained to its end."""
    own = search.trials.get(0)
    said = ""
    if best.number == 0:
        said = ", the recipe as it is"
    elif own and own.mean_iu is not None and best.mean_iu is not None:
        said = f", {best.mean_iu - own.mean_iu:+.4f} against the recipe as it is"
        said += "" if own.status == "finished" else f" (which is {own.status})"
    if best.status != "finished":
        said += (
            f". It is {best.status} after step {best.steps} of {search.begun.max_steps}; no trial has "
            "finished, so this may change"
        )
    return said


def _numbers(search: Search) -> str:
    trained, saved = search.steps_trained, search.steps_saved
    without = trained + saved
    percent = 100 * saved / without if without else 0.0
    tiles = [
        (f"{search.count(status)}", status)
        for status in ("finished", "pruned", "failed", "stopped")
        if search.count(status) or status != "stopped"
    ]
    tiles += [(f"{trained:,}", "steps trained"), (f"{percent:.0f} %", "steps saved by pruning")]
    cells = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles)
    bar = (
        f'<div class=bar><i style="width:{100 - percent:.1f}%"></i></div>'
        f"<p class=note>{trained:,} steps were trained; the pruned trials would have taken "
        f"{saved:,} more to their ends.</p>"
    )
    return f"<section><div class=tiles>{cells}</div>{bar if saved else ''}</section>"


def _pictures(search: Search, found: Sensitivity | None, folder: Path) -> Iterable[str]:
    if not search.trials:
        return
    keys, scored = axes_of(search, found), any(t.rungs for t in search.trials.values())
    names = [short_names(list(search.begun.space))[key].replace("_", " ") for key in keys]
    yield "<div class=grid>"
    yield _figure(
        "Where the good values lie",
        f"Each mark is a trial at its {' and '.join(names)}. Pruned trials are hollow: their mean IU is "
        "of fewer steps and so lower than it might have become.",
        folder / "map.png",
        lambda path: point_map(path, search, keys),
    )
    if scored:
        yield _figure(
            "How they learned",
            "Mean IU on the validation images; a dot is a rung, at which a trial may be pruned.",
            folder / "curves.png",
            lambda path: curves(path, search),
        )
    yield from _influences(search, found, folder)
    if scored:
        yield _figure(
            "How far they came",
            "Trials that were scored at each rung.",
            folder / "survival.png",
            lambda path: survival_bars(path, search),
        )
    yield "</div>"


def _influences(search: Search, found: Sensitivity | None, folder: Path) -> Iterable[str]:
    title = "What mattered"
    if found is None:
        yield (
            f"<figure><h2>{title}</h2><p class=note>Fewer than {MIN_TRIALS} trials were scored at the "
            "same step: too few to tell one dimension's influence from another's.</p></figure>"
        )
        return
    path = folder / "sensitivity.png"
    names = short_names(list(search.begun.space))
    trends = [
        f"{names[i.key].replace('_', ' ')} {i.rank_correlation:+.2f}"
        for i in found.influences
        if i.rank_correlation is not None
    ]
    yield _figure(
        title,
        f"From the {found.num_trials} trials scored at step {found.step}, the latest at which as many "
        "were scored as ever. The bar is how much of the variance of mean IU a parabola in that "
        "dimension alone follows (for a choice: the means of its values). The black line is where 90 % "
        "of the bars fall if the trials are drawn again. The red tick is what chance reaches: if no "
        "dimension mattered at all, in 95 % of searches no bar would cross its tick; a bar short of it, "
        "drawn grey, says nothing. From few trials little can be told, and trials that failed before "
        "that step are not counted."
        + (f" Rank correlation (+1: more is better): {', '.join(trends)}." if trends else ""),
        path,
        lambda path: influence_bars(path, found, list(search.begun.space)),
    )


def _figure(title: str, note: str, path: Path, draw: Callable[[Path], None]) -> str:
    draw(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><h2>{escape(title)}</h2><img alt="{escape(title)}" '
        f'src="data:image/png;base64,{data}"><p class=note>{escape(note)}</p></figure>'
    )


def _table(search: Search) -> str:
    names = short_names(list(search.begun.space))
    heads = "".join(
        f'<th class=n title="{escape(k)}">{escape(n.replace("_", " "))}</th>'
        for k, n in names.items()
    )
    best = search.best()
    rows = "\n".join(_row(trial, best, search.begun.max_steps) for trial in search.ranked())
    return (
        "<section><h2>All trials</h2><div class=wide><table><thead><tr><th class=n>trial</th>"
        f"<th class=n>mean IU</th>{heads}<th class=n>steps</th><th class=n>time</th><th>status</th>"
        f"</tr></thead><tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _row(trial: Trial, best: Trial | None, max_steps: int) -> str:
    score = "" if trial.mean_iu is None else f"{trial.mean_iu:.4f}"
    values = "".join(f"<td class=n>{escape(word(value))}</td>" for value in trial.point.values())
    own = " <small>recipe</small>" if trial.number == 0 else ""
    reason = f" <span class=why>{escape(trial.reason)}</span>" if trial.reason else ""
    share = min(100.0, 100 * trial.steps / max_steps)
    return (
        f"<tr{' class=top' if trial == best else ''}><td class=n>{own} {trial.number}</td>"
        f"<td class=n><b>{score}</b></td>{values}"
        f'<td class=n style="--share:{share:.0f}%"><span class=steps>{trial.steps:,}</span></td>'
        f"<td class=n>{_duration(trial.seconds)}</td>"
        f"<td class=what><span class={trial.status}>{trial.status}</span>{reason}</td></tr>"
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _about(search: Search) -> str:
    begun = search.begun
    space = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(_spell(plain))}</td></tr>"
        for key, plain in begun.space.items()
    )
    return (
        f"<section><h2>What was searched</h2><div class=wide><table>{space}</table></div>"
        f"<p class=note>Sampler {escape(begun.sampler)}, scheduler {escape(begun.scheduler)}, seed "
        f"{begun.seed}, at most {begun.max_steps:,} steps a trial. Trial 0 is the recipe as it is. A "
        "trial's mean IU is the highest of its rungs. The best of many trials is chosen by the same "
        "images that score it, and so is a little better here than it will be elsewhere.</p></section>"
    )


def _spell(plain: dict[str, JsonValue]) -> str:
    """A distribution in words."""
    kind, values = next(iter(plain.items()))
    words = [word(value) for value in values] if isinstance(values, list) else [word(values)]
    if kind == "choice":
        return " or ".join(words)
    return f"{' to '.join(words)}, {'log-uniform' if kind == 'log' else 'uniform'}"
