"""One confusion matrix over a whole split; every score is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn.labels import VOID

REMEDY = {
    "label": f"map it to a class or to void ({VOID})",
    "prediction": "the net must have as many classes as the table",
}


@dataclass(frozen=True)
class Scores:
    """The paper's four metrics (section 5) and what they are made of; fractions in [0, 1].

    A class that is neither in the truth nor predicted has no IU (NaN) and is left out of the means;
    one that is predicted but nowhere in the truth has IU 0 and no accuracy.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    class_iu: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """The four metrics by name."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
        return {name: getattr(self, name) for name in names}


class Confusion:
    """counts[i, j]: pixels of class i that were predicted as class j, int64, void left out."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Count the pixels of a label map and its prediction, of one shape.

        Raises:
            ValueError: the shapes differ, a label is neither a class nor void, or a prediction is not
                a class.
        """
        if label.shape != prediction.shape:
            raise ValueError(
                f"label {tuple(label.shape)} and prediction {tuple(prediction.shape)} differ; both "
                "must be maps of one size"
            )
        k = len(self.counts)
        void = label == VOID
        wild_label = ((label < 0) | (label >= k)) & ~void
        wild_prediction = (prediction < 0) | (prediction >= k)
        # One bin more for void and one for what is wild: a single bincount, and on a GPU a single
        # further wait for the check.
        bins = torch.where(void, k * k, label.long() * k + prediction.long())
        bins = torch.where(wild_label | wild_prediction, k * k + 1, bins)
        counts = torch.bincount(bins.flatten(), minlength=k * k + 2)
        if counts[-1]:
            for name, wild in (
                ("label", label[wild_label]),
                ("prediction", prediction[wild_prediction]),
            ):
                if len(wild):
                    raise ValueError(
                        f"{name} {int(wild[0])} is not one of {k} classes; {REMEDY[name]}"
                    )
        self.counts += counts[: k * k].view(k, k)

    def scores(self) -> Scores:
        """The metrics of everything counted so far."""
        n: NDArray[np.float64] = self.counts.cpu().numpy().astype(np.float64)
        hit, truth, predicted = np.diag(n), n.sum(1), n.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iu = hit / (truth + predicted - hit)
            accuracy = hit / truth
            present = truth > 0
            return Scores(
                pixel_accuracy=float(hit.sum() / n.sum()),
                mean_accuracy=_mean(accuracy),
                mean_iu=_mean(iu),
                frequency_weighted_iu=float((truth * iu)[present].sum() / n.sum()),
                class_iu=tuple(iu.tolist()),
            )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
