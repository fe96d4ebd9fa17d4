"""Recipes: all mistakes at once, in the user's own words."""

import pytest

from pipeline.config.recipe import Recipe, load_recipe, recipe_names, summary
from pipeline.errors import RecipeError


def complaint(*overrides: str, name: str = "demo") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    return str(caught.value)


FOLDER = (
    "data.source=folder",
    "data.splits={train: {images: a, labels: b}, val: {images: c, labels: d}}",
)
CLASSES = ("data.classes=[a, b]", *FOLDER)
COLOURS = ("data.classes=[{name: a, colour: [0, 0, 9]}, {name: b, colour: [0, 9, 0]}]", *FOLDER)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_its_own_yaml(name, tmp_path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert recipe.name == name
    assert summary(name)


def test_overrides_reach_their_key_and_are_typed() -> None:
    recipe = load_recipe("demo", ["finetune.optimizer.lr=1e-4", "net.stride=32", "seed=7"])
    assert (recipe.finetune.optimizer.lr, recipe.net.stride, recipe.seed) == (1e-4, 32, 7)


def test_all_mistakes_are_told_at_once_with_path_value_and_rule() -> None:
    text = complaint("finetune.epoch=3", "net.backbone=vgg17", "finetune.optimizer.lr=-1", "seed=x")
    assert "4 mistakes" in text
    assert "finetune.epoch: no such key; did you mean epochs?" in text
    assert 'net.backbone="vgg17": input should be' in text
    assert "efficientnet_lite0" in text
    assert "finetune.optimizer.lr=-1: input should be greater than 0" in text
    assert 'seed="x"' in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["finetune.global_batch=10"], "not a multiple of micro_batch=8; use micro_batch=5"),
        (["cluster.num_workers=3"], "gives 2 micro-batches to share; use at most 2 workers"),
        (["cluster.num_workers=[1, 3]"], "cluster.num_workers=3 but finetune.global_batch"),
        (["cluster.num_workers=[2, 1]"], "is neither a number above 0 nor [min, max]"),
        (["cluster.num_workers=0"], "num_workers=0 is neither a number"),
        (["cluster.num_workers=[1, 2, 3]"], "is neither a number above 0 nor [min, max]"),
        (["data.source=folder"], "classes lists 0; source folder needs at least 2"),
        (["transplant=null"], "finetune.init=transplant needs a transplant section"),
        (["finetune.phases=[{stride: 32, epochs: 1}]"], "give either epochs"),
        (
            ["finetune.epochs=null", "finetune.phases=[{stride: 32, epochs: 1}]"],
            "phases end at stride 32 but net.stride is 8",
        ),
        (["finetune.augment.scale=[2, 1]"], "write the smaller factor first"),
        (["finetune.batch_norm=sync"], "needs cluster.use_gpu=true"),
        (["store=s3:/bucket/x"], "is neither a folder nor a URI such as s3://bucket/prefix"),
        (["store=s3://key:secret@bucket/x"], "store holds credentials"),
        (["data.classes=[a, b]"], "shapes has its own class table"),
        (["name=a b"], "name="),
        (["data.classes=[a, b, a]", *FOLDER], "class name 'a' is given twice"),
        (["data.source=tfds"], "source=tfds is no layout; known are shapes, folder, voc"),
        (["data.source=folder", "data.classes=[a, b]"], "splits lacks train, val"),
        (["data.held_out={val: 0.2}", *CLASSES], "held_out makes val, which splits names too"),
        (["data.held_out={val: 0.5, test: 0.5}", *CLASSES], "leave some to train on"),
        (["data.held_out={val: 0.2, group: '('}", *CLASSES], "no regular expression"),
        (["data.label_map={0: a, 1: c}", *CLASSES], "gives 1 to c, which is no class"),
        (["data.label_map={red: a, 1: b}", *CLASSES], "has a row red; with label_kind=ids"),
        (["data.void_ids=[1]", *CLASSES], "void_ids=[1] holds [1], which are ids of classes"),
        (["data.label_kind=colours", *CLASSES], "label_kind=colours, but a, b has no colour"),
        (
            ["data.label_kind=colours", "data.label_map={'1,2': void}", *COLOURS],
            "has a row 1,2; with label_kind=colours, rows are r,g,b or #rrggbb",
        ),
        (["data.range=[4, 4]", *CLASSES], "range=[4.0, 4.0]; write the value of black"),
        ([*CLASSES, "data.source=labelme"], "unlabelled is missing"),
        (
            ["data.source=voc", "evaluate.split=test"],
            "not among the data set's splits (train, val)",
        ),
        (["finetune"], "write KEY=VALUE"),
    ],
)
def test_impossible_recipes_name_the_rule_and_the_remedy(overrides, words) -> None:
    assert words in complaint(*overrides)


def test_unknown_recipes_are_answered_with_those_there_are() -> None:
    assert "recipes are camvid, demo" in complaint(name="quickstart")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_files_that_are_no_recipes_are_named(tmp_path, text) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "broken.yaml" in complaint(name=str(path))


def test_a_recipe_crosses_processes_as_plain_values() -> None:
    recipe = load_recipe("demo")
    assert Recipe.model_validate(recipe.plain()) == recipe
    assert recipe.flat()["finetune.optimizer.lr"] == "0.001"
