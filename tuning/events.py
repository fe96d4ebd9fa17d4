"""What happens in a search: a journal of it, one JSON line an event.

The journal is only ever appended to, so that a search survives a kill at any moment: a last line
without its end was being written then, and counts as never written.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter

from pipeline.config.schema import Count, Fraction, NonNegative, Positive, Spec

Ending = Literal["finished", "pruned", "failed", "stopped"]
Status = Literal["running", Ending]
Sampler = Literal["random", "grid", "tpe"]
Scheduler = Literal["asha", "median", "pbt", "none"]


class Happening(Spec):
    """A line of the journal."""

    at: NonNegative = 0.0
    """Seconds since 1970; the journal sets it."""


class SearchBegun(Happening):
    """The first line; the same again where a search goes on."""

    event: Literal["search"] = "search"
    recipe: str
    """Its name."""
    science: str = ""
    """Fingerprint of all in it that decides numbers."""
    seed: Count
    space: dict[str, Any]
    """As `Space.model_dump(mode="json")` gives it."""
    sampler: Sampler
    scheduler: Scheduler
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of so many trials at a rung, halving lets one go on."""
    rungs: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Optimiser steps at which a trial is scored; the last is its end."""
    slots: Positive = 1
    """Trials side by side, in the schedule's own time."""

    @property
    def max_steps(self) -> int:
        """Optimiser steps of a trial that is not pruned."""
        return self.rungs[-1]


class SessionBegun(Happening):
    """A driver takes the search up, for the first time or again."""

    event: Literal["session"] = "session"


class TrialBegun(Happening):
    """A trial is under way; the same again where it goes on."""

    event: Literal["trial"] = "trial"
    number: Count
    """0 is the recipe's own point."""
    point: dict[str, JsonValue]


class Rung(Happening):
    """A trial was scored; the same again where it was trained again from an earlier checkpoint."""

    event: Literal["rung"] = "rung"
    number: Count
    step: Positive
    mean_iu: Fraction
    kept: Fraction = 0.0
    """Mean IU of the best net so far, which may be of a validation between two rungs."""
    seconds: NonNegative = 0.0
    """Of training since the rung before."""


class Failed(Happening):
    """A trial's training cannot go on; it ends when the schedule comes to it."""

    event: Literal["failed"] = "failed"
    number: Count
    step: Count
    """How far it came."""
    reason: str
    seconds: NonNegative = 0.0


class Cloned(Happening):
    """At a step a trial of a population went on from another's net, with a new point."""

    event: Literal["cloned"] = "cloned"
    number: Count
    step: Positive
    source: Count
    point: dict[str, JsonValue]


class TrialEnded(Happening):
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


Event = SearchBegun | SessionBegun | TrialBegun | Rung | Failed | Cloned | TrialEnded
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Journal:
    """Where a search writes what happens; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:  # what was cut off must not become the start of a line
            file.truncate(len(whole_lines(path.read_bytes())))

    def append(self, event: Event) -> None:
        """Write an event with the time of day; on the disk when this returns."""
        now = event.model_copy(update={"at": time.time()})
        with self.path.open("ab") as file:
            file.write(now.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def whole_lines(text: bytes) -> bytes:
    """The lines that have their end."""
    return text[: text.rfind(b"\n") + 1]
