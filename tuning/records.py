"""What the events of a search add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from pipeline.errors import StoreError
from tuning.events import (
    EVENT,
    Cloned,
    Event,
    Failed,
    Rung,
    SearchBegun,
    SessionBegun,
    Status,
    TrialBegun,
    TrialEnded,
    whole_lines,
)
from tuning.space import Space


@dataclass(frozen=True)
class Trial:
    """One point of the space and how far its training came."""

    number: int
    point: Mapping[str, JsonValue]
    first: Mapping[str, JsonValue]
    """The point it began with; another one only in a population."""
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Mean IU by step, in the order of the steps."""
    kept: float = 0.0
    """Mean IU of the best net so far, as the last rung had it."""
    status: Status = "running"
    failure: str = ""
    """Why its training cannot go on."""
    clones: Mapping[int, int] = field(default_factory=dict)
    """Of a population: the step at which it went on from another's net, and whose; its point is new
    since then."""
    times: Mapping[int, float] = field(default_factory=dict)
    """Seconds of training up to each rung from the one before."""
    reason: str = ""
    seconds: float | None = None
    """Known once it has ended."""
    trained: int = 0

    def overrides(self) -> list[str]:
        """Its point as `--set` takes it."""
        return Space.overrides(dict(self.point))

    @property
    def mean_iu(self) -> float | None:
        """Of the net that fine-tuning keeps, the best of all validations; None without a rung."""
        return max([*self.rungs.values(), self.kept]) if self.rungs else None

    def ended_by(self, event: TrialEnded) -> Trial:
        """The trial, over."""
        return replace(
            self,
            status=event.status,
            reason=event.reason,
            seconds=event.seconds,
            trained=event.steps,
        )

    @property
    def steps(self) -> int:
        """How far it is known to have been trained."""
        return max([self.trained, *self.rungs])


@dataclass(frozen=True)
class Search:
    """A search as far as its journal tells."""

    begun: SearchBegun
    trials: Mapping[int, Trial] = field(default_factory=dict)
    """By number, in the order in which they first began."""
    ended: tuple[int, ...] = ()
    """Numbers of those that are over, in the order in which they ended."""
    sessions: tuple[tuple[float, float], ...] = ()
    """First and last sign of life of each driver, in seconds since 1970."""

    @classmethod
    def read(cls, path: Path) -> Search:
        """A journal's search; a last line that was cut off is left out.

        Raises:
            StoreError: no such journal, not one whole line in it, or a line that cannot be.
        """
        try:
            lines = whole_lines(path.read_bytes()).splitlines()
        except OSError as error:
            raise StoreError(f"{path}: the search's journal cannot be read: {error}") from None
        return cls.fold(lines, str(path))

    @classmethod
    def fold(cls, lines: Iterable[bytes], source: str = "journal") -> Search:
        """What events add up to.

        Raises:
            StoreError: none, or one that cannot be what came next.
        """
        search: Search | None = None
        for number, line in enumerate(lines, 1):
            try:
                search = _after(search, EVENT.validate_json(line))
            except (ValidationError, ValueError) as error:
                why = str(error).splitlines()[0]
                raise StoreError(
                    f"{source}, line {number}: {line[:60].decode(errors='replace')}: {why}; the journal "
                    "is damaged: restore it, or search under another name"
                ) from None
        if search is None:
            raise StoreError(
                f"{source} holds no event: the search was killed before it began; begin it again"
            )
        return search

    def after(self, event: Event) -> Search:
        """The search once that has happened too; ValueError if it cannot have."""
        return _after(self, event)

    def finished(self) -> list[Trial]:
        """Trials that were trained to their end, in the order in which they ended."""
        over = (self.trials[number] for number in self.ended)
        return [trial for trial in over if trial.status == "finished"]

    def best(self) -> Trial | None:
        """The finished trial of the highest mean IU; of equals the first.

        As long as none has finished, the best of those that did not fail: compare with care, since
        they were trained for different numbers of steps.
        """
        others = (t for t in self.trials.values() if t.status != "failed")
        for among in (self.finished(), others):
            scored = [(t.mean_iu, -t.number, t) for t in among if t.mean_iu is not None]
            if scored:
                return max(scored, key=lambda entry: entry[:2])[2]
        return None

    def ranked(self) -> list[Trial]:
        """All trials, those of the highest mean IU first, unscored ones last."""
        return sorted(
            self.trials.values(),
            key=lambda t: (t.mean_iu is None, -(t.mean_iu or 0), t.number),
        )

    def rows(self) -> list[dict[str, Any]]:
        """The table: a trial a row, ranked; plain values."""
        return [
            {
                "number": trial.number,
                **trial.point,
                "mean_iu": trial.mean_iu,
                "steps": trial.steps,
                "status": trial.status,
                "reason": trial.reason,
                "seconds": trial.seconds,
            }
            for trial in self.ranked()
        ]

    def count(self, status: Status) -> int:
        """Trials of a status."""
        return sum(trial.status == status for trial in self.trials.values())

    @property
    def spent_s(self) -> float:
        """Time of all drivers together."""
        return sum(last - first for first, last in self.sessions)

    @property
    def steps_trained(self) -> int:
        """By all trials together."""
        return sum(trial.steps for trial in self.trials.values())

    @property
    def steps_saved(self) -> int:
        """What pruned trials would have trained on to the end."""
        pruned = (t for t in self.trials.values() if t.status == "pruned")
        return sum(max(0, self.begun.max_steps - trial.steps) for trial in pruned)


