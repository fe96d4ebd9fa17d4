"""Pictures of label maps, and curves of phases."""

import numpy as np
from PIL import Image

from fcn.labels import VOID
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


def test_curves_are_drawn_of_phases_of_any_length_and_of_none(tmp_path) -> None:
    path = tmp_path / "curves.png"
    long = [(step, 1.0 / step) for step in range(1, 200)]
    for loss in ({}, {"finetune-32s": [(1, 0.5)], "finetune-8s": long}):
        plots.curves(path, loss, {name: points[-1:] for name, points in loss.items()})
        assert Image.open(path).size == (1100, 396)
