"""Class tables are read from the files that tools and people write."""

import pytest

from pipeline.ops.new.names import find_table
from pipeline.ops.new.tree import Tree

RGB = ((0, 0, 0), (128, 0, 0))


@pytest.mark.parametrize(
    ("name", "text", "names", "colours"),
    [
        ("labelmap.txt", "# label:color\nsky:0,0,0::\ncar:128,0,0::\n", ("sky", "car"), RGB),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,0\ncar,128,0,0\n", ("sky", "car"), RGB),
        ("label_colors.txt", "0 0 0\tsky\n128 0 0\ttraffic light\n", ("sky", "traffic light"), RGB),
        ("classes.txt", "sky\ncar\n", ("sky", "car"), ()),
        ("codes.txt", "sky\ncar\n", ("sky", "car"), ()),
        ("obj.names", "sky\ncar\n", ("sky", "car"), ()),
        ("data.yaml", "nc: 2\nnames: [sky, car]\n", ("sky", "car"), ()),
        ("set.yaml", "names:\n  1: car\n  0: sky\n", ("sky", "car"), ()),
    ],
)
def test_tables(tmp_path, name, text, names, colours) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / name).write_text(text)
    table = find_table(Tree.of(tmp_path))
    assert (table.names, table.colours) == (names, colours)
    assert table.file == f"inner/{name}"


def test_ids_beside_names_are_kept_and_void_is_known_by_its_name(tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("3 sky\n7 unlabeled\n")
    table = find_table(Tree.of(tmp_path))
    assert table.ids == (3, 7)
    assert [table.is_void(i) for i in (0, 1)] == [False, True]


def test_files_that_are_no_tables_are_passed_over(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("1\n2\n")
    (tmp_path / "labels.txt").write_text("sky\nsky\n")
    (tmp_path / "broken.yaml").write_text("[")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    assert find_table(Tree.of(tmp_path)) is None
