"""Which trials go on: Tune's own schedulers, which are told what they decided in earlier sessions.

Tune forgets a scheduler's state when it begins anew. So each is fed all scores of the records, in the
order in which they came, by the trial's number; Tune's own trial ids are others in each session.
"""

# ruff: noqa: ANN401 - the signatures are those of TrialScheduler

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tuning.records import Search, SearchPlan

MAX_HALVINGS = 3
"""More rungs than these would prune on a few percent of the training."""
NEVER: Any = float("inf")
"""Images after which the median rule would pause a trial to wait for others; an int to Ray."""
MEDIAN_GRACE_FRAC = 0.2
"""The median rule lets every trial train this share of the whole."""


@dataclass(frozen=True)
class Numbered:
    """What stands for a trial in a scheduler's memory: the same in all sessions."""

    trial_id: str


class Remembering(TrialScheduler):
    """Mixed into a scheduler of Tune's: it has seen the scores of all sessions.

    Each score counts once, also if a trial reports it again after its process was lost. The recipe's
    own trial is never pruned, for all others are compared with it.
    """

    def remember(self, search: Search) -> None:
        """Take in all scores of earlier sessions."""
        self._seen: set[tuple[int, int]] = set()
        scores = [(s.order, t.number, s) for t in search.trials.values() for s in t.scores]
        for _, number, score in sorted(scores, key=lambda entry: entry[0]):
            self.decide(number, score.images, score.mean_iu)

    def decide(self, number: int, images: int, mean_iu: float) -> str:
        """What is to become of a trial after a score."""
        if (number, images) in self._seen:
            return TrialScheduler.CONTINUE
        self._seen.add((number, images))
        trial = Numbered(str(number))
        self._know(trial)
        result = {"images": images, "mean_iu": mean_iu}
        action = super().on_trial_result(None, trial, result)  # type: ignore[arg-type]
        return TrialScheduler.CONTINUE if number == 0 else action

    def _know(self, trial: Numbered) -> None:
        """A trial may be new to the scheduler."""

    def on_trial_result(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """As Tune calls it."""
        if "mean_iu" not in result:
            return TrialScheduler.CONTINUE
        return self.decide(trial.config["number"], result["images"], result["mean_iu"])

    def _nothing(self, *args: Any) -> None:
        """Trials are known by number, when their first score comes."""

    on_trial_add = on_trial_complete = on_trial_remove = _nothing  # type: ignore[assignment]


class Halving(Remembering, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2018): a rung lets the best 1/reduction go on."""

    def _know(self, trial: Numbered) -> None:
        bracket = self._brackets[int(trial.trial_id) % len(self._brackets)]  # Tune's own draws lots
        self._trial_info.setdefault(trial.trial_id, bracket)


class MedianRule(Remembering, MedianStoppingRule):
    """Median stopping (Golovin et al. 2017): the best score must reach the median of others' means."""


def scheduler_of(plan: SearchPlan) -> TrialScheduler:
    """The scheduler that a search asks for."""
    what: dict[str, Any] = {"time_attr": "images", "metric": "mean_iu", "mode": "max"}
    if plan.scheduler == "asha":
        what |= {"max_t": plan.max_images, "reduction_factor": plan.reduction}
        return Halving(**what, grace_period=first_rung(plan), stop_last_trials=False)
    if plan.scheduler == "median":
        grace = max(plan.first_images, MEDIAN_GRACE_FRAC * plan.max_images)
        return MedianRule(**what, grace_period=grace, min_time_slice=NEVER)
    return FIFOScheduler()


def first_rung(plan: SearchPlan) -> int:
    """Images at the first rung: a validation, near 1/reduction^k of the whole, with the largest k."""
    every = plan.first_images
    rungs = [plan.max_images / plan.reduction**k for k in range(1, MAX_HALVINGS + 1)]
    first = min((rung for rung in rungs if rung >= every / 2), default=rungs[0])
    return max(1, round(first / every)) * every
