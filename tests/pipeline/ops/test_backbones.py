"""The table of classifiers: what it says is computed, and the page says the same."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fcn.backbones.table import FAMILY_OF
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.ops.backbones import describe, markdown

PAGE = (Path(__file__).parents[3] / "docs" / "backbones.md").read_text()
QUICK = ("alexnet", "squeezenet1_0", "mobilenet_v3_small", "regnet_x_400mf", "efficientnet_lite0")


def test_the_page_lists_every_backbone() -> None:
    listed = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")]
    assert listed == ["backbone", *FAMILY_OF]


@pytest.mark.parametrize(
    "names", [QUICK, pytest.param(tuple(FAMILY_OF), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_page_is_what_the_command_writes(names) -> None:
    """Mend it by `fcn-pipeline backbones --markdown > docs/backbones.md`."""
    for line in "\n".join(markdown(describe(names))).splitlines():
        assert f"{line}\n" in PAGE


def test_costs_are_counted_by_hand() -> None:
    """AlexNet has 61,100,840 parameters; the class layer is not the trunk's."""
    (row,) = describe(["alexnet"])
    torchvision_alexnet, class_layer = 61_100_840, 4096 * 1000 + 1000
    assert row.num_parameters == torchvision_alexnet - class_layer
    assert (row.field_px, row.gated, row.off_px) == (355, False, 0)


def test_the_verb_prints_what_is_asked_for_or_what_is_near() -> None:
    done = CliRunner().invoke(main, ["backbones", "squeezenet1_0"])
    assert "8, 16" in done.output
    assert "download" in done.output
    with pytest.raises(RecipeError, match="near are resnet"):
        list(describe(["resnet19"]))
