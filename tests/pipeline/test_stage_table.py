"""What decides each result, and what does not."""

from pipeline.config.recipe import load_recipe
from pipeline.flow import plan
from pipeline.storage.store import Store


def keys(path, tmp_path, *overrides: str) -> dict[str, str]:
    recipe = load_recipe(str(path), [f"store={tmp_path / 'store'}", *overrides])
    return {step.name: step.key for step in plan(recipe, Store(recipe.store))}


def test_a_renamed_class_is_scored_and_registered_anew_and_not_trained_again(
    folder_recipe, tmp_path
) -> None:
    before = keys(folder_recipe, tmp_path)
    after = keys(folder_recipe, tmp_path, "data.classes=[sky, street, tree]")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"evaluate", "register"}


def test_a_renamed_class_is_renamed_in_the_label_map_too(folder_recipe, tmp_path) -> None:
    before, after = (
        keys(
            folder_recipe,
            tmp_path,
            f"data.classes=[sky, {name}, tree]",
            "data.void_ids=[]",
            f"data.label_map={{0: sky, 1: {name}, 2: tree, 11: void}}",
        )
        for name in ("road", "street")
    )
    assert {name for name in before if before[name] != after[name]} == {"evaluate", "register"}


def test_another_class_or_meaning_is_other_data(folder_recipe, tmp_path) -> None:
    before = keys(folder_recipe, tmp_path)
    for changed in (
        "data.classes=[sky, road, tree, car]",
        "data.void_ids=[12]",
        "data.label_map={0: road, 1: sky, 2: tree}",
    ):
        after = keys(folder_recipe, tmp_path, changed)
        assert not {*before.values()} & {*after.values()}, changed


def test_a_colour_of_the_pictures_decides_no_weight(folder_recipe, tmp_path) -> None:
    before = keys(folder_recipe, tmp_path)
    after = keys(
        folder_recipe, tmp_path, "data.classes=[{name: sky, colour: [1, 2, 3]}, road, tree]"
    )
    assert {name for name in before if before[name] != after[name]} == {"evaluate", "register"}
