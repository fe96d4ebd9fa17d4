"""Predicting with what is damaged, missing or in the way: no photo is lost, the others are labelled."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fcn.nets import FCN, Blueprint
from fcn.weights import ABOUT, NET, file_sha256, save_net
from pipeline.cli import main
from tests.abuse import SECRET, photo, refused, require

CLASSES = {
    "names": ["sky", "road", "tree"],
    "colours": [[0, 0, 0], [9, 9, 9], [5, 5, 5]],
    "void_colour": [1, 2, 3],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "net"
    save_net(folder, FCN(Blueprint("resnet18", 3, 32)), classes=CLASSES)
    return folder


@pytest.fixture
def net(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "net"))


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        photo(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def label(*arguments: object) -> tuple[int, str]:
    done = refused(main, "predict", *map(str, arguments))
    return done.exit_code, done.output


# --- nothing that was given is written over


@pytest.mark.parametrize(
    ("images", "output"),
    [
        (["photos/a.png"], "photos"),
        (["photos"], "photos"),
        (["photos/*.png"], "photos"),
        (["photos/a.png"], "photos/../photos"),
        (["photos/a.png"], "./photos/"),
        (["photos/a.png"], "link"),
        (["link/a.png"], "photos"),
        (["photos/a.png", "o/a.overlay.png"], "o"),
        (["photos/a.png", "o2/linked.png"], "o2"),
    ],
)
def test_a_target_that_is_an_image_is_refused_before_anything_is_written(
    net, photos, images, output
) -> None:
    (photos.parent / "link").symlink_to("photos")
    photo(photos.parent / "o" / "a.overlay.png")
    (photos.parent / "o2").mkdir()
    (photos.parent / "o2" / "linked.png").hardlink_to(photos / "b.png")
    (photos.parent / "o2" / "a.png").hardlink_to(photos / "a.png")
    before = {path: path.read_bytes() for path in photos.parent.rglob("*.png")}
    code, said = label(net, *images, "-o", output)
    assert code == 1
    assert "choose another folder with -o" in said
    assert {path: path.read_bytes() for path in photos.parent.rglob("*.png")} == before


@pytest.mark.parametrize("others", [["more/a.png"], ["photos/a.overlay.png"], ["more/a.jpg"]])
def test_two_targets_that_are_one_are_refused(net, photos, others) -> None:
    for name in others:
        photo(photos.parent / name)
    code, said = label(net, "photos/a.png", *others, "-o", "out")
    assert code == 1
    assert "use two folders" in said
    assert not (photos.parent / "out").exists()


def test_an_output_that_is_a_link_is_replaced_and_not_written_through(net, photos) -> None:
    other = photo(photos.parent / "elsewhere" / "precious.png")
    content = other.read_bytes()
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "a.png").symlink_to(other)
    code, _ = label(net, "photos/a.png", "-o", "out")
    assert code == 0
    assert other.read_bytes() == content
    assert Image.open(photos.parent / "out" / "a.png").mode == "P"


def test_outputs_are_there_whole_or_not_at_all(net, photos, monkeypatch) -> None:
    def half(path: Path, **_: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pipeline.ops.predict.plots.overlay_png", half)
    code, said = label(net, "photos", "-o", "out")
    assert code == 1
    assert "StoreError: out cannot be written: No space left" in said
    assert [path.name for path in (photos.parent / "out").iterdir()] == ["a.png"]


# --- the rest goes on


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("words.txt", "cannot be read"),
        ("empty.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("missing.png", "No such file"),
        ("pipe.png", "it is no file"),
        ("loop.png", "cannot be read"),
        ("dangling.png", "No such file"),
        ("sixteen.png", "data.range"),
        ("bomb.png", "cannot be read"),
        ("[bold].txt", "[bold].txt: it cannot be read"),
        (f"{'n' * 245}.png", "cannot be written"),
    ],
)
def test_an_image_that_fails_is_listed_and_the_others_are_labelled(net, photos, name, word) -> None:
    odd = photos / name
    if name.startswith(("words", "[", "empty")):
        odd.write_text("" if name.startswith("empty") else "words")
    elif name.startswith("cut"):
        odd.write_bytes((photos / "a.png").read_bytes()[:200])
    elif name.startswith("pipe"):
        os.mkfifo(odd)
    elif name.startswith(("loop", "dangling")):
        odd.symlink_to(odd.name if name.startswith("loop") else "nowhere.png")
    elif name.startswith("sixteen"):
        Image.new("I;16", (20, 20)).save(odd)
    elif name.startswith("bomb"):
        Image.new("1", (30000, 30000)).save(odd)
    elif name.startswith("n"):
        photo(odd)
    code, said = label(net, photos / "a.png", odd, photos / "b.png", "-o", "out")
    assert code == 1
    assert word in said
    assert "1 of 3 images were not labelled" in said
    assert {"a.png", "b.png"} <= {path.name for path in (photos.parent / "out").iterdir()}


@pytest.mark.parametrize(
    "given", [["photos"], ["photos/*.png"], ["photos/a.png", "photos"], ["ph*"]]
)
def test_folders_and_patterns_are_taken_as_people_expect(net, photos, given) -> None:
    (photos / "notes.txt").write_text("no image, and not asked for by name")
    code, said = label(net, *given, "-o", "out")
    if given == ["ph*"]:
        assert (code, "it is no file" in said) == (1, True)
        return
    assert code == 0
    names = sorted(path.name for path in (photos.parent / "out").iterdir())
    assert names == ["a.overlay.png", "a.png", "b.overlay.png", "b.png"]


# --- what is asked for cannot be done


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["net", "nothing/*.png", "-o", "out"], 1, "no file fits"),
        (["net", "empty", "-o", "out"], 1, "holds no image"),
        (["net", "photos", "-o", ""], 2, "name a folder"),
        (["net", "photos", "-o", "  "], 2, "name a folder"),
        (["net", "photos"], 2, "Missing option '-o'"),
        (["net", "-o", "out"], 2, "Missing argument 'IMAGES...'"),
        (["net", "photos", "-o", "photos/a.png"], 1, "choose another folder with -o"),
        (["net", "photos", "-o", "photos/a.png/x"], 1, "choose another folder with -o"),
        (["net", "photos", "-o", "/proc/x"], 1, "choose another folder with -o"),
        (["net", "photos", "-o", "o" * 300], 1, "choose another folder with -o"),
        (["nothing", "photos", "-o", "out"], 1, "a net's folder"),
        (["photos/a.png", "photos", "-o", "out"], 1, "a net's folder"),
        (["photos", "photos", "-o", "out"], 1, "net.json is missing"),
        (["run:nobody", "photos", "-o", "out"], 1, "no finished run of that name"),
        (["run:../../x", "photos", "-o", "out"], 1, "no finished run of that name"),
        (["run:", "photos", "-o", "out"], 1, "no finished run of that name"),
        (["models:/", "photos", "-o", "out"], 1, "write models:/NAME@champion"),
        (["models:/x", "photos", "-o", "out"], 1, "write models:/NAME@champion"),
        (["models:/x/latest", "photos", "-o", "out"], 1, "write models:/NAME@champion"),
        (["models:/x@champion", "photos", "-o", "out"], 1, "--store"),
        (["models:/x@champion", "photos", "-o", "out", "--store", "photos/a.png"], 1, "--store"),
        (["net", "photos", "-o", "out", "--store", f"s3://K:{SECRET}@b"], 2, "environment"),
        (
            ["net", "photos", "-o", "out", "--tracking-uri", f"http://u:{SECRET}@h"],
            2,
            "environment",
        ),
        ([f"http://u:{SECRET}@h/net", "photos", "-o", "out"], 2, "environment"),
    ],
    ids=lambda row: " ".join(row)[:60] if isinstance(row, list) else None,
)
def test_a_call_that_cannot_succeed_says_why_and_makes_no_store(
    net, photos, arguments, code, word
) -> None:
    (photos.parent / "empty").mkdir()
    require(main, ["predict", *arguments], code, word)
    assert not (photos.parent / "store").exists()


# --- damaged nets


def changed(net: Path, **changes: object) -> None:
    about = json.loads((net / ABOUT).read_text()) | changes
    (net / ABOUT).write_text(json.dumps(about))


def blueprint(net: Path, **changes: object) -> None:
    changed(net, blueprint=json.loads((net / ABOUT).read_text())["blueprint"] | changes)


def content(name: str, raw: bytes):
    return lambda net: (net / name).write_bytes(raw)


def garbage_with_its_own_hash(net: Path) -> None:
    (net / NET).write_bytes(b"garbage")
    changed(net, sha256=file_sha256(net / NET))


DAMAGE = {
    "no weights": (lambda net: (net / NET).unlink(), "net.safetensors is missing"),
    "no description": (lambda net: (net / ABOUT).unlink(), "net.json is missing"),
    "weights cut": (content(NET, b"x"), "sha256 differs"),
    "weights garbage": (garbage_with_its_own_hash, "not a readable weights file"),
    "description empty": (content(ABOUT, b""), "is damaged"),
    "description list": (content(ABOUT, b"[1, 2]"), "is damaged"),
    "description null": (content(ABOUT, b"null"), "is damaged"),
    "description number": (content(ABOUT, b"5"), "is damaged"),
    "description deep": (content(ABOUT, b"[" * 100000), "is damaged"),
    "description bytes": (content(ABOUT, b"\xff\xfe"), "is damaged"),
    "description huge": (content(ABOUT, b" " * (10**7 + 1)), "is damaged"),
    "no hash": (lambda net: changed(net, sha256=None), "sha256 differs"),
    "no blueprint": (lambda net: changed(net, blueprint=None), "does not describe"),
    "blueprint number": (lambda net: changed(net, blueprint=5), "does not describe"),
    "blueprint empty": (lambda net: changed(net, blueprint={}), "does not describe"),
    "other classes": (lambda net: blueprint(net, num_classes=7), "does not describe"),
    "huge classes": (lambda net: blueprint(net, num_classes=10**9), "does not describe"),
    "text classes": (lambda net: blueprint(net, num_classes="3"), "does not describe"),
    "stride": (lambda net: blueprint(net, stride=5), "does not describe"),
    "backbone": (lambda net: blueprint(net, backbone="vgg17"), "does not describe"),
    "other backbone": (lambda net: blueprint(net, backbone="resnet50"), "does not describe"),
    "skip scale": (lambda net: blueprint(net, skip_scale=1), "does not describe"),
    "preprocessing": (lambda net: blueprint(net, preprocessing=3), "does not describe"),
    "unknown key": (lambda net: blueprint(net, x=3), "does not describe"),
    "no class table": (lambda net: changed(net, classes=None), "lists no classes"),
    "two names": (lambda net: changed(net, classes=CLASSES | {"names": ["a", "b"]}), "lists no"),
    "four classes": (
        lambda net: changed(
            net, classes=CLASSES | {"names": list("abcd"), "colours": [[0, 0, 0]] * 4}
        ),
        "names 4 classes",
    ),
    "colour 300": (
        lambda net: changed(net, classes=CLASSES | {"void_colour": [300, 0, 0]}),
        "lists no classes",
    ),
    "colour text": (
        lambda net: changed(net, classes=CLASSES | {"colours": ["red"] * 3}),
        "lists no classes",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_net_is_named_with_what_to_do(net, photos, what) -> None:
    damage, word = DAMAGE[what]
    damage(net)
    require(main, ["predict", str(net), "photos", "-o", "out"], 1, word)
    assert not (photos.parent / "out").exists()
