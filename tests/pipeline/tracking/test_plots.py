"""Pictures of label maps, and curves of phases."""

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from fcn.labels import VOID, ClassTable
from fcn.metrics import Confusion
from pipeline.tracking import plots
from tests.conftest import tiny


def test_pictures_show_what_they_say(tmp_path) -> None:
    table = tiny().data.class_table()
    image = np.full((10, 12, 3), 90, np.uint8)
    truth = np.zeros((10, 12), np.uint8)
    truth[0] = VOID
    prediction = truth.copy()
    prediction[0] = 1  # void is no error
    prediction[5, 5] = 2
    panel = plots.panel(image, truth, prediction, table)
    assert panel.shape == (28, 32, 3)
    errors = panel[16:26, 18:30]
    assert (errors == [220, 30, 30]).all(-1).sum() == 1
    assert (errors[5, 5] == [220, 30, 30]).all()
    assert (errors[0] == 128).all()
    plots.label_png(tmp_path / "label.png", prediction, table)
    again = Image.open(tmp_path / "label.png")
    assert again.mode == "P"
    assert (np.asarray(again) == prediction).all()
    assert tuple(again.getpalette()[6:9]) == table.colours[2]


def test_bars_name_the_classes_that_are_not_in_the_split(tmp_path, monkeypatch) -> None:
    confusion = Confusion(3)
    confusion.update(torch.tensor([0, 0]), torch.tensor([0, 1]))  # 1 is predicted, 2 is nowhere
    table = ClassTable(("sky", "road", "tree"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    texts = []
    monkeypatch.setattr(Axes, "bar_label", lambda self, bars, labels, **_: texts.extend(labels))
    plots.class_bars(tmp_path / "bars.png", confusion.scores(), table, ["road", "tree"])
    assert texts == ["0.500", "0.000, not in the split", "not in the split"]


def test_curves_are_drawn_of_phases_of_any_length_and_of_none(tmp_path) -> None:
    path = tmp_path / "curves.png"
    long = [(step, 1.0 / step) for step in range(1, 200)]
    for loss in ({}, {"finetune-32s": [(1, 0.5)], "finetune-8s": long}):
        plots.curves(path, loss, {name: points[-1:] for name, points in loss.items()})
        assert Image.open(path).size == (1100, 396)
