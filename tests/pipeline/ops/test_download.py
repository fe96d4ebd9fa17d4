"""Public data sets, from a server of this machine: fetched once, proved, resumed and unpacked."""

import hashlib
import io
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fcn.labels import VOID
from pipeline.cli import main
from pipeline.config.recipe import load_recipe, recipe_names
from pipeline.data.sources import open_source
from pipeline.errors import DataError, RecipeError
from pipeline.ops import download as ops
from pipeline.ops.download import DOWNLOADS, Archive, Download, fetch


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FILE = tar_of("VOCdevkit/a.txt", b"content" * 1000)


class Server(ThreadingHTTPServer):
    """Sends one file, whole or from where it is asked to; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.file, self.knows_ranges, self.most, self.asked = FILE, True, len(FILE), []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        if self.path != "/set.tar.gz" or (start and start >= len(self.server.file)):
            self.send_error(416 if start else 404)
            return
        rest = self.server.file[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(server) -> Archive:
    return Archive(
        f"http://127.0.0.1:{server.server_port}/set.tar.gz", hashlib.md5(FILE).hexdigest()
    )


def test_a_data_set_is_fetched_unpacked_and_the_next_command_told(
    server, archive, tmp_path, monkeypatch
) -> None:
    known = {"set": Download((archive,), "fcn-pipeline run x --set data.root={folder}/VOCdevkit")}
    monkeypatch.setattr(ops, "DOWNLOADS", known)
    folder = tmp_path / "deep" / "folder"
    for _ in range(2):
        result = CliRunner().invoke(main, ["download", "set", str(folder)])
        assert result.exit_code == 0, result.output
        assert f"fcn-pipeline run x --set data.root={folder}/VOCdevkit" in result.output
    assert (folder / "VOCdevkit" / "a.txt").read_bytes() == b"content" * 1000
    assert server.asked == [("/set.tar.gz", None)]  # the second time nothing is fetched


def test_a_transfer_that_ended_early_goes_on_where_it_ended(server, archive, tmp_path) -> None:
    server.most = 30
    with pytest.raises(DataError, match=r"ended after 30 of \d+ bytes\. The same command goes on"):
        fetch(archive, tmp_path)
    server.most = len(FILE)
    assert fetch(archive, tmp_path).read_bytes() == FILE
    assert server.asked[1] == ("/set.tar.gz", "bytes=30-")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_a_server_without_ranges_sends_the_whole_again(server, archive, tmp_path) -> None:
    server.knows_ranges = False
    (tmp_path / "set.tar.gz.part").write_bytes(FILE[:30])
    assert fetch(archive, tmp_path).read_bytes() == FILE


def test_a_part_that_lacks_nothing_is_proved_and_kept(server, archive, tmp_path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(FILE)
    assert fetch(archive, tmp_path).read_bytes() == FILE


def test_another_checksum_is_told_and_the_file_removed(server, archive, tmp_path) -> None:
    server.file = b"<html>log in first</html>"
    found = hashlib.md5(server.file).hexdigest()
    with pytest.raises(DataError, match=f"md5 {found}, which should be {archive.md5}"):
        fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.file = FILE
    (tmp_path / "set.tar.gz").write_bytes(b"damaged")
    assert fetch(archive, tmp_path).read_bytes() == FILE


def test_a_server_that_is_not_there_is_told_with_the_way_around(tmp_path) -> None:
    with pytest.raises(DataError, match=r"refused.* is taken from .*set\.tar\.gz"):
        fetch(Archive("http://127.0.0.1:1/set.tar.gz", "0"), tmp_path)


def test_an_address_that_the_server_does_not_know_is_told(server, archive, tmp_path) -> None:
    with pytest.raises(DataError, match="404"):
        fetch(Archive(archive.url.replace("set", "other"), "0"), tmp_path)


def test_an_archive_that_would_write_outside_the_folder_is_refused(tmp_path, monkeypatch) -> None:
    encoded = tar_of("../outside.txt", b"x")
    (tmp_path / "set.tar.gz").write_bytes(encoded)
    archive = Archive("http://127.0.0.1:1/set.tar.gz", hashlib.md5(encoded).hexdigest())
    monkeypatch.setattr(ops, "DOWNLOADS", {"set": Download((archive,), "")})
    with pytest.raises(DataError, match=r"set\.tar\.gz cannot be unpacked"):
        ops.download("set", tmp_path)
    assert not (tmp_path.parent / "outside.txt").exists()


def test_a_name_that_is_not_known_and_a_folder_that_cannot_be_made(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"imagenet: .*known are .*voc2012, sbd, pets"):
        ops.download("imagenet", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        ops.download("pets", tmp_path / "file" / "inner")


def test_addresses_and_checksums_are_those_of_torchvision() -> None:
    from torchvision.datasets import OxfordIIITPet, SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    known = {f"voc{year}": [(row["url"], row["md5"])] for year, row in DATASET_YEAR_DICT.items()}
    known |= {"sbd": [(SBDataset.url, SBDataset.md5)], "pets": list(OxfordIIITPet._RESOURCES)}
    for name, data_set in DOWNLOADS.items():
        assert [(archive.url, archive.md5) for archive in data_set.archives] == known[name]


@pytest.mark.parametrize("name", DOWNLOADS)
def test_the_next_command_names_a_recipe_that_there_is(name) -> None:
    words = DOWNLOADS[name].next.split()
    assert words[:2] == ["fcn-pipeline", "run"]
    assert words[2] in recipe_names()


def test_the_recipe_of_pets_reads_what_lies_in_their_archives(tmp_path) -> None:
    for folder in ("images", "annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    trimap = np.array([[1, 2, 3]], np.uint8).repeat(2, 0)
    for i in range(12):
        Image.new("RGB", (3, 2)).save(tmp_path / "images" / f"Abyssinian_{i}.jpg")
        Image.fromarray(trimap).save(tmp_path / "annotations" / "trimaps" / f"Abyssinian_{i}.png")
        (tmp_path / "annotations" / "trimaps" / f"._Abyssinian_{i}.png").touch()  # of a Mac
    lines = [f"Abyssinian_{i} 1 1 1\n" for i in range(12)]
    (tmp_path / "annotations" / "trainval.txt").write_text("".join(lines[:10]))
    (tmp_path / "annotations" / "test.txt").write_text("".join(lines[10:]))
    recipe = load_recipe("pets", [f"data.root={tmp_path}"])
    source = open_source(recipe)
    samples, broken = source.samples()
    assert broken == []
    assert Counter(s.split for s in samples) == {"train": 9, "val": 1, "test": 2}
    ids, _ = recipe.data.label_rule().decode(source.read(samples[0])[1])
    assert ids[0].tolist() == [1, 0, VOID]
