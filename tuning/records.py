"""What a search remembers: one small document a trial, from which every session begins.

    searches/NAME/search.json            what was asked for, and the recipe
    searches/NAME/clock.json             the time that all sessions together have spent
    searches/NAME/records/NUMBER.json    a trial: its point, its scores, how it ended
    searches/NAME/trials/NUMBER/PHASE    its checkpoints, as long as they are needed

Each document is written whole or not at all, so a search survives a kill at any moment. A decision of
the scheduler is written together with the score that it followed from.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from pipeline.config.recipe import Recipe
from pipeline.config.schema import Count, Fraction, NonNegative, Positive, Spec
from pipeline.errors import RecipeError, StoreError
from pipeline.storage.store import Store
from tuning.settings import Settings
from tuning.space import Point, Space

Status = Literal["running", "stopped", "finished", "pruned", "failed"]
UNDER_WAY: tuple[Status, ...] = ("running", "stopped")
"""Statuses of a trial that goes on, now or in the next session."""


class Score(Spec):
    """A validation of a trial."""

    images: Positive
    """Images seen in training, which is the budget that trials are compared at."""
    step: Positive
    """Optimiser steps, over all phases."""
    mean_iu: Fraction
    order: Count
    """Position among all scores of the search, in the order in which they came."""


class Trial(Spec):
    """One point of the space and how far its training has come."""

    number: Count
    """0 is the recipe's own point."""
    point: dict[str, JsonValue]
    scores: tuple[Score, ...] = ()
    status: Status = "running"
    reason: str = ""
    """Why it ended, for a reader; empty if it was trained to its end."""
    steps: Count = 0
    """Optimiser steps that it is known to have done."""
    seconds: NonNegative = 0.0
    """Time in training, over all sessions."""
    ended: Count | None = None
    """Position among the trials that are over, in the order in which they ended."""
    logged: bool = False
    """Whether MLflow has all of a trial that is over."""

    @property
    def mean_iu(self) -> float | None:
        """The best of all validations, which is that of the net that is kept; None without any."""
        return max((score.mean_iu for score in self.scores), default=None)

    @property
    def curve(self) -> dict[int, float]:
        """Mean IU by images seen."""
        return {score.images: score.mean_iu for score in self.scores}

    def overrides(self) -> list[str]:
        """Its point as `--set` takes it."""
        return Space.overrides(self.point)


class SearchPlan(Spec):
    """What decides a search; the same in all its sessions, but for `created`."""

    name: str
    created: str
    """Date and time of its first session."""
    recipe: str
    science: str = ""
    """Fingerprint of everything in the recipe that decides numbers."""
    data: str = ""
    """Digest of the data set."""
    seed: Count
    space: Space
    sampler: str
    scheduler: str
    reduction: Positive = 3
    grid_trials: Count = 0
    """Number of trials of a grid, which cannot change; 0 for other samplers."""
    max_images: Positive
    """Images that a trial has seen at its end."""
    first_images: Positive
    """Images that it has seen at its first validation."""
    max_steps: Positive
    """Optimiser steps of the recipe's own trial."""


