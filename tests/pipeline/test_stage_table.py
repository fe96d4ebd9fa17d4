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


def test_another_class_or_colour_is_other_data(folder_recipe, tmp_path) -> None:
    before = keys(folder_recipe, tmp_path)
    for classes in ("[sky, road, tree, car]", "[{name: sky, colour: [1, 2, 3]}, road, tree]"):
        after = keys(folder_recipe, tmp_path, f"data.classes={classes}")
        assert not {*before.values()} & {*after.values()}
