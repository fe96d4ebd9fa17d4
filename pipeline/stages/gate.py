"""Champion or challenger: a pure decision with its evidence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why."""

    promote: bool
    reason: str


def decide(champion_mean_iu: float | None, challenger_mean_iu: float) -> Decision:
    """The challenger takes the alias if there is no champion or it scores at least as well.

    A challenger without a score (NaN) never does. A champion without one cannot be compared and is
    replaced, as a model that nobody measured should be.
    """
    new = f"challenger's mean IU {challenger_mean_iu:.4f}"
    if challenger_mean_iu != challenger_mean_iu:
        return Decision(False, "the challenger has no mean IU")
    if champion_mean_iu is None:
        return Decision(True, f"{new}; there was no champion with a score")
    if challenger_mean_iu >= champion_mean_iu:
        return Decision(True, f"{new} >= champion's {champion_mean_iu:.4f}")
    return Decision(False, f"{new} < champion's {champion_mean_iu:.4f}")