@dataclass
class Search:
    """A search as far as it has come."""

    plan: SearchPlan
    trials: dict[int, Trial] = field(default_factory=dict)
    """By number."""
    spent_s: float = 0.0
    """Time of all sessions together."""

    def over(self) -> list[Trial]:
        """Trials that have ended for good, in the order in which they did."""
        ended = [trial for trial in self.trials.values() if trial.ended is not None]
        return sorted(ended, key=lambda trial: trial.ended or 0)

    def under_way(self) -> list[Trial]:
        """Trials that go on, by number."""
        return [trial for trial in self.trials.values() if trial.status in UNDER_WAY]

    def best(self) -> Trial | None:
        """The finished trial of the highest mean IU; of equals the first.

        As long as none has finished, the best of those that did not fail, which cannot be compared well.
        """
        scored = [t for t in self.ranked() if t.scores and t.status != "failed"]
        finished = [t for t in scored if t.status == "finished"]
        return next(iter(finished or scored), None)

    def ranked(self) -> list[Trial]:
        """All trials, those of the highest mean IU first, unscored ones last."""
        return sorted(
            self.trials.values(), key=lambda t: (not t.scores, -(t.mean_iu or 0), t.number)
        )

    def counts(self) -> Counter[Status]:
        """Number of trials by status."""
        return Counter(trial.status for trial in self.trials.values())

    def words(self) -> str:
        """How far it has come, for a reader."""
        words = [f"{count} {status}" for status, count in sorted(self.counts().items())]
        if (best := self.best()) and best.mean_iu is not None:
            words.append(f"best mean IU {best.mean_iu:.4f} by trial {best.number}")
        return ", ".join(words) or "no trial yet"

    def survival(self) -> dict[int, int]:
        """How many trials were scored, by images seen."""
        return dict(sorted(Counter(n for t in self.trials.values() for n in t.curve).items()))

    @property
    def steps_trained(self) -> int:
        """Steps of all trials together."""
        return sum(trial.steps for trial in self.trials.values())

    @property
    def steps_saved(self) -> int:
        """Steps that pruned trials would have trained on to the end."""
        pruned = (t for t in self.trials.values() if t.status == "pruned" and t.scores)
        share = (t.steps * self.plan.max_images / t.scores[-1].images - t.steps for t in pruned)
        return round(sum(share))

    def best_recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the best trial's values; all else is as it was.

        Raises:
            RecipeError: no trial has come to its end yet.
        """
        best = self.best()
        if best is None or best.status != "finished":
            raise RecipeError(
                f"no trial of the search {self.plan.name} has come to its end yet; go on with fcn-tune "
                "resume, with a larger --budget if it was spent"
            )
        return recipe.changed(best.overrides())


class Records:
    """The documents of one search, and what they add up to; one process writes at a time."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.folder = f"searches/{name}"
        self.search: Search
        self._written_at = time.monotonic()

    def begin(self, plan: SearchPlan, recipe: Recipe, settings: Settings) -> None:
        """Take the search up, for the first time or again.

        Raises:
            RecipeError: it was begun otherwise.
        """
        name = f"{self.folder}/search.json"
        if document := self.store.read_json(name):
            known = SearchPlan.model_validate(document["plan"])
            asked = plan.model_copy(update={"created": known.created})
            _require_same(known.model_dump(mode="json"), asked.model_dump(mode="json"))
            plan = known
        facts = {"plan": plan, "recipe": recipe, "settings": settings}
        plain = {key: value.model_dump(mode="json", by_alias=True) for key, value in facts.items()}
        self.store.write_json(name, plain)
        self._load(plan)

    def read(self) -> tuple[Search, Recipe, Settings]:
        """The search, the recipe and the settings with which it was begun.

        Raises:
            StoreError: there is no search of that name.
        """
        document = self.store.read_json(f"{self.folder}/search.json")
        if document is None:
            known = ", ".join(self.store.files.folders("searches")) or "none"
            raise StoreError(
                f"there is no search {self.name} in {self.store}/searches; there are {known}"
            )
        self._load(SearchPlan.model_validate(document["plan"]))
        recipe = Recipe.model_validate(document["recipe"])
        return self.search, recipe, Settings.model_validate(document["settings"])

    def under_way(self) -> str:
        """Who is at it, in words; empty if nobody on this machine is."""
        lock = self.store.lock(f"flow-search-{self.name}")
        if lock.take():
            lock.free()
            return ""
        return lock.holder()

    def checkpoints_of(self, number: int) -> str:
        """The folder of a trial's checkpoints, below the store."""
        return f"{self.folder}/trials/{number}"

    def add(self, number: int, point: Point) -> Trial:
        """A new trial."""
        return self._write(Trial(number=number, point=point))

    def update(self, number: int, step: int = 0, spent_s: float = 0.0, **changes: object) -> Trial:
        """Change what is known of a trial, which has come to a step in so much time.

        If it ends, its place among those that did is kept with how it did.
        """
        trial, status = self.search.trials[number], changes.get("status")
        if status is not None:
            changes["ended"] = None if status in UNDER_WAY else len(self.search.over())
        came = {"steps": max(trial.steps, step), "seconds": trial.seconds + spent_s}
        return self._write(trial.model_copy(update=changes | came))

    def score(
        self,
        number: int,
        images: int,
        step: int,
        mean_iu: float,
        *,
        spent_s: float = 0.0,
        **changes: object,
    ) -> Trial:
        """Add a validation, with whatever was decided on it; one that is known adds nothing."""
        trial = self.search.trials[number]
        scores = trial.scores
        if images not in trial.curve:
            order = sum(len(t.scores) for t in self.search.trials.values())
            new = Score(images=images, step=step, mean_iu=mean_iu, order=order)
            scores = tuple(sorted((*scores, new), key=lambda score: score.images))
        return self.update(number, step, spent_s, scores=scores, **changes)

    def spent_s(self) -> float:
        """Time of all sessions, up to now."""
        return self.search.spent_s + time.monotonic() - self._written_at

    def tick(self, after_s: float = 0.0) -> None:
        """Write down the time that has been spent, if that was last done so long ago."""
        if (now := time.monotonic()) - self._written_at >= after_s:
            self.search.spent_s, self._written_at = self.spent_s(), now
            self.store.write_json(f"{self.folder}/clock.json", {"spent_s": self.search.spent_s})

    def _write(self, trial: Trial) -> Trial:
        name = f"{self.folder}/records/{trial.number}.json"
        self.store.write_json(name, trial.model_dump(mode="json"))
        self.search.trials[trial.number] = trial
        self.tick()
        return trial

    def _load(self, plan: SearchPlan) -> None:
        names = self.store.files.names(f"{self.folder}/records")
        documents = [
            self.store.read_json(f"{self.folder}/records/{name}")
            for name in names
            if not name.startswith(".")  # a draft of a killed writer
        ]
        trials = sorted(map(Trial.model_validate, documents), key=lambda trial: trial.number)
        clock = self.store.read_json(f"{self.folder}/clock.json") or {"spent_s": 0.0}
        self.search = Search(plan, {trial.number: trial for trial in trials}, clock["spent_s"])
        self._written_at = time.monotonic()


def _require_same(had: dict[str, object], asked: dict[str, object]) -> None:
    lines = [
        f"\n  {key}: it has {had[key]}, and now {asked[key]}"
        for key in asked
        if asked[key] != had[key]
    ]
    if lines:
        raise RecipeError(
            f"a search named {had['name']} was begun otherwise; type what it was begun with, or give "
            f"another --name{''.join(lines)}"
        )
