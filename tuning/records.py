"""What is known of a search: a journal, one JSON line an event, and what it adds up to.

The journal is only ever appended to, so that a search survives a kill at any moment: a last line
without its end was being written then, and counts as never written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.specs import Count, Fraction, NonNegative, Positive, Spec

Ending = Literal["finished", "pruned", "failed", "stopped"]
Status = Literal["running", Ending]


class SearchBegun(Spec):
    """The first line; the same again where a search goes on."""

    event: Literal["search"] = "search"
    recipe: str
    """Its name."""
    seed: Count
    space: dict[str, Any]
    """As `Space.model_dump(mode="json")` gives it."""
    sampler: str
    scheduler: str
    max_steps: Positive
    """Optimiser steps of a trial that is not pruned."""


class TrialBegun(Spec):
    """A trial is under way; the same again where it goes on."""

    event: Literal["trial"] = "trial"
    number: Count
    """0 is the recipe's own point."""
    point: dict[str, JsonValue]


class Rung(Spec):
    """A trial was scored; the same again where it was trained again from an earlier checkpoint."""

    event: Literal["rung"] = "rung"
    number: Count
    step: Positive
    mean_iu: Fraction


class TrialEnded(Spec):
    """A trial is over; a stopped or failed one may begin again."""

    event: Literal["ended"] = "ended"
    number: Count
    status: Ending
    reason: str = ""
    """Why, for a reader; empty for one that finished."""
    seconds: NonNegative
    """Of all its attempts together."""
    steps: Count
    """How far it was trained."""


Event = Annotated[SearchBegun | TrialBegun | Rung | TrialEnded, Field(discriminator="event")]
EVENT: TypeAdapter[SearchBegun | TrialBegun | Rung | TrialEnded] = TypeAdapter(Event)


class Journal:
    """Where a search writes what happens; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:  # what was cut off must not become the start of a line
            file.truncate(len(_whole(path.read_bytes())))

    def append(self, event: SearchBegun | TrialBegun | Rung | TrialEnded) -> None:
        """Write an event; on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _whole(text: bytes) -> bytes:
    """The lines that have their end."""
    return text[: text.rfind(b"\n") + 1]


@dataclass(frozen=True)
class Trial:
    """One point of the space and how far its training came."""

    number: int
    point: Mapping[str, JsonValue]
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Mean IU by step, in the order of the steps."""
    status: Status = "running"
    reason: str = ""
    seconds: float | None = None
    """Known once it has ended."""
    trained: int = 0

    @property
    def mean_iu(self) -> float | None:
        """The highest of its rungs, which is that of the net that fine-tuning keeps."""
        return max(self.rungs.values(), default=None)

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

    @classmethod
    def read(cls, path: Path) -> Search:
        """A journal's search; a last line that was cut off is left out.

        Raises:
            StoreError: no such journal, not one whole line in it, or a line that cannot be.
        """
        try:
            lines = _whole(path.read_bytes()).splitlines()
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
    def steps_trained(self) -> int:
        """By all trials together."""
        return sum(trial.steps for trial in self.trials.values())

    @property
    def steps_saved(self) -> int:
        """What pruned trials would have trained on to the end."""
        pruned = (t for t in self.trials.values() if t.status == "pruned")
        return sum(max(0, self.begun.max_steps - trial.steps) for trial in pruned)


def _after(search: Search | None, event: SearchBegun | TrialBegun | Rung | TrialEnded) -> Search:
    """The search once that has happened too; ValueError if it cannot have."""
    if search is None or isinstance(event, SearchBegun):
        return _begun(search, event)
    known = search.trials.get(event.number)
    if isinstance(event, TrialBegun):
        return _with(search, _trial_begun(known, event))
    if known is None or known.status != "running":
        raise ValueError(f"trial {event.number} is not running")
    if isinstance(event, Rung):
        rungs = dict(sorted({**known.rungs, event.step: event.mean_iu}.items()))
        return _with(search, replace(known, rungs=rungs))
    over = replace(
        known,
        status=event.status,
        reason=event.reason,
        seconds=event.seconds,
        trained=event.steps,
    )
    return replace(_with(search, over), ended=(*search.ended, over.number))


def _begun(search: Search | None, event: SearchBegun | TrialBegun | Rung | TrialEnded) -> Search:
    if not isinstance(event, SearchBegun):
        raise ValueError("a journal begins with its search")
    if search is not None and search.begun != event:
        raise ValueError("another search began in this journal")
    return search or Search(event)


def _trial_begun(known: Trial | None, event: TrialBegun) -> Trial:
    if known is None:
        return Trial(event.number, event.point)
    if known.status in ("finished", "pruned"):
        raise ValueError(f"trial {known.number} had {known.status}")
    if known.point != event.point:
        raise ValueError(f"trial {known.number} has another point")
    return replace(known, status="running", reason="", seconds=None)


def _with(search: Search, trial: Trial) -> Search:
    ended = tuple(n for n in search.ended if n != trial.number)
    return replace(search, trials={**search.trials, trial.number: trial}, ended=ended)
