"""One confusion matrix over a whole split; every score is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn.labels import VOID

BYTE = 256
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
        for name, values in (("label", label), ("prediction", prediction)):
            if values.numel() and (outside := [v for v in _bounds(values) if not 0 <= v <= VOID]):
                raise self._wild(name, outside[0])
        # All pairs of bytes in one pass over compact numbers; void is a row of its own.
        bins = label.to(torch.int32) * BYTE + prediction.to(torch.int32)
        pairs = torch.bincount(bins.flatten(), minlength=BYTE * BYTE).view(BYTE, BYTE)
        k = len(self.counts)
        for name, px in (("label", pairs[k:VOID].sum(1)), ("prediction", pairs[:, k:].sum(0))):
            if px.any():
                raise self._wild(name, k + int(px.nonzero()[0]))
        self.counts += pairs[:k, :k]

    def _wild(self, name: str, value: int) -> ValueError:
        return ValueError(
            f"{name} {value} is not one of {len(self.counts)} classes; {REMEDY[name]}"
        )

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


def _bounds(values: Tensor) -> list[int]:
    """Least and greatest value."""
    return [int(bound) for bound in torch.aminmax(values)]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
