"""One rule from an encoded image to pixels: 8 bits as they are, more bits refused in words."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fcn.images import ImageError, decode_ids, decode_rgb

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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_refused_with_its_range_and_the_remedy(kind) -> None:
    file = encoded(Image.fromarray((RAMP + 1000).astype(np.uint16)), kind)
    with pytest.raises(ImageError) as caught:
        decode_rgb(file)
    assert caught.value.reason == "16-bit image"
    assert "1000 to 1599" in caught.value.evidence
    assert "convert it" in caught.value.evidence


@pytest.mark.parametrize(
    ("dtype", "reason"), [(np.int32, "32-bit image"), (np.float32, "float image")]
)
def test_integers_and_floats_of_32_bits_are_refused(dtype, reason) -> None:
    with pytest.raises(ImageError, match=r"values 0(\.0)? to 599") as caught:
        decode_rgb(encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF"))
    assert caught.value.reason == reason


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_refused_though_pillow_opens_them_with_8(channels) -> None:
    file = png_of_16_bits(channels)
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode in ("RGB", "RGBA")
    with pytest.raises(ImageError, match="16-bit image: mode RGB"):
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
