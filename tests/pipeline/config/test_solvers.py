"""The solver recipes are those that docs/solvers.md states, in the unit that it states."""

from pathlib import Path

import pytest

from pipeline.config.recipe import load_recipe

PAGE = Path(__file__).parents[3] / "docs" / "solvers.md"
ROWS = {
    cells[1]: cells
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and len(cells := [c.strip() for c in line.split("|")]) == 10
    if cells[1] != "recipe"
}
PIXELS = 500 * 375


@pytest.mark.parametrize("name", ROWS)
def test_the_page_states_what_the_recipe_has(name) -> None:
    tune = load_recipe(name).finetune
    solver, (_, _, _, _, lr, momentum, effective, decay, images, _) = tune.optimizer, ROWS[name]
    assert (float(lr), float(decay)) == (solver.lr, solver.weight_decay)
    assert int(images) == tune.global_batch
    if solver.kind == "sgd":
        assert float(momentum) == solver.momentum
        assert float(effective) == pytest.approx(solver.lr / (1 - solver.momentum))


def test_all_solvers_are_on_the_page() -> None:
    paper = {"paper-heavy", "paper-accumulated", "paper-cvpr", "modern", "voc-fcn32s-resnet18"}
    assert set(ROWS) == paper


def test_the_heavy_solver_is_the_references_in_another_unit() -> None:
    """lr 1e-10 and weight decay 5e-4 on the sum over pixels; 1e-12 and 1e-14 for finer strides."""
    recipe = load_recipe("paper-heavy")
    solver = recipe.finetune.optimizer
    assert solver.lr == pytest.approx(1e-10 * PIXELS)
    assert solver.weight_decay == pytest.approx(5e-4 / PIXELS, rel=1e-3)
    assert [p.lr_mult * solver.lr for p in recipe.phases] == pytest.approx(
        [n * PIXELS for n in (1e-10, 1e-12, 1e-14)]
    )
    steps = recipe.num_steps(recipe.phases[0], 1464)
    assert steps == pytest.approx(100_000, rel=0.01)
    assert steps * solver.lr / (1 - solver.momentum) * solver.weight_decay == pytest.approx(
        5e-7, rel=0.01
    )


def test_the_accumulated_solver_takes_as_many_steps_as_the_references() -> None:
    recipe = load_recipe("paper-accumulated")
    assert recipe.num_steps(recipe.phases[0], 1464) == pytest.approx(100_000, rel=0.01)
    assert recipe.finetune.num_micro_batches == 20


def test_the_textbooks_update_is_the_same_in_its_unit_and_in_ours() -> None:
    """w - 1e-3 x (32 x gradient of the mean + 1e-3 w)."""
    solver = load_recipe("voc-fcn32s-resnet18").finetune.optimizer
    w, gradient = 0.7, 0.2
    theirs = w - 1e-3 * (32 * gradient + 1e-3 * w)
    assert w - solver.lr * (gradient + solver.weight_decay * w) == pytest.approx(theirs, rel=1e-12)
    assert solver.momentum == 0
