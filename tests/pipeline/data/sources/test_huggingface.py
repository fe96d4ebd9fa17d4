"""Parquet files: rows become samples, cells are read on demand, damage is told."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn.images import ImageError
from pipeline.data.sources import huggingface, open_source
from pipeline.data.sources.huggingface import HuggingFaceSource
from pipeline.errors import DataError
from tests.pipeline.data.sources.made import ALLOWED, recipe

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SPLITS = {
    "train": {"images": "data/train-*.parquet", "labels": "annotation"},
    "val": {"images": "data/validation", "labels": "annotation"},
}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path: Path, values: range, label: str = "annotation", rows: int = 2) -> None:
    """A parquet file of images and label maps, some rows in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: pa.array([{"bytes": png(offset + v), "path": None} for v in values], CELL)
        for name, offset in (("image", 100), (label, 0))
    }
    pq.write_table(pa.table({**columns, "scene": ["x"] * len(values)}), path, row_group_size=rows)


@pytest.fixture
def root(tmp_path) -> Path:
    write_rows(tmp_path / "data" / "train-00000-of-00002.parquet", range(5))
    write_rows(tmp_path / "data" / "train-00001-of-00002.parquet", range(5, 8))
    write_rows(tmp_path / "data" / "validation" / "0.parquet", range(10, 11))
    return tmp_path


def opened(root: Path, **splits: object) -> HuggingFaceSource:
    return open_source(recipe("huggingface", root, splits={**SPLITS, **splits}))


def test_every_row_is_a_sample_and_its_cells_are_read_whatever_the_order(root) -> None:
    source = opened(root)
    samples, broken = source.samples()
    assert broken == []
    assert [s.id for s in samples][4:7] == [
        "data/train-00000-of-00002/000004",
        "data/train-00001-of-00002/000000",
        "data/train-00001-of-00002/000001",
    ]
    assert [s.split for s in samples] == ["train"] * 8 + ["val"]
    values = [*range(8), 10]
    for i in (8, 3, 0, 4, 7, 1, 2, 5, 6):
        assert source.read(samples[i]) == (png(100 + values[i]), png(values[i]))


@pytest.mark.parametrize(
    ("ids", "named"),
    [(["b", "a/x"], True), (["b", "b"], False), (["b", None], False), ([4, 5], False)],
)
def test_samples_have_the_names_of_an_id_column_if_they_differ(tmp_path, ids, named) -> None:
    path = tmp_path / "data" / "train-0.parquet"
    write_rows(path, range(2))
    pq.write_table(pq.read_table(path).append_column("id", pa.array(ids)), path)
    write_rows(tmp_path / "data" / "validation" / "0.parquet", range(10, 11))
    samples = [s for s in opened(tmp_path).samples()[0] if s.split == "train"]
    assert [s.id for s in samples] == (
        ids if named else ["data/train-0/000000", "data/train-0/000001"]
    )
    assert opened(tmp_path).read(samples[1]) == (png(101), png(1))


def test_a_row_group_is_read_once_for_the_rows_that_follow_each_other(root) -> None:
    source = opened(root)
    before = huggingface._row_group.cache_info().misses
    for sample in source.samples()[0]:
        source.read(sample)
    assert huggingface._row_group.cache_info().misses - before == 3 + 2 + 1


def test_a_file_that_was_written_again_is_read_again(root) -> None:
    source = opened(root)
    sample = source.samples()[0][-1]
    assert source.read(sample)[1] == png(10)
    write_rows(root / "data" / "validation" / "0.parquet", range(30, 31))
    assert source.read(sample)[1] == png(30)
    write_rows(root / "data" / "validation" / "0.parquet", range(0))
    with pytest.raises(ImageError, match="has 0 rows, and no row 0"):
        source.read(sample)


def test_cells_may_be_bytes_alone_or_the_path_of_a_file(root) -> None:
    (root / "photos").mkdir()
    (root / "photos" / "a.png").write_bytes(png(1))
    table = pa.table({"image": ["photos/a.png", "photos/b.png"], "annotation": [png(2), png(3)]})
    pq.write_table(table, root / "data" / "validation" / "0.parquet")
    source = opened(root)
    good, missing = (s for s in source.samples()[0] if s.split == "val")
    assert source.read(good) == (png(1), png(2))
    with pytest.raises(ImageError, match=r"b\.png is no regular file"):
        source.read(missing)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_an_empty_cell_costs_its_own_sample(root, cell) -> None:
    good = {"bytes": png(1), "path": None}
    table = pa.table(
        {"image": pa.array([good, good], CELL), "annotation": pa.array([cell, good], CELL)}
    )
    pq.write_table(table, root / "data" / "validation" / "0.parquet")
    source = opened(root)
    empty, whole = (s for s in source.samples()[0] if s.split == "val")
    with pytest.raises(ImageError, match="column annotation has neither bytes nor a path"):
        source.read(empty)
    assert source.read(whole) == (png(1), png(1))


@pytest.mark.parametrize(
    ("val", "words"),
    [
        ({"images": "none", "labels": "annotation"}, r"no file in .* is none/\*\.parquet"),
        ({"images": "/data", "labels": "annotation"}, "cannot be looked for"),
        ({"images": "data/validation", "labels": "mask"}, "columns image, annotation, scene"),
        ({"images": "data/validation", "labels": "image"}, "columns image, annotation, scene"),
    ],
)
def test_files_and_columns_that_are_not_there_are_told(root, val, words) -> None:
    with pytest.raises(DataError, match=words):
        opened(root, val=val).samples()


def test_a_file_that_is_no_parquet_and_one_without_rows_end_the_ingest(root) -> None:
    path = root / "data" / "validation" / "0.parquet"
    write_rows(path, range(0))
    with pytest.raises(DataError, match="split val has no samples"):
        opened(root).samples()
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read as parquet"):
        opened(root).samples()


def test_the_state_sees_files_that_are_new_or_written_again(root) -> None:
    source = opened(root)
    states = [source.state()]
    assert source.state() == states[0]
    write_rows(root / "data" / "validation" / "0.parquet", range(12, 14))
    states.append(source.state())
    write_rows(root / "data" / "validation" / "1.parquet", range(12, 14))
    states.append(source.state())
    assert len(set(states)) == 3


@given(data=st.data())
def test_no_damage_to_the_bytes_raises_anything_else(data, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("parquet")
    path = root / "d" / "0.parquet"
    write_rows(path, range(3), "label")
    encoded = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(encoded) - 1), min_size=1, max_size=3)):
        encoded[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(encoded))
    splits = {split: {"images": "d", "labels": "label"} for split in ("train", "val")}
    source = open_source(recipe("huggingface", root, splits=splits))
    try:
        samples = source.samples()[0]
    except ALLOWED:
        return
    for sample in samples[:20]:
        try:
            image, label = source.read(sample)
        except ALLOWED:
            continue
        assert isinstance(image, bytes)
        assert isinstance(label, bytes)
        assert np.frombuffer(image, np.uint8).size
