"""MATLAB's files: the only matrix is the label map, or SBD's; damage is told."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from fcn.images import ImageError, decode_ids
from fcn.labels import VOID
from pipeline.config.recipe import load_recipe
from pipeline.data.sources import open_source
from pipeline.data.sources.matlab import mat_to_npy
from tests.pipeline.data.sources.made import photo

IDS = np.arange(12).reshape(3, 4)


def mat(**variables: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        mat(segmentation=IDS.astype(np.uint8)),  # as NYUDv2 has it
        mat(S=IDS.astype(np.float64), names=np.array(["sky", "tree"], object)),  # as SIFT Flow
        mat(
            GTcls={"Segmentation": IDS.astype(np.uint8), "Boundaries": IDS, "CategoriesPresent": 3}
        ),
        mat(LabelMap=IDS.astype(np.uint16)),
    ],
)
def test_the_only_matrix_of_numbers_is_the_label_map(encoded) -> None:
    np.testing.assert_array_equal(decode_ids(mat_to_npy(encoded)), IDS)


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (mat(one=IDS, two=IDS), "holds one, two; a label map is its only matrix"),
        (mat(names="text"), "holds names"),
        (mat(GTcls=3), "damaged .mat file"),
        (mat(GTcls={"Boundaries": IDS}), "damaged .mat file"),
        (mat(GTcls={"Segmentation": "text"}), "holds GTcls"),
        (b"", "damaged .mat file"),
        (b"\x89PNG\r\n" * 30, "damaged .mat file"),
        (b"x" * (2 << 20), "a .mat file of 2097152 bytes"),
    ],
)
def test_what_holds_no_label_map_is_refused_in_words(encoded, words) -> None:
    with pytest.raises(ImageError, match=words):
        mat_to_npy(encoded)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e300])
def test_numbers_that_are_no_ids_are_refused(value) -> None:
    ids = IDS.astype(np.float64)
    ids[1, 1] = value
    with pytest.raises(ImageError, match="label map of floats"):
        decode_ids(mat_to_npy(mat(S=ids)))


GOOD = mat(GTcls={"Segmentation": IDS.astype(np.uint8)})


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=5))
def test_no_damage_raises_anything_else(changes) -> None:
    encoded = bytearray(GOOD)
    for at, value in changes:
        encoded[at] = value
    with contextlib.suppress(ImageError):
        assert decode_ids(mat_to_npy(bytes(encoded))).ndim == 2


@given(st.integers(0, len(GOOD)))
def test_a_file_that_was_cut_short_raises_nothing_else(length) -> None:
    try:
        ids = decode_ids(mat_to_npy(GOOD[:length]))
    except ImageError:
        return
    np.testing.assert_array_equal(ids, IDS)


SCENES = "spatial_envelope_256x256_static_8outdoorcategories"


@pytest.mark.parametrize(
    ("name", "image", "label", "lists", "classes"),
    [
        (
            "nyud",
            "data/images/img_{}.png",
            "segmentation/img_{}.mat",
            {"train.txt": ["5003"], "val.txt": ["5004"], "test.txt": ["5001"]},
            40,
        ),
        (
            "siftflow",
            f"Images/{SCENES}/{{}}.jpg",
            f"SemanticLabels/{SCENES}/{{}}.mat",
            {"trainval.txt": ["coast_a1", "coast_b2"], "test.txt": ["street_c3"]},
            33,
        ),
    ],
)
def test_the_recipes_over_matlabs_files_read_them(
    tmp_path, name, image, label, lists, classes
) -> None:
    for file, names in lists.items():
        (tmp_path / file).write_text("\n".join(names) + "\n")
        for stem in names:
            photo(tmp_path / image.format(stem))
            path = tmp_path / label.format(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mat(S=np.arange(classes + 1).reshape(1, -1).repeat(2, 0)))
    recipe = load_recipe(name, [f"data.root={tmp_path}"])
    source, rule = open_source(recipe), recipe.data.label_rule()
    samples, broken = source.samples()
    assert broken == []
    assert {s.id for s in samples} == {stem for names in lists.values() for stem in names}
    ids, _ = rule.decode(source.read(samples[0])[1])
    assert ids[0].tolist() == [VOID, *range(classes)]
