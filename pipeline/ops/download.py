"""Public data sets from their owners' servers: fetched once, proved by checksum, unpacked."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline.errors import DataError, RecipeError
from pipeline.logs import progress_bar

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Archive:
    """A file to fetch and unpack."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """A data set, and the command that trains on it."""

    archives: tuple[Archive, ...]
    next: str


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping"
_RUN_VOC = "fcn-pipeline run voc-fcn8s-vgg16 --set data.root={folder}"
_RUN_SBD = "fcn-pipeline run voc-fcn8s-vgg16-sbd --set data.root={folder}/benchmark_RELEASE"
_VOC_2011 = "TrainVal/VOCdevkit/VOC2011"
DOWNLOADS = {
    "voc2007": Download(
        (
            Archive(
                f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"
            ),
        ),
        f"{_RUN_VOC}/VOCdevkit/VOC2007",
    ),
    "voc2011": Download(
        (
            Archive(
                f"{_VOC}/voc2011/VOCtrainval_25-May-2011.tar", "6c3384ef61512963050cb5d687e5bf1e"
            ),
        ),
        f"{_RUN_VOC}/{_VOC_2011}",
    ),
    "voc2012": Download(
        (
            Archive(
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"
            ),
        ),
        f"{_RUN_VOC}/VOCdevkit/VOC2012",
    ),
    "sbd": Download(
        (
            Archive(
                f"{_BERKELEY}/semantic_contours/benchmark.tgz", "82b4d87ceb2ed10f6038a1cba92111cb"
            ),
        ),
        f"{_RUN_SBD} --set data.voc_root={{folder}}/{_VOC_2011}",
    ),
    "pets": Download(
        (
            Archive(f"{_PETS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            Archive(f"{_PETS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        "fcn-pipeline run pets --set data.root={folder}",
    ),
}
"""Names of data sets, with the checksums that torchvision has for them."""


def download(name: str, folder: Path) -> str:
    """Fetch and unpack a data set into a folder; what to run next.

    A transfer that ended early goes on where it ended. The archives stay beside what is unpacked.

    Raises:
        RecipeError: no such data set.
        DataError: the server cannot be reached, or what it sent has another checksum.
    """
    if name not in DOWNLOADS:
        raise RecipeError(
            f"{name}: no data set that can be fetched; known are {', '.join(DOWNLOADS)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}") from error
    for archive in DOWNLOADS[name].archives:
        _unpack(fetch(archive, folder), folder)
    return DOWNLOADS[name].next.format(folder=folder)


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive's file in a folder; fetched unless it is there with the right checksum.

    Raises:
        DataError: the server cannot be reached, or what it sent has another checksum.
    """
    path = folder / archive.name
    if path.is_file() and _md5(path) == archive.md5:
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        _transfer(archive.url, part)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise DataError(
            f"{archive.url}: {error}. The same command goes on where this one ended; a file that was "
            f"fetched otherwise is taken from {path}"
        ) from error
    if (found := _md5(part)) != archive.md5:
        part.unlink()
        raise DataError(
            f"{archive.url} sent a file of md5 {found}, which should be {archive.md5}; it was removed. "
            "Try again, or look whether a proxy answers instead of the server"
        )
    return part.replace(path)


def _transfer(url: str, part: Path) -> None:
    """Append to a part what it lacks, or write it anew if the server sends only the whole."""
    there = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is lacking
            return
        raise
    with response, progress_bar() as progress:
        appends = response.status == HTTPStatus.PARTIAL_CONTENT
        done = there if appends else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        bar = progress.add_task("download", total=total, completed=done, note="bytes")
        with part.open("ab" if appends else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress.update(bar, completed=done)
        if total is not None and done < total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    from torchvision.datasets.utils import extract_archive  # noqa: PLC0415 - takes seconds

    try:
        extract_archive(path, folder)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked into {folder}: {error}") from error
