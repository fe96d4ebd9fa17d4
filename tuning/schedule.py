"""What a search does next: a function of what its journal says, and of nothing else.

The schedule plays the search in a time of its own, in which a step takes as long as any other and a
fixed number of slots work side by side. What has been trained is taken from the journal; what the
schedule has begun and the journal does not know is what is to be trained now. So neither the speed of
machines nor a kill changes which trials there are, who is pruned or in which order they end.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from tuning.events import Cloned, Ending, TrialBegun, TrialEnded
from tuning.pruning import below_median, clones, halving, perturbed
from tuning.records import Search, Trial
from tuning.space import Point, Space

Draw = Callable[[int, Sequence[Trial]], Point]
"""The point of a trial of that number, given those that are over."""
Decision = TrialBegun | Cloned | TrialEnded
MIN_FAILED = 3
"""Fewer failures never stop a search."""


@dataclass(frozen=True)
class Segment:
    """A piece of a trial's training, from where it stands to its next rung."""

    number: int
    point: dict[str, JsonValue]
    until: int
    """In optimiser steps since the trial's beginning."""
    generation: int = 0
    """How often the trial went on from another's net."""
    source: tuple[int, int] | None = None
    """Whose net, by number and generation, it goes on from."""


@dataclass
class _Place:
    """Where a trial of the schedule stands."""

    point: dict[str, JsonValue]
    rung: int = 0
    """The next one, by its place in the list of rungs."""
    generation: int = 0
    source: tuple[int, int] | None = None


class Schedule:
    """The search, played as far as its journal allows."""

    def __init__(
        self, search: Search, num_trials: int, draw: Draw, max_failed_frac: float = 1.0
    ) -> None:
        self.search, self.begun, self.num_trials = search, search.begun, num_trials
        self.decisions: list[Decision] = []
        """All that was decided, in the schedule's order."""
        self.over: list[Trial] = []
        self.halted: str = ""
        """Why no trial is begun or gone on with any more."""
        self._draw, self._max_failed_frac = draw, max_failed_frac
        self._space = Space.model_validate(self.begun.space)
        self._now = 0
        self._running: list[tuple[int, int]] = []
        """When each segment ends, and of which trial it is; a heap."""
        self._places: dict[int, _Place] = {}
        self._parked: list[int] = []
        """Members of a population that wait for the others to come to their rung."""
        self._next: deque[int] = deque()
        """Trials that may go on when a slot is free."""
        self._scores: dict[int, list[tuple[int, float]]] = {}
        """By rung: the trials that came there and their scores, in their order."""
        self._play()

    def ready(self) -> list[Segment]:
        """What is to be trained now, first things first; nothing if the search is over."""
        if self.halted:
            return []
        return [self._segment(n) for _, n in sorted(self._running) if not self._known(n)]

    def _play(self) -> None:
        self._fill()
        while self._running and not self.halted and self._known(self._running[0][1]):
            self._now, number = heapq.heappop(self._running)
            trial = self.search.trials[number]
            step = self.begun.rungs[self._places[number].rung]
            if step in trial.rungs:
                self._scored(number, step, trial.rungs[step])
            else:
                self._end(number, "failed", trial.failure)
                self._look_at_failures()
            self._regroup()
            self._fill()

    def _fill(self) -> None:
        """Slots that are free take trials that may go on, else new ones."""
        while len(self._running) < self.begun.slots and not self.halted:
            if self._next:
                self._start(self._next.popleft())
            elif len(self._places) < self.num_trials:
                number = len(self._places)
                known = self.search.trials.get(number)
                point = dict(known.first if known else self._draw(number, self.over))
                self._places[number] = _Place(point)
                self.decisions.append(TrialBegun(number=number, point=point))
                self._start(number)
            else:
                return

    def _start(self, number: int) -> None:
        rungs, rung = (0, *self.begun.rungs), self._places[number].rung
        heapq.heappush(self._running, (self._now + rungs[rung + 1] - rungs[rung], number))

    def _segment(self, number: int) -> Segment:
        place = self._places[number]
        until = self.begun.rungs[place.rung]
        return Segment(number, place.point, until, place.generation, place.source)

    def _known(self, number: int) -> bool:
        """Whether the journal says how the trial's present segment ended."""
        trial = self.search.trials.get(number)
        step = self.begun.rungs[self._places[number].rung]
        return trial is not None and (step in trial.rungs or bool(trial.failure))

    def _scored(self, number: int, step: int, score: float) -> None:
        place = self._places[number]
        why = self._why_pruned(number, place.rung, score)
        self._scores.setdefault(place.rung, []).append((number, score))
        place.rung += 1
        if why:
            self._end(number, "pruned", f"at step {step}: {why}")
        elif place.rung == len(self.begun.rungs):
            self._end(number, "finished", "")
        elif self.begun.scheduler == "pbt":
            self._parked.append(number)
        else:
            self._start(number)

    def _why_pruned(self, number: int, rung: int, score: float) -> str | None:
        if rung + 1 == len(self.begun.rungs):
            return None
        before = self._scores.get(rung, [])
        if self.begun.scheduler == "asha":
            return halving(score, [other for _, other in before], self.begun.reduction)
        if self.begun.scheduler == "median":
            return below_median(
                self._so_far(number, rung), [self._so_far(other, rung) for other, _ in before]
            )
        return None

    def _so_far(self, number: int, rung: int) -> list[float]:
        scores = self.search.trials[number].rungs
        return [scores[step] for step in self.begun.rungs[: rung + 1]]

    def _regroup(self) -> None:
        """Once the whole population is at a rung, its worst go on from the nets of its best."""
        alive = len(self._places) - len(self.over)
        if not self._parked or self._running or self._next:
            return
        if len(self._parked) < alive or len(self._places) < self.num_trials:
            return
        members = sorted(self._parked)
        step = self.begun.rungs[self._places[members[0]].rung - 1]
        scores = {n: self.search.trials[n].rungs[step] for n in members}
        at = {n: (n, self._places[n].generation) for n in members}
        points = {n: self._places[n].point for n in members}
        for number, source in clones(scores, self.begun.seed, step).items():
            place = self._places[number]
            place.point = perturbed(points[source], self._space, self.begun.seed, step, number)
            place.generation, place.source = place.generation + 1, at[source]
            self.decisions.append(
                Cloned(number=number, step=step, source=source, point=place.point)
            )
        self._parked = []
        self._next.extend(members)

    def _end(self, number: int, status: Ending, reason: str) -> None:
        trial = self.search.trials[number]
        steps = max([*trial.rungs, trial.trained], default=0)
        event = TrialEnded(
            number=number,
            status=status,
            reason=reason,
            seconds=sum(trial.times.values()),
            steps=steps,
        )
        self.decisions.append(event)
        self.over.append(trial.ended_by(event))

    def _look_at_failures(self) -> None:
        failed = [trial for trial in self.over if trial.status == "failed"]
        if len(failed) < MIN_FAILED or len(failed) <= self._max_failed_frac * len(self.over):
            return
        self.halted = (
            f"{len(failed)} of the {len(self.over)} trials that are over failed, more than the "
            f"{self._max_failed_frac:.0%} of --max-failed; the last: {failed[-1].reason}"
        )
