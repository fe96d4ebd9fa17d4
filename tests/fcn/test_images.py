"""One rule from an encoded image to pixels: 8 bits as they are, more bits by a range or refused."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fcn.images import (
    ImageError,
    InputRule,
    decode_colours,
    decode_ids,
    decode_rgb,
    decode_stored,
    value_range,
)

RAMP = np.arange(20 * 30).reshape(20, 30)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
        *[(mode, "TIFF") for mode in ("L", "RGB", "CMYK", "YCbCr")],
        *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
        ("RGB", "BMP"),
        ("RGB", "WEBP"),
    ],
)
def test_images_of_8_bits_are_what_pillow_converts_them_to(mode, kind) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    file = encoded(Image.fromarray(noise).convert(mode), kind)
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(image.convert("RGB"))
    pixels = decode_rgb(file)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (20, 30, 3))
    assert (pixels == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_refused_with_its_range_and_the_remedy(kind) -> None:
    file = encoded(Image.fromarray((RAMP + 1000).astype(np.uint16)), kind)
    with pytest.raises(ImageError) as caught:
        decode_rgb(file)
    assert caught.value.reason == "16-bit image"
    assert "1000 to 1599" in caught.value.evidence
    assert "data.range=[black, white]" in caught.value.evidence


@pytest.mark.parametrize(
    ("dtype", "reason"), [(np.int32, "32-bit image"), (np.float32, "float image")]
)
def test_integers_and_floats_of_32_bits_are_refused(dtype, reason) -> None:
    with pytest.raises(ImageError, match="values 0 to 599") as caught:
        decode_rgb(encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF"))
    assert caught.value.reason == reason


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_refused_though_pillow_opens_them_with_8(channels) -> None:
    file = png_of_16_bits(channels)
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode in ("RGB", "RGBA")
    with pytest.raises(ImageError, match="16-bit image: values 0 to 59900"):
        decode_rgb(file)


def png_of_16_bits(channels: int) -> bytes:
    """A PNG file of 16 bits a channel by OpenCV, for Pillow writes none."""
    import cv2

    pixels = np.repeat((RAMP * 100).astype(np.uint16)[..., None], channels, 2)
    done, file = cv2.imencode(".png", pixels)
    assert done
    return file.tobytes()


@pytest.mark.parametrize("decode", [decode_rgb, decode_ids])
def test_damaged_files_are_one_error_that_travels(decode) -> None:
    whole = encoded(Image.fromarray(RAMP.astype(np.uint8)))
    for file in (b"", b"nothing", whole[: len(whole) // 2], whole[:20]):
        with pytest.raises(ImageError) as caught:
            decode(file)
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
        assert again.reason.startswith("undecodable")


@pytest.mark.parametrize("decode", [decode_rgb, decode_ids])
def test_images_and_labels_that_would_fill_the_memory_are_refused(decode, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        decode(encoded(Image.fromarray(RAMP.astype(np.uint8))))


def test_ids_are_the_stored_values_of_any_width() -> None:
    palette = Image.fromarray((RAMP % 3).astype(np.uint8)).convert("P")
    palette.putpalette([200, 10, 10, 10, 200, 10, 1, 2, 3])
    assert (decode_ids(encoded(palette)) == RAMP % 3).all()
    assert (decode_ids(encoded(Image.fromarray(RAMP.astype(np.uint16)))) == RAMP).all()


def test_colours_of_16_bits_keep_all_their_bits_within_a_range() -> None:
    file = png_of_16_bits(3)
    assert value_range(file) == (0, 59900)
    pixels = decode_rgb(file, InputRule(range=(0, 59900)))
    assert (pixels == np.rint(RAMP * 100 / 59900 * 255)[..., None]).all()


def test_values_that_are_not_finite_are_refused() -> None:
    values = RAMP.astype(np.float32)
    values[3, 3] = np.nan
    file = encoded(Image.fromarray(values), "TIFF")
    for read in (value_range, lambda f: decode_rgb(f, InputRule(range=(0, 1)))):
        with pytest.raises(ImageError, match="not finite"):
            read(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_as_pillow_turns_them(orientation) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "PNG", exif=exif)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (decode_rgb(buffer.getvalue()) == expected).all()
    stored, found = decode_stored(buffer.getvalue())
    assert (stored == noise).all()
    assert found == orientation


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "DDS", "ICO"])
def test_only_a_fixed_list_of_formats_is_opened(kind) -> None:
    file = encoded(Image.new("RGB", (32, 32)), kind)
    with pytest.raises(ImageError, match="it is none of JPEG, PNG"):
        decode_rgb(file)


def test_a_fourth_band_is_not_dropped_without_a_word() -> None:
    with pytest.raises(ImageError, match="more than 3 channels"):
        decode_rgb(encoded(Image.new("RGBX", (4, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_files_of_several_images_are_refused(kind) -> None:
    first, second = (Image.fromarray(a.astype(np.uint8)) for a in (RAMP, RAMP + 1))
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=[second])
    with pytest.raises(ImageError, match=f"several frames: {kind} of 2"):
        decode_ids(buffer.getvalue())


def test_labels_compressed_with_loss_are_refused_unless_colours_may_move() -> None:
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    for file in (encoded(red, "JPEG"), encoded(red, "WEBP")):
        for read in (decode_ids, decode_colours):
            with pytest.raises(ImageError, match="lossy label map"):
                read(file)
        assert np.abs(decode_colours(file, lossy=True) - np.array([255, 0, 0])).max() <= 3
    buffer = io.BytesIO()
    red.save(buffer, "WEBP", lossless=True)
    assert (decode_colours(buffer.getvalue()) == [255, 0, 0]).all()


def test_arrays_and_grey_saved_as_colours_are_ids() -> None:
    ids = (RAMP % 5).astype(np.int64)
    buffer = io.BytesIO()
    np.save(buffer, ids)
    assert (decode_ids(buffer.getvalue()) == ids).all()
    grey = Image.fromarray(np.repeat(ids.astype(np.uint8)[..., None], 3, 2))
    assert (decode_ids(encoded(grey)) == ids).all()
    for bad, word in ((ids.astype(float), "floats"), (ids[None], "shape")):
        buffer = io.BytesIO()
        np.save(buffer, bad)
        with pytest.raises(ImageError, match=word):
            decode_ids(buffer.getvalue())
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ImageError, match="undecodable label"):
        decode_ids(pickled.getvalue())
