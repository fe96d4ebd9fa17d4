"""The data set as memory-mapped Arrow IPC files: schema, writer, reader.

Any Arrow reader opens them; the class table and the split are in the schema's metadata.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from fcn.images import decode_ids, decode_rgb
from fcn.labels import ClassTable
from pipeline.errors import DataError, StoreError
from pipeline.storage.store import File, localize

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
PNG_LEVEL = 3
"""Of labels: a quarter larger than with zlib's usual 6, in two thirds of the time."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),  # as it was encoded; a PNG if it was turned, scaled or put in range
        ("label", pa.binary()),  # class ids as an 8-bit PNG, void = 255
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("label_height_px", pa.int32()),  # of the file: greater than the image's if that was scaled
        ("label_width_px", pa.int32()),
        ("valid_px", pa.int64()),
        ("class_px", pa.list_(pa.int64())),
        ("source", pa.string()),
        ("sha256", pa.string()),  # of the image's bytes
        ("pixels_sha256", pa.string()),  # of the image's size and RGB pixels, however encoded
        ("label_sha256", pa.string()),  # of the label's size and class ids, however encoded
    ]
)


@dataclass(frozen=True)
class Row:
    """One accepted sample, as the schema has it."""

    id: str
    image: bytes
    label: bytes
    height_px: int
    width_px: int
    label_height_px: int
    label_width_px: int
    valid_px: int
    class_px: list[int]
    source: str
    sha256: str
    pixels_sha256: str
    label_sha256: str


def write_shard(path: Path, rows: Iterable[Row], split: str, table: ClassTable) -> None:
    """One Arrow IPC file."""
    meta = {
        "schema_version": str(SCHEMA_VERSION),
        "split": split,
        "classes": json.dumps(asdict(table)),
    }
    schema = SCHEMA.with_metadata(meta)
    columns = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(columns)


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    """Hash of an array's shape and values: equal for equal pixels, whatever file they came from."""
    shape = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(shape + b"/" + pixels.tobytes()).hexdigest()


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Class ids (H, W) or RGB pixels (H, W, 3) uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


class Shards:
    """A split, read by row number from memory-mapped files, which are opened when first needed.

    A file that lies in an object store is fetched when it is opened; with the numbers of their rows
    given, no other has to be.
    """

    def __init__(self, files: Sequence[File], rows: Sequence[int] | None = None) -> None:
        self.files, self._rows = list(files), rows
        self._tables: dict[int, pa.Table] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map does not travel; each process opens its own.
        return Shards, (self.files, self._rows)

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            self._tables[shard] = open_shard(self.files[shard])
        return self._tables[shard]

    @cached_property
    def _ends(self) -> list[int]:
        rows = self._rows or [len(self._table(i)) for i in range(len(self.files))]
        return list(accumulate(rows))

    def __len__(self) -> int:
        """Samples in the split."""
        return self._ends[-1] if self._ends else 0

    def _cell(self, index: int, column: str) -> Any:  # noqa: ANN401 - by the column's type
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return self._table(shard)[column][index - start].as_py()

    def id(self, index: int) -> str:
        """Name of a sample."""
        return str(self._cell(index, "id"))

    def size_px(self, index: int) -> tuple[int, int, int, int]:
        """Height and width of a sample's image, then of its label."""
        names = ("height_px", "width_px", "label_height_px", "label_width_px")
        height, width, label_height, label_width = (self._cell(index, name) for name in names)
        return height, width, label_height, label_width

    def image_label(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and label (h, w), both uint8; sizes differ where the image was scaled."""
        return decode_rgb(self._cell(index, "image")), self.label(index)

    def label(self, index: int) -> NDArray[np.uint8]:
        """Class ids (h, w) uint8 of the label map alone, void = 255."""
        return decode_ids(self._cell(index, "label")).astype(np.uint8, copy=False)


def open_shard(file: File) -> pa.Table:
    """A file's columns, memory-mapped.

    Raises:
        DataError: it is damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(localize(file)))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"a shard cannot be read: {error}; remove its data set's folder") from error


def fetch_ahead(*splits: Shards) -> threading.Thread | None:
    """Begin to have the files of some splits on this machine, in the order given, in a thread.

    Whoever reads a file then need not wait for it. None if all of them are on this machine.
    """
    files = [file for shards in splits for file in shards.files]
    if all(isinstance(file, Path) for file in files):
        return None
    thread = threading.Thread(target=_fetch, args=(files,), name="shards", daemon=True)
    thread.start()
    return thread


def _fetch(files: Iterable[File]) -> None:
    try:
        for file in files:
            localize(file)
    except StoreError as error:  # raised again to whoever reads that shard
        log.warning("shards are fetched when they are read, not before: %s", error)
