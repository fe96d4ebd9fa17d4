"""The space: what is drawn lies in it, what it says survives, what makes no sense is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import load_recipe
from pipeline.errors import RecipeError
from tuning.estimators import random_point
from tuning.searchers import grid_points
from tuning.space import LR, WEIGHT_DECAY, Space, parse, read_space

JITTER, HEAD = "finetune.augment.jitter", "finetune.optimizer.head_lr_mult"
FOUR = {
    LR: {"log": [1e-5, 1e-2]},
    WEIGHT_DECAY: {"log": [1e-6, 1e-1]},
    JITTER: {"uniform": [0, 0.5]},
    HEAD: {"choice": [1, 5, 10]},
}
DEMO = load_recipe("demo")


def space(**tree) -> Space:
    return Space.model_validate(tree)


def test_a_file_is_read_in_its_order_and_survives_as_plain_values(tmp_path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        f"{HEAD}: {{choice: [1, 5, 10]}}\n{LR}: {{log: [1e-5, 1.0e-2]}}\n"
        f"finetune.optimizer.momentum: {{choice: [9e-1, 0.99]}}\n"
    )
    found = read_space(str(path))
    assert list(found.dimensions) == [HEAD, LR, "finetune.optimizer.momentum"]
    assert found.model_dump(mode="json", exclude_none=True) == {
        HEAD: {"choice": [1, 5, 10]},
        LR: {"log": [1e-5, 1e-2]},
        "finetune.optimizer.momentum": {"choice": [0.9, 0.99]},
    }
    assert parse(Space, found.model_dump(mode="json"), "journal") == found


def test_entries_that_are_no_distribution_are_all_told_at_once() -> None:
    tree = {LR: {"lgo": [1, 2]}, JITTER: {"uniform": [0]}, HEAD: 5, "seed": {"choice": 3}}
    with pytest.raises(RecipeError) as caught:
        parse(Space, tree, "space.yaml")
    text = str(caught.value)
    assert "space.yaml: 4 mistakes" in text
    assert "write {log: [LOW, HIGH]}, {uniform: [LOW, HIGH]} or {choice: [A, B]}" in text
    assert "finetune.augment.jitter.uniform.1=[0]: field required" in text
    assert "seed.choice=3: input should be a valid tuple" in text
    with pytest.raises(RecipeError, match="nothing to search"):
        parse(Space, {}, "space.yaml")


@pytest.mark.parametrize("text", [None, "[1, 2]", "a: ["])
def test_files_that_hold_no_space_are_named(tmp_path, text) -> None:
    path = tmp_path / "space.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=r"space\.yaml"):
        read_space(str(path))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_every_point_lies_within_the_bounds_and_reaches_the_recipe_to_the_last_bit(seed) -> None:
    searched = parse(Space, FOUR, "space.yaml")
    point = random_point(searched, DEMO, seed, 1)
    assert 1e-5 <= point[LR] <= 1e-2
    assert 0 <= point[JITTER] <= 0.5
    assert point[HEAD] in (1, 5, 10)
    changed = load_recipe("demo", Space.overrides(point))
    assert changed == DEMO.changed(Space.overrides(point))
    assert changed.finetune.optimizer.lr == point[LR]
    assert changed.finetune.optimizer.weight_decay == point[WEIGHT_DECAY]
    assert changed.finetune.augment.jitter == point[JITTER]


def test_log_draws_are_even_over_decades_and_uniform_ones_over_values() -> None:
    searched = parse(Space, FOUR, "space.yaml")
    points = [random_point(searched, DEMO, 0, n) for n in range(1, 601)]
    decades = np.histogram(np.log10([p[LR] for p in points]), bins=[-5, -4, -3, -2])[0]
    assert min(decades) > 150
    assert 0.22 < np.mean([p[JITTER] for p in points]) < 0.28
    assert min(sum(p[HEAD] == v for p in points) for v in (1, 5, 10)) > 150


def test_a_grid_holds_the_bounds_the_middle_and_every_combination_once() -> None:
    grid = parse(Space, FOUR, "space.yaml").grid(3)
    assert len(grid) == 3**4
    assert len({tuple(point.values()) for point in grid}) == 3**4
    assert sorted({p[LR] for p in grid}) == pytest.approx([1e-5, 10**-3.5, 1e-2])
    assert {p[LR] for p in grid} >= {1e-5, 1e-2}
    assert {p[JITTER] for p in grid} == {0, 0.25, 0.5}
    assert [p[JITTER] for p in space(**{JITTER: {"uniform": [0, 1]}}).grid(1)] == [0.5]


def test_the_recipes_own_point_comes_first_and_once_and_the_rest_goes_by_number() -> None:
    recipe = load_recipe("demo")
    searched = parse(Space, {HEAD: {"choice": [1, 5]}, LR: {"log": [1e-2, 1e-1]}}, "space.yaml")
    own = {HEAD: 5.0, LR: 1e-3}
    assert searched.own(recipe) == random_point(searched, recipe, 7, 0) == own
    assert random_point(searched, recipe, 7, 3) == random_point(searched, recipe, 7, 3)
    assert random_point(searched, recipe, 7, 3) != random_point(searched, recipe, 8, 3)
    assert random_point(searched, recipe, 7, 3) != random_point(searched, recipe, 7, 4)
    grid = grid_points(parse(Space, {HEAD: {"choice": [1, 5]}}, "space.yaml"), recipe, 3)
    assert grid == [{HEAD: 5.0}, {HEAD: 1}]
