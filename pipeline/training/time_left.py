"""How long a phase will still take, from how long its steps and its validations took."""

from __future__ import annotations

from collections.abc import Sequence

Row = tuple[int, dict[str, float]]
STEP, VALIDATION = "train/loss", "val/mean_iu"
"""Metrics of which a step and a validation has one each."""


class TimeLeft:
    """Learns from the rows of metrics as they arrive; those of before a resume say only what is done."""

    def __init__(self, num_steps: int, num_validations: int) -> None:
        self._left = {STEP: num_steps, VALIDATION: num_validations}
        self._seconds = {STEP: 0.0, VALIDATION: 0.0}
        self._counted = {STEP: 0, VALIDATION: 0}
        self._last_s: float | None = None

    def add(self, rows: Sequence[Row], now_s: float) -> None:
        """Rows that came at a time; what came together shares the time since the rows before."""
        came = {key: sum(key in metrics for _, metrics in rows) for key in self._left}
        for key, number in came.items():
            self._left[key] -= number
        if self._last_s is not None:
            for key, seconds in self._shares(came, now_s - self._last_s).items():
                self._seconds[key] += seconds
                self._counted[key] += came[key]
        self._last_s = now_s

    def in_words(self) -> str:
        """Such as: 12 min left; with > before the first validation, of which nothing is known yet."""
        if not self._counted[STEP]:
            return ""
        seconds = sum(max(0, left) * self._mean_s(key) for key, left in self._left.items())
        unknown = self._left[VALIDATION] > 0 and not self._counted[VALIDATION]
        number = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"{'> ' * unknown}{number} left"

    def _mean_s(self, key: str) -> float:
        return self._seconds[key] / self._counted[key] if self._counted[key] else 0.0

    def _shares(self, came: dict[str, int], seconds: float) -> dict[str, float]:
        """Steps take what steps took so far, and the validation that came with them the rest."""
        if not came[VALIDATION]:
            return {STEP: seconds, VALIDATION: 0.0}
        steps = min(seconds, came[STEP] * self._mean_s(STEP))
        return {STEP: steps, VALIDATION: seconds - steps}
