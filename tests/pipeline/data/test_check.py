"""A label that is accepted is proved to hold classes and void alone; all else is refused in words."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from fcn.images import AS_STORED, InputRule, decode_ids, decode_rgb
from fcn.labels import VOID, LabelRule
from pipeline.data.check import Rules, check_samples, find_range, perceptual_hash
from pipeline.data.sources import Drawn, Sample

LABELS = LabelRule(3, ids={0: 0, 1: 1, 2: 2, 11: VOID, VOID: VOID})
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


def check(label: Image.Image, image: Image.Image | None = None, rule=AS_STORED, sample=SAMPLE):
    (_, rejected), rows = check_samples(Given(label, image), [sample], Rules(rule, LABELS))
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
        assert all(f"{i} ({(ids == i).sum()} px)" in done.evidence for i in wild)
        assert "3 classes are 0..2" in done.evidence
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
    assert "0 to 599" in done.evidence
    assert "data.range=[black, white]" in done.evidence


def test_a_file_that_cannot_be_read_is_rejected() -> None:
    class Unreadable:
        def read(self, sample: Sample) -> tuple[bytes, bytes]:
            raise PermissionError(13, "Permission denied", sample.image)

    (_, rejected), rows = check_samples(Unreadable(), [SAMPLE], Rules(AS_STORED, LABELS))
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


def test_all_faults_of_a_sample_are_told_at_once() -> None:
    grey = Image.fromarray(np.arange(600).reshape(20, 30).astype(np.uint16))
    done = check(Image.new("L", (30, 20), 7), grey)
    assert done.reason == "16-bit image and unknown class"
    assert "0 to 599" in done.evidence
    assert "7 (600 px)" in done.evidence


class Tagged:
    """A source of one image with an EXIF orientation."""

    def __init__(self, image: Image.Image, label: Image.Image | Drawn, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        image.save(buffer, "PNG", exif=exif)
        label = label if isinstance(label, Drawn) else encoded(label)
        self.files = buffer.getvalue(), label

    def read(self, sample: Sample):
        return self.files


def rows_of(source, rule=AS_STORED, sample=SAMPLE):
    (facts, rejected), rows = check_samples(source, [sample], Rules(rule, LABELS))
    return facts, rejected, rows


CORNER = np.zeros((20, 30), np.uint8)
CORNER[:5, :10] = 1


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_turned_image_and_its_label_are_both_upright_if_the_sizes_prove_it(orientation) -> None:
    image = Image.fromarray(np.repeat(CORNER[..., None] * 200, 3, 2))
    transposed = {5: np.transpose, 6: lambda a: np.rot90(a, -1), 8: np.rot90}
    transposed[7] = lambda a: np.rot90(a, 2).T
    expected = transposed[orientation](CORNER)
    as_stored = Tagged(image, Image.fromarray(CORNER), orientation)
    as_shown = Tagged(image, Image.fromarray(np.ascontiguousarray(expected)), orientation)
    for source in (as_stored, as_shown):
        _, rejected, rows = rows_of(source)
        assert not rejected
        assert (decode_ids(rows[0].label) == expected).all()
        assert (decode_rgb(rows[0].image)[..., 0] == expected * 200).all()
        assert (rows[0].height_px, rows[0].width_px) == (30, 20)


@pytest.mark.parametrize(("orientation", "size"), [(3, (20, 30)), (2, (20, 30)), (6, (20, 20))])
def test_a_turned_image_is_rejected_if_the_sizes_prove_nothing(orientation, size) -> None:
    image = Image.new("RGB", (size[1], size[0]))
    label = Image.new("L", (size[1], size[0]))
    _, rejected, _ = rows_of(Tagged(image, label, orientation))
    assert rejected[0].reason == "EXIF orientation"
    assert f"orientation {orientation}" in rejected[0].evidence


def test_values_of_16_bits_are_put_in_the_range_that_the_rule_says() -> None:
    grey = np.linspace(1000, 3000, 600).reshape(20, 30).astype(np.uint16)
    source = Given(Image.new("L", (30, 20)), Image.fromarray(grey))
    assert find_range(source, [SAMPLE]) == (1000, 3000)
    _, rejected, rows = rows_of(source, InputRule(range=(1000, 2000)))
    assert not rejected
    pixels = decode_rgb(rows[0].image)
    expected = np.rint(np.clip((grey - 1000.0) / 1000, 0, 1) * 255)
    assert (pixels == expected[..., None]).all()


def test_an_image_of_8_bits_has_no_place_where_a_range_is_set() -> None:
    done = check(Image.new("L", (30, 20)), rule=InputRule(range=(0, 4095)))
    assert done.reason == "8-bit image"
    assert "data.range=[0, 4095]" in done.evidence


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_large_image_is_made_smaller_and_a_scored_label_keeps_its_size(split) -> None:
    label = np.tile(np.array([0, 1], np.uint8).repeat(50), (60, 1))
    rule = InputRule(max_side_px=50)
    facts, rejected, rows = rows_of(
        Given(Image.fromarray(label)), rule, Sample(split, "a", "a.png", "a.png")
    )
    assert not rejected
    assert decode_rgb(rows[0].image).shape == (30, 50, 3)
    stored = decode_ids(rows[0].label)
    assert stored.shape == ((30, 50) if split == "train" else (60, 100))
    assert (rows[0].label_height_px, rows[0].label_width_px) == stored.shape
    assert (stored[:, : stored.shape[1] // 2] == 0).all()
    assert (stored[:, stored.shape[1] // 2 :] == 1).all()
    assert facts[0].notes == {"scaled": 1}
    assert facts[0].class_px == [(stored == k).sum() for k in range(3)]


def test_the_perceptual_hash_hardly_changes_with_encoding_size_and_brightness() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 200, (9, 12, 3)).astype(np.uint8))
    image = coarse.resize((240, 180), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.resize((200, 150)).save(buffer, "JPEG", quality=60)
    pixels = np.asarray(image)
    first = perceptual_hash(pixels)
    for other in (decode_rgb(buffer.getvalue()), np.clip(pixels.astype(int) + 20, 0, 255)):
        assert (first ^ perceptual_hash(other.astype(np.uint8))).bit_count() <= 6
    unlike = rng.integers(0, 200, (9, 12, 3)).astype(np.uint8)
    stretched = np.asarray(Image.fromarray(unlike).resize((240, 180), Image.Resampling.BICUBIC))
    assert (first ^ perceptual_hash(stretched)).bit_count() > 12
