"""Ten thousand damaged files: whatever is in them, the readers answer with pixels or with one error."""

import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from fcn.images import (
    ImageError,
    InputRule,
    decode_colours,
    decode_ids,
    decode_rgb,
    exif_orientation,
    value_range,
)

READERS = (
    decode_rgb,
    decode_ids,
    decode_colours,
    value_range,
    exif_orientation,
    lambda file: decode_rgb(file, InputRule(range=(0, 9), max_side_px=40)),
)
NUM_FILES = 10_000


def seeds() -> dict[str, bytes]:
    """One small file of each kind that is opened, and of some that are not."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for kind in ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "DDS", "ICO"):
        buffer = io.BytesIO()
        extra = {"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}
        Image.fromarray(colours).save(buffer, kind, **extra)
        files[kind] = buffer.getvalue()
    for name, values in (
        ("deep PNG", colours[..., 0].astype(np.uint16) * 200),
        ("float TIFF", colours[..., 0].astype(np.float32)),
        ("bits", colours[..., 0] > 100),
    ):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "TIFF" if "TIFF" in name else "PNG")
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, colours[..., 0])
    return files | {"npy": buffer.getvalue()}


def damaged(file: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or cut off; of PNG with checksums that are right again."""
    data = bytearray(file)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(5):
            case 0 | 1 if data:
                data[at] = rng.choice(
                    (0, 255, rng.randrange(256), data[at] ^ 1 << rng.randrange(8))
                )
            case 2:
                del data[at : at + rng.randrange(1, 9)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 9)]
            case 4 if rng.random() < 0.2:
                del data[at:]
    return _checked(bytes(data)) if rng.random() < 0.5 else bytes(data)


def _checked(file: bytes) -> bytes:
    """A PNG whose chunks have right checksums, so that what is in them is believed."""
    if not file.startswith(b"\x89PNG\r\n\x1a\n"):
        return file
    out, at = bytearray(file[:8]), 8
    while at + 12 <= len(file):
        length = min(int.from_bytes(file[at : at + 4], "big"), len(file) - at - 12)
        body = file[at + 4 : at + 8 + length]
        out += length.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("part", range(4))
def test_no_damaged_file_ends_in_another_error(part) -> None:
    rng, files = random.Random(part), list(seeds().values())
    read, told = 0, set()
    for i in range(NUM_FILES // 4):
        file = damaged(files[i % len(files)], rng)
        for reader in READERS:
            try:
                reader(file)
                read += 1
            except ImageError as error:
                told |= {error.reason, error.evidence}
    assert "" not in told
    assert read > NUM_FILES // 8  # a fair share is read all the same: the damage is not too plain
