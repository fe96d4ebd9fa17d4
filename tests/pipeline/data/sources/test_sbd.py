"""SBD: train is its own, val what it leaves of PASCAL VOC's list."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn.labels import VOID
from pipeline.data.sources import open_source
from pipeline.errors import DataError, RecipeError
from tests.pipeline.data.sources.made import photo, recipe

LISTS = Path("ImageSets/Segmentation")
TRAIN, VAL_2011, VAL_2012 = ["a", "b", "c"], ["b", "d", "e"], ["b", "d", "e", "f"]
LABEL = np.arange(21, dtype=np.uint8).reshape(3, 7)


@pytest.fixture
def roots(tmp_path) -> tuple[Path, Path]:
    """SBD as it is unpacked, and a tree of VOC."""
    sbd, voc = tmp_path / "benchmark_RELEASE", tmp_path / "VOC2012"
    (sbd / "dataset" / "cls").mkdir(parents=True)
    for name in TRAIN:
        photo(sbd / "dataset" / "img" / f"{name}.jpg", 3, 7)
        content = {"GTcls": {"Segmentation": LABEL, "CategoriesPresent": [1]}}
        savemat(sbd / "dataset" / "cls" / f"{name}.mat", content)
    (sbd / "dataset" / "train.txt").write_text("\n".join(TRAIN) + "\n")
    (voc / LISTS).mkdir(parents=True)
    (voc / "SegmentationClass").mkdir()
    for name in VAL_2012:
        photo(voc / "JPEGImages" / f"{name}.jpg", 3, 7)
        Image.fromarray(np.full((3, 7), VOID, np.uint8)).save(
            voc / "SegmentationClass" / f"{name}.png"
        )
    (voc / LISTS / "val.txt").write_text("\n".join(VAL_2012) + "\n")
    return sbd, voc


def opened(roots: tuple[Path, Path], **data: object):
    return open_source(recipe("sbd", roots[0], voc_root=str(roots[1]), **data))


@pytest.mark.parametrize("inner", ["", "dataset"])
def test_val_is_vocs_list_without_the_names_that_sbd_trains_on(roots, inner) -> None:
    whole, broken = opened((roots[0] / inner, roots[1])).samples()
    assert [(s.split, s.id) for s in whole] == [
        *(("train", name) for name in TRAIN),
        *(("val", name) for name in ["d", "e", "f"]),
    ]
    assert broken == []


def test_the_list_of_the_paper_is_taken_where_it_lies_in_a_tree_of_2012(roots) -> None:
    before = opened(roots).state()
    (roots[1] / LISTS / "seg11valid.txt").write_text("\n".join(VAL_2011) + "\n")
    source = opened(roots)
    assert [s.id for s in source.samples()[0] if s.split == "val"] == ["d", "e"]
    assert source.state() != before


def test_labels_of_both_kinds_are_read_by_the_recipes_rule(roots) -> None:
    made = recipe("sbd", roots[0], voc_root=str(roots[1]))
    source, rule = open_source(made), made.data.label_rule()
    labels = {s.id: rule.decode(source.read(s)[1])[0] for s in source.samples()[0]}
    np.testing.assert_array_equal(labels["a"], LABEL)
    assert (labels["d"] == VOID).all()


def test_a_label_that_is_missing_costs_its_own_sample_and_stays_out_of_val(roots) -> None:
    (roots[0] / "dataset" / "cls" / "b.mat").unlink()
    whole, broken = opened(roots).samples()
    assert [(r.split, r.id, r.reason) for r in broken] == [("train", "b", "missing partner")]
    assert "b" not in {s.id for s in whole}


def test_folders_that_are_not_given_or_leave_nothing_are_told(roots) -> None:
    with pytest.raises(RecipeError, match=r"data\.voc_root is missing; --set data\.voc_root="):
        open_source(recipe("sbd", roots[0]))
    (roots[1] / LISTS / "val.txt").write_text("b\n")
    with pytest.raises(DataError, match=r"names all 1 images of the val list"):
        opened(roots).samples()
    (roots[0] / "dataset" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: the list of samples cannot be read"):
        opened(roots).samples()