def _after(search: Search | None, event: Event) -> Search:
    """The search once that has happened too; ValueError if it cannot have."""
    if search is None or isinstance(event, SearchBegun):
        return _begun(search, event)
    if isinstance(event, SessionBegun):
        return replace(search, sessions=(*search.sessions, (event.at, event.at)))
    return _of_trial(_alive(search, event.at), event)


def _alive(search: Search, at: float) -> Search:
    """The driver of the last session gave a sign of life."""
    if not search.sessions:
        return search
    *before, (first, _) = search.sessions
    return replace(search, sessions=(*before, (first, at)))


def _of_trial(search: Search, event: TrialBegun | Rung | Failed | Cloned | TrialEnded) -> Search:
    known = search.trials.get(event.number)
    if isinstance(event, TrialBegun):
        return _with(search, _trial_begun(known, event))
    if known is None or known.status != "running":
        raise ValueError(f"trial {event.number} is not running")
    if isinstance(event, TrialEnded):
        over = known.ended_by(event)
        return replace(_with(search, over), ended=(*search.ended, over.number))
    return _with(search, _trained(known, event))


def _trained(known: Trial, event: Rung | Failed | Cloned) -> Trial:
    if isinstance(event, Rung):
        rungs = dict(sorted({**known.rungs, event.step: event.mean_iu}.items()))
        times = {**known.times, event.step: event.seconds}
        return replace(known, rungs=rungs, kept=max(known.kept, event.kept), times=times)
    if isinstance(event, Failed):
        times = {**known.times, event.step: event.seconds}
        return replace(known, failure=event.reason, trained=event.step, times=times)
    clones = {**known.clones, event.step: event.source}
    return replace(known, clones=clones, point=event.point)


def _begun(search: Search | None, event: Event) -> Search:
    if not isinstance(event, SearchBegun):
        raise ValueError("a journal begins with its search")
    event = event.model_copy(update={"at": 0.0})
    if search is not None and search.begun != event:
        raise ValueError("another search began in this journal")
    return search or Search(event)


def _trial_begun(known: Trial | None, event: TrialBegun) -> Trial:
    if known is None:
        return Trial(event.number, event.point, event.point)
    if known.status in ("finished", "pruned"):
        raise ValueError(f"trial {known.number} had {known.status}")
    if known.point != event.point and not known.clones:
        raise ValueError(f"trial {known.number} has another point")
    return replace(known, status="running", reason="", seconds=None)


def _with(search: Search, trial: Trial) -> Search:
    ended = tuple(n for n in search.ended if n != trial.number)
    return replace(search, trials={**search.trials, trial.number: trial}, ended=ended)
