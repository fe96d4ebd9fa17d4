"""The served model: whatever way an image comes in, the same label map goes out."""

import base64
import io
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fcn.nets import FCN
from fcn.weights import save_net
from pipeline.tracking.pyfunc_model import Segmenter
from pipeline.training.model import blueprint
from tests.conftest import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Segmenter:
    recipe, folder = tiny("net.backbone=resnet18"), tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    table = recipe.data.class_table()
    save_net(folder, FCN(blueprint(recipe, 32)), classes=asdict(table), recipe=recipe.name)
    segmenter = Segmenter()
    segmenter.load_context(SimpleNamespace(artifacts={"net": str(folder)}))
    return segmenter


def test_whoever_loads_a_model_reads_no_warning() -> None:
    command = [sys.executable, "-c", "import pipeline.tracking.pyfunc_model"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in ((33, 71), (48, 64))]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_table_of_images_in_base64_gives_label_maps_as_palette_pngs_in_base64(
    model, images
) -> None:
    """As JSON sends it to a model server; columns that are not asked for do not matter."""
    cells = [base64.b64encode(png(image)).decode() for image in images]
    table = pd.DataFrame({"image": cells, "name": ["a", "b"]})
    answers = model.predict(None, table)
    assert len(answers) == 2
    for answer, image in zip(answers, images, strict=True):
        decoded = Image.open(io.BytesIO(base64.b64decode(answer)))
        assert decoded.mode == "P"
        assert (np.asarray(decoded) == model.predict(None, image)).all()
        assert tuple(decoded.getpalette()[3:6]) == model.classes.colours[1]


def test_a_table_of_bytes_gives_the_same(model, images) -> None:
    raw = pd.DataFrame({"image": [png(images[0])]})
    text = pd.DataFrame({"image": [base64.b64encode(png(images[0])).decode()]})
    assert model.predict(None, raw) == model.predict(None, text)


def test_an_array_its_file_and_a_list_of_both_give_one_label_map(model, images) -> None:
    label = model.predict(None, images[0])
    assert (label.shape, label.dtype) == ((33, 71), np.uint8)
    assert (model.predict(None, png(images[0])) == label).all()
    for each in model.predict(None, [images[0], png(images[0])]):
        assert (each == label).all()
