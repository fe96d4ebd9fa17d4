"""The dense answer of a classifier, drawn over an image."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fcn.transplant import load_classifier
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.ops.heatmap import imagenet_class, probability
from pipeline.stages.transplant import published

LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return load_classifier(LITE, published(LITE, "package"))[0]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_where_the_map_has_one_pixel_it_is_the_classifiers_own_probability(classifier) -> None:
    image = noise(32, 32)
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.inference_mode():
        own = classifier(x).softmax(1)[0]
    number = int(own.argmax())
    heat = probability(LITE, classifier, number, image)
    assert heat.shape == (32, 32)
    assert heat.max() == pytest.approx(float(own[number]), rel=1e-4)  # the map's only pixel


def test_a_class_shows_where_it_is(classifier) -> None:
    """A picture of a daisy, made of a yellow disc and white petals, in a green lawn."""
    rows, columns = np.mgrid[-1:1:224j, -1:1:224j]
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    flower = np.full((224, 224, 3), (40, 110, 30), np.uint8)
    flower[radius < 0.75 + 0.2 * np.cos(16 * angle)] = (250, 250, 250)
    flower[radius < 0.28] = (240, 190, 20)
    lawn = np.full((448, 672, 3), (40, 110, 30), np.uint8)
    lawn[112:336, 336:560] = flower
    heat = probability(LITE, classifier, imagenet_class("daisy"), lawn)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.max() > 0.3
    assert 112 <= row < 336
    assert 336 <= column < 560


def test_the_verb_writes_a_picture_of_the_images_size(tmp_path) -> None:
    Image.fromarray(noise(40, 60)).save(tmp_path / "a.png")
    arguments = [LITE, str(tmp_path / "a.png"), "--class", "daisy", "-o", str(tmp_path / "b.png")]
    done = CliRunner().invoke(main, ["heatmap", *arguments])
    assert "daisy" in done.output
    assert Image.open(tmp_path / "b.png").size == (60, 40)


def test_mistakes_are_told_with_what_is_near(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"no class 'tabby cat'; near are .*tabby"):
        imagenet_class("tabby cat")
    done = CliRunner().invoke(main, ["heatmap", LITE, "/nowhere.png", "--class", "daisy"])
    assert done.exit_code == 1
    assert "/nowhere.png cannot be read" in done.output
    Image.fromarray(noise(40, 60)).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    done = CliRunner().invoke(main, ["heatmap", "resnet18", path, "--class", "daisy"])
    assert "packages for efficientnet_lite0" in done.output
