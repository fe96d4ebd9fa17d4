"""What is written is what is read, by any Arrow reader, and no file is opened before it is needed."""

import pickle
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import shards as shards_module
from pipeline.data.shards import SCHEMA, SCHEMA_VERSION, Shards, fetch_ahead, write_shard
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from tests.conftest import tiny


@pytest.fixture(scope="module")
def cut(tiny_shards, tmp_path_factory):
    """The tiny training split as it is, and cut into files of 9, 0, 12 and 1 rows."""
    whole = pa.ipc.open_file(pa.memory_map(str(tiny_shards["train"].files[0]))).read_all()
    rows = [shards_module.Row(**row) for row in whole.to_pylist()]
    folder, files, sizes = tmp_path_factory.mktemp("cut"), [], [9, 0, 12, 1]
    for i, end in enumerate(accumulate(sizes)):
        files.append(folder / f"{i}.arrow")
        write_shard(files[-1], rows[end - sizes[i] : end], "train", tiny().data.class_table())
    return rows, files, sizes


def test_how_a_split_is_cut_into_files_changes_nothing(cut, tiny_shards) -> None:
    rows, files, sizes = cut
    for shards in (Shards(files), Shards(files, sizes), pickle.loads(pickle.dumps(Shards(files)))):
        assert len(shards) == len(rows) == 22
        for index in range(22):
            assert shards.id(index) == tiny_shards["train"].id(index)
            assert shards.size_px(index) == (48, 64, 48, 64)
            for one, other in zip(
                shards.image_label(index), tiny_shards["train"].image_label(index), strict=True
            ):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert (one == other).all()


def test_a_shard_is_a_plain_arrow_file_that_says_what_it_is(cut) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(cut[1][0]))).read_all()
    assert table.schema.names == SCHEMA.names
    meta = table.schema.metadata
    assert meta[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert meta[b"split"] == b"train"
    assert b"triangle" in meta[b"classes"]


def rewritten(rows, path, **changes) -> Shards:
    """The rows as a file, the first of them changed as a fault of a disk would, hashes as they were."""
    first = replace(rows[0], **changes)
    write_shard(path, [first, *rows[1:]], "train", tiny().data.class_table())
    return Shards([path])


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_row_that_is_not_what_was_written_is_never_trained_on(cut, tmp_path, column) -> None:
    rows = cut[0]
    content = bytearray(getattr(rows[0], column))
    content[len(content) // 2] ^= 1
    shards = rewritten(rows, tmp_path / "x.arrow", **{column: bytes(content)})
    shards.image_label(1)
    with pytest.raises(DataError) as caught:
        shards.image_label(0)
    for word in (column, rows[0].id, "sha256", "remove"):
        assert word in str(caught.value)


def test_a_label_of_other_classes_is_found_though_it_can_be_read(cut, tmp_path) -> None:
    rows = cut[0]
    shards = rewritten(rows, tmp_path / "x.arrow", label=rows[1].label)
    with pytest.raises(DataError, match="the label of"):
        shards.image_label(0)


def test_a_row_is_hashed_once_in_a_process(cut, monkeypatch) -> None:
    shards, hashed = Shards(cut[1]), []
    real = shards_module.pixels_sha256
    monkeypatch.setattr(
        shards_module, "pixels_sha256", lambda label: hashed.append(1) or real(label)
    )
    first, again = shards.image_label(3), shards.image_label(3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len(hashed) == 1


def test_the_images_are_those_of_the_source_untouched(cut) -> None:
    source = open_source(tiny())
    samples = [s for s in source.samples()[0] if s.split == "train"]
    assert [row.image for row in cut[0]] == [source.read(sample)[0] for sample in samples]


@given(st.integers(0, 21))
def test_only_the_file_of_a_row_is_opened_if_the_numbers_of_rows_are_known(cut, index) -> None:
    rows, files, sizes = cut
    here = next(i for i, end in enumerate(accumulate(sizes)) if index < end)
    others = [file if i == here else file.with_name("gone") for i, file in enumerate(files)]
    assert Shards(others, sizes).id(index) == rows[index].id


def test_a_damaged_file_is_named_with_the_remedy(cut, tmp_path) -> None:
    broken = tmp_path / "x.arrow"
    broken.write_bytes(cut[1][0].read_bytes()[:100])
    for file in (broken, tmp_path / "none.arrow"):
        with pytest.raises(DataError, match="remove its data set's folder"):
            Shards([file]).id(0)


def test_an_empty_split_has_no_rows() -> None:
    assert len(Shards([])) == 0


class Remote:
    """A file in an object store."""

    def __init__(self, path, fetched: list) -> None:
        self.path, self.fetched = path, fetched

    def localize(self):
        self.fetched.append(self.path.name)
        return self.path


def test_files_of_an_object_store_are_fetched_in_their_order_and_those_of_a_folder_are_not(
    cut,
) -> None:
    files, fetched = cut[1], []
    assert fetch_ahead(Shards(files), Shards(files)) is None
    train, val = (Shards([Remote(f, fetched) for f in some]) for some in (files[:3], files[3:]))
    thread = fetch_ahead(train, val)
    assert thread is not None
    thread.join()
    assert fetched == ["0.arrow", "1.arrow", "2.arrow", "3.arrow"]
    assert (np.asarray(train.image_label(0)[0]) == Shards(files).image_label(0)[0]).all()
