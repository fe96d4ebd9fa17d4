"""A search under way: the schedule asks, trials answer, the journal remembers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.data.sampler import steps_per_epoch
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.progress import Row
from pipeline.training.state import HISTORY, History
from tuning.charts import short_names, word
from tuning.events import Cloned, Failed, Journal, Rung, SessionBegun, TrialBegun, TrialEnded
from tuning.records import Search
from tuning.schedule import Draw, Schedule, Segment
from tuning.settings import Settings
from tuning.space import Space
from tuning.told import SearchLogger
from tuning.trial import Outcome, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What all trials start from."""

    train: list[Path]
    val: list[Path]
    num_train: int
    start: Path | None
    """The transplanted net; None is scratch."""


@dataclass
class Hunt:
    """Hands out segments and takes their outcomes; all of it in the driver's main thread."""

    recipe: Recipe
    """With the workers of a trial."""
    settings: Settings
    folder: Path
    journal: Journal
    search: Search
    fingerprint: str
    draw: Draw
    told: SearchLogger
    prepare: Callable[[Recipe], Prepared]
    """The shards and weights of a trial's recipe."""
    stopping: str = ""
    """Why nothing more is begun, if so."""
    _busy: dict[int, Segment] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _left_at: dict[int, int] = field(default_factory=dict)
    """Steps at which trials left before their rung."""

    def __post_init__(self) -> None:
        self._note(SessionBegun())
        for trial in self.search.trials.values():
            if trial.status == "running":
                self._open(trial.number)
            elif trial.status != "stopped" and self.trial_folder(trial.number).exists():
                self._open(trial.number)  # not all of it may have been told before a kill
                self._tell_end(trial.number)
        self.schedule = self._decide()

    def trial_folder(self, number: int) -> Path:
        """Of its checkpoints, as long as they are needed."""
        return self.folder / "trials" / str(number)

    def trial_recipe(self, segment: Segment) -> Recipe:
        """The recipe with a trial's point."""
        return self.recipe.changed(Space.overrides(segment.point))

    def next_task(self) -> Task | None:
        """The first segment that nobody trains yet."""
        waiting = [s for s in self.schedule.ready() if s.number not in self._busy]
        if not waiting or self.stopping:
            return None
        segment = waiting[0]
        self._busy[segment.number] = segment
        recipe = self.trial_recipe(segment)
        inputs = self.prepare(recipe)
        folder = self.trial_folder(segment.number) / str(segment.generation)
        source = segment.source and self.trial_folder(segment.source[0]) / str(segment.source[1])
        return Task(
            number=segment.number,
            recipe=recipe.plain(),
            until=segment.until,
            folder=folder,
            source=source,
            train=inputs.train,
            val=inputs.val,
            num_train=inputs.num_train,
            start=inputs.start,
            search=self.fingerprint,
        )

    def over(self) -> bool:
        """Whether nothing more will be begun."""
        return bool(self.stopping) or not (self.schedule.ready() or self._busy)

    def ended(self, task: Task, outcome: Outcome) -> None:
        """A segment came to its rung, failed, or left before it."""
        del self._busy[task.number]
        number, spent = task.number, outcome.seconds
        if outcome.failure:
            self._note(
                Failed(number=number, step=outcome.step, reason=outcome.failure, seconds=spent)
            )
        elif outcome.mean_iu is not None and outcome.kept is not None:
            self._note(
                Rung(
                    number=number,
                    step=task.until,
                    mean_iu=outcome.mean_iu,
                    kept=outcome.kept,
                    seconds=spent,
                )
            )
        else:
            self._left_at[number] = outcome.step
        self.schedule = self._decide()

    def lost(self, task: Task, why: str) -> None:
        """Its process died: it goes on from its last checkpoint, unless that happens again and again."""
        times = self._losses.get(task.number, 0) + 1
        self._losses[task.number] = times
        if times <= self.recipe.cluster.max_failures:
            log.warning("trial %d lost its process and goes on (%s)", task.number, why)
            del self._busy[task.number]
        else:
            words = f"its process was lost {times} times, more than cluster.max_failures: {why}"
            self.ended(task, Outcome(0, 0.0, failure=words))

    def stop(self) -> None:
        """The session ends with trials under way; they go on in the next."""
        for trial in list(self.search.trials.values()):
            if trial.status == "running":
                self._note(
                    TrialEnded(
                        number=trial.number,
                        status="stopped",
                        reason=self.stopping or self.schedule.halted,
                        seconds=sum(trial.times.values()),
                        steps=max(trial.steps, self._left_at.get(trial.number, 0)),
                    )
                )
                self._tell_end(trial.number)
                log.info("%s", sentence(self.search, trial.number))

    def _decide(self) -> Schedule:
        """Carry out what follows from what is known by now."""
        schedule = Schedule(self.search, self.settings.trials, self.draw, self.settings.max_failed)
        for decision in schedule.decisions:
            trial = self.search.trials.get(decision.number)
            if isinstance(decision, TrialBegun):
                if not self.stopping and (trial is None or trial.status == "stopped"):
                    self._note(decision)
                    self._open(decision.number)
            elif isinstance(decision, Cloned):
                if trial and decision.step not in trial.clones:
                    self._note(decision)
            elif trial and trial.status == "running":
                self._note(decision)
                self._tell_end(decision.number)
                log.info("%s", sentence(self.search, decision.number))
        return schedule

    def _note(self, event: SessionBegun | TrialBegun | Rung | Failed | Cloned | TrialEnded) -> None:
        event = event.model_copy(update={"at": time.time()})
        self.journal.append(event)
        self.search = self.search.after(event)

    def _open(self, number: int) -> None:
        self.trial_folder(number).mkdir(parents=True, exist_ok=True)
        point = dict(self.search.trials[number].first)
        self.told.begin(number, self.trial_recipe(Segment(number, point, 0)))

    def _tell_end(self, number: int) -> None:
        """Once more all its metrics; its checkpoints are removed after that, but those of the best."""
        trial = self.search.trials[number]
        self.told.end(trial, self._rows(number))
        self.told.progress(self.search)
        if self.search.begun.scheduler == "pbt":
            return  # others may still go on from its net
        best = self.search.best()
        for done in self.search.ended:
            needed = (best and best.number == done) or self.search.trials[done].status == "stopped"
            if not needed and self.trial_folder(done).exists():
                self.told.forget(self.trial_folder(done))

    def _rows(self, number: int) -> list[Row]:
        """All metrics of a trial, from its checkpoints."""
        for generation in sorted(self.trial_folder(number).iterdir(), key=_number, reverse=True):
            if rows := self._rows_in(generation):
                return rows
        return []

    def _rows_in(self, folder: Path) -> list[Row]:
        num_train = self.prepare(self.recipe).num_train
        per_epoch = steps_per_epoch(num_train, self.recipe.finetune.global_batch)
        rows, offset = [], 0
        for index, phase in enumerate(self.recipe.phases):
            last, _ = Checkpoints.in_folder(folder / str(index)).newest()
            if last:
                rows += [(offset + s, m) for s, m in History.read(last / HISTORY).rows()]
            offset += phase.epochs * per_epoch
        return rows


def _number(folder: Path) -> int:
    return int(folder.name)


def sentence(search: Search, number: int) -> str:
    """How a trial ended, for a line on the screen."""
    trial = search.trials[number]
    names = short_names(list(search.begun.space))
    point = ", ".join(f"{names[key].replace('_', ' ')} {word(v)}" for key, v in trial.point.items())
    score = f"mean IU {trial.mean_iu:.4f}; " if trial.mean_iu is not None else ""
    why = f" ({trial.reason})" if trial.reason else ""
    return f"trial {number} {trial.status} after step {trial.steps}{why}: {score}{point}"
