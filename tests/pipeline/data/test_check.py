"""A label that is accepted is proved to hold classes and void alone; all else is refused in words."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from fcn.images import decode_ids
from fcn.labels import VOID, ClassTable
from pipeline.data.check import check_samples
from pipeline.data.sources import Sample

TABLE = ClassTable(("sky", "road", "tree"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
SAMPLE = Sample("train", "a", "a.png", "a.png")


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Given:
    """A source with one sample."""

    def __init__(self, label: Image.Image, image: Image.Image | None = None) -> None:
        blank = Image.new("RGB", label.size)
        self.files = encoded(image or blank), encoded(label)

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        return self.files


def check(label: Image.Image, image: Image.Image | None = None, void_ids=(11,)):
    (_, rejected), rows = check_samples(Given(label, image), [SAMPLE], TABLE, void_ids)
    assert len(rejected) + len(rows) == 1
    return rows[0] if rows else rejected[0]


@given(
    arrays(
        np.uint8,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.sampled_from([0, 1, 2, 3, 11, 200, VOID]),
    )
)
def test_a_label_is_accepted_if_and_only_if_each_id_is_a_class_or_void(ids) -> None:
    done = check(Image.fromarray(ids))
    wild = sorted({int(i) for i in ids.ravel()} - {0, 1, 2, 11, VOID})
    if wild:
        assert done.reason == "unknown class"
        assert str(wild) in done.evidence
        assert "(0..2)" in done.evidence
        return
    expected = np.where(ids == 11, VOID, ids)
    assert (decode_ids(done.label) == expected).all()
    assert done.class_px == [int((ids == k).sum()) for k in range(3)]
    assert done.valid_px == sum(done.class_px)
    assert (done.height_px, done.width_px) == ids.shape


@pytest.mark.parametrize("mode", ["P", "I;16", "1"])
def test_palette_16_bit_and_1_bit_label_maps_are_read_as_ids(mode) -> None:
    ids = np.tile([0, 1], (20, 15))
    if mode == "P":
        picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
        picture.putpalette([200, 10, 10, 10, 200, 10])
    else:
        picture = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else bool))
    assert picture.mode == mode
    assert (decode_ids(check(picture).label) == ids).all()


def test_an_image_of_16_bits_is_rejected_with_mode_range_and_remedy() -> None:
    grey = Image.fromarray(np.arange(600).reshape(20, 30).astype(np.uint16))
    done = check(Image.new("L", (30, 20)), grey)
    assert done.reason == "16-bit image"
    assert "I;16" in done.evidence
    assert "0 to 599" in done.evidence
    assert "convert" in done.evidence


def test_a_file_that_cannot_be_read_is_rejected() -> None:
    class Unreadable:
        def read(self, sample: Sample) -> tuple[bytes, bytes]:
            raise PermissionError(13, "Permission denied", sample.image)

    (_, rejected), rows = check_samples(Unreadable(), [SAMPLE], TABLE, ())
    assert rows == []
    assert (rejected[0].reason, rejected[0].path) == ("unreadable file", "a.png")
    assert "Permission denied" in rejected[0].evidence


def test_hashes_see_pixels_and_labels_but_not_how_they_are_encoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    label = Image.fromarray((noise[..., 0] % 3).astype(np.uint8))
    one = check(label, Image.fromarray(noise))
    alpha = check(label.convert("P"), Image.fromarray(noise).convert("RGBA"))
    turned = check(label.rotate(180), Image.fromarray(noise))
    assert one.sha256 != alpha.sha256
    assert one.pixels_sha256 == alpha.pixels_sha256
    assert one.label_sha256 == alpha.label_sha256
    assert one.label_sha256 != turned.label_sha256
    wide, tall = check(Image.new("L", (4, 2))), check(Image.new("L", (2, 4)))
    assert wide.label_sha256 != tall.label_sha256
    assert wide.pixels_sha256 != tall.pixels_sha256
