"""A recipe for a folder is right, loads, and its ingest takes every sample; or it asks."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.config.recipe import load_recipe
from pipeline.data.check import Rules, check_samples
from pipeline.data.sources import open_source
from pipeline.errors import RecipeError
from pipeline.ops.new.make import make_recipe
from pipeline.stages import ingest
from pipeline.storage.store import Store
from tests.pipeline.ops.new.folders import ids, noise, pairs, save
from tests.pipeline.ops.new.layouts import MADE, binary, coloured, with_255


def made(folder, name):
    make, layout, classes, counts = MADE[name]
    root = folder / "data"
    root.mkdir()
    make(root)
    return make_recipe(root, folder / "mine.yaml"), layout, classes, counts


@pytest.mark.parametrize("name", MADE)
def test_each_layout_is_recognised_and_every_sample_is_accepted(tmp_path, name) -> None:
    made_, layout, classes, counts = made(tmp_path, name)
    assert made_.to_decide == ()
    recipe = load_recipe(str(made_.recipe))
    assert recipe.data.source == layout
    assert recipe.data.class_table().names[: len(classes)] == classes
    source = open_source(recipe)
    samples, rejected = source.samples()
    assert rejected == []
    assert {s: sum(x.split == s for x in samples) for s in counts} == counts
    if name != "deep":  # its range is found by the ingest
        rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
        (_, refused), rows = check_samples(source, samples, rules)
        assert refused == []
        assert all(sum(n > 0 for n in row.class_px) >= 2 for row in rows)
    with Image.open(made_.sheet) as sheet:
        assert sheet.width > 1000


@pytest.mark.ray
@pytest.mark.parametrize("name", MADE)
@pytest.mark.usefixtures("local_ray")
def test_the_ingest_of_a_recipe_for_a_folder_runs(tmp_path, name) -> None:
    made_, _, _, counts = made(tmp_path, name)
    recipe = load_recipe(str(made_.recipe), [f"store={tmp_path}/store"])
    dataset = ingest.run(recipe, Store(tmp_path / "store"), "key")
    assert (dataset.counts, dataset.num_quarantined) == (counts, 0)


def asked(folder, image="images/{}.jpg", label="masks/{}.png", *, names="", **kinds):
    root = folder / "data"
    pairs(root, image, label, **kinds)
    if names:
        (root / "classes.txt").write_text(names)
    return make_recipe(root, folder / "mine.yaml")


ASKED = {
    "data.void_ids": {"make": with_255},
    "data.label_map": {"make": lambda i: ids(i, num=4), "names": "ground\ncar\ntree\n"},
    "data.colour_tolerance": {"make": coloured, "label": "masks/{}.jpg"},
    "data.classes": {"make": lambda i: ids(i) * 0},
    "data.splits.train": {"make": lambda i: noise(i + 100), "label": "others/{}.png"},
}


@pytest.mark.parametrize("key", ASKED)
def test_what_is_not_known_is_asked_and_the_recipe_is_refused_until_it_is_filled_in(
    tmp_path, key
) -> None:
    made_ = asked(tmp_path, **ASKED[key])
    assert any(text.startswith(f"{key}:") for text in made_.to_decide)
    with pytest.raises(RecipeError, match=rf"{key}: still to decide"):
        load_recipe(str(made_.recipe))
    text = made_.recipe.read_text()
    last = key.rpartition(".")[2]
    options = [line.strip() for line in text.splitlines() if line.strip().startswith(f"# {last}: ")]
    assert options
    assert made_.sheet.exists()


def test_the_first_line_to_choose_makes_a_recipe_that_loads(tmp_path) -> None:
    made_ = asked(tmp_path, make=with_255)
    text = made_.recipe.read_text()
    assert "[255]" in text
    made_.recipe.write_text(text.replace("void_ids: CHOOSE", "void_ids: [255]"))
    assert load_recipe(str(made_.recipe)).data.void_ids == (255,)


def test_colours_that_no_class_has_are_asked_about_with_their_share(tmp_path) -> None:
    def speckled(i):
        label = coloured(i)
        label[0, 0] = (9, 9, 9)
        return label

    made_ = asked(tmp_path, make=speckled)
    (question,) = made_.to_decide
    assert "data.unknown_colours" in question
    assert "[9, 9, 9] 0.03%" in question


def test_0_and_255_are_two_classes_and_each_line_has_its_reason(tmp_path) -> None:
    made_ = asked(tmp_path, make=binary(255))
    recipe = load_recipe(str(made_.recipe))
    assert recipe.data.label_map == {"0": "background", "255": "foreground"}
    source = open_source(recipe)
    rules = Rules(recipe.data.input_rule(), recipe.data.label_rule())
    (facts, _), _ = check_samples(source, source.samples()[0], rules)
    whole = np.concatenate([ids(i, num=2).ravel() for i in range(8)])
    assert np.sum([f.class_px for f in facts], axis=0).tolist() == np.bincount(whole).tolist()
    text = made_.recipe.read_text()
    assert f"0 {(whole == 0).mean():.1%}, 255 {(whole == 1).mean():.1%}" in text
    assert "255: void" in text


def test_large_photographs_are_made_smaller_and_the_crop_fits(tmp_path) -> None:
    for i in range(4):
        save(tmp_path / f"data/images/{i}.jpg", noise(i, 1200, 1600))
        save(tmp_path / f"data/masks/{i}.png", ids(i, 1200, 1600))
    recipe = load_recipe(str(make_recipe(tmp_path / "data", tmp_path / "mine.yaml").recipe))
    assert recipe.data.max_side_px == 1024
    assert recipe.finetune.augment.crop_px == (512, 512)
    assert recipe.finetune.global_batch <= 3


def test_images_without_a_label_are_counted_and_allowed_with_the_number(tmp_path) -> None:
    pairs(tmp_path / "data", "images/{}.jpg", "masks/{}.png", 20)
    for i in range(14, 20):
        (tmp_path / f"data/masks/{i:03d}.png").unlink()
    made_ = make_recipe(tmp_path / "data", tmp_path / "mine.yaml")
    assert any(fact.startswith("6 are left out") and "014" in fact for fact in made_.facts)
    assert load_recipe(str(made_.recipe)).data.max_quarantined_frac == pytest.approx(0.31)


def test_pictures_that_belong_to_no_pair_are_told(tmp_path) -> None:
    pairs(tmp_path / "data", "images/{}.jpg", "masks/{}.png")
    save(tmp_path / "data/extra/more.jpg", noise(1))
    made_ = make_recipe(tmp_path / "data", tmp_path / "mine.yaml")
    assert "1 pictures are not used, such as extra/more.jpg" in made_.facts


def test_a_folder_without_pairs_and_a_recipe_that_is_there_are_refused_in_words(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.doc").write_text("")
    with pytest.raises(RecipeError, match=r"1 files \(\.doc\)"):
        make_recipe(tmp_path / "data", tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="is no folder"):
        make_recipe(tmp_path / "nothing", tmp_path / "mine.yaml")
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(RecipeError, match="is there already"):
        make_recipe(tmp_path / "data", tmp_path / "there.yaml")


def test_pipes_links_to_nothing_and_names_that_are_no_text_do_no_harm(tmp_path) -> None:
    pairs(tmp_path / "data", "images/{}.jpg", "masks/{}.png")
    os.mkfifo(tmp_path / "data" / "classes.txt")
    os.mkfifo(tmp_path / "data" / "images" / "pipe.json")
    (tmp_path / "data" / "images" / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "data" / "images" / "above").symlink_to(tmp_path / "data")
    save(tmp_path / "data" / "extra.png", noise(1))
    (tmp_path / "data" / "extra.png").rename(tmp_path / "data" / os.fsdecode(b"\xff.png"))
    made_ = make_recipe(tmp_path / "data", tmp_path / "mine.yaml")
    assert load_recipe(str(made_.recipe)).data.splits["train"].labels == "masks"
    assert any("udcff.png" in fact for fact in made_.facts)
