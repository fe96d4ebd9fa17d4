"""The space: what is drawn lies in it, what it says survives, what makes no sense is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.nets import FCN, Blueprint
from fcn.optim import freeze_trunk
from pipeline.config.recipe import load_recipe, recipe_names
from pipeline.errors import RecipeError
from pipeline.training.trainer import build_optimizer
from tuning.space import LR, WEIGHT_DECAY, Space, parse_space, read_space
from tuning.validate import check, default_space, shrinkage

JITTER, HEAD = "finetune.augment.jitter", "finetune.optimizer.head_lr_mult"
FOUR = {
    LR: {"log": [1e-5, 1e-2]},
    WEIGHT_DECAY: {"log": [1e-6, 1e-1]},
    JITTER: {"uniform": [0, 0.5]},
    HEAD: {"choice": [1, 5, 10]},
}
NUM_TRAIN = 320
DEMO = load_recipe("demo")


def space(**tree) -> Space:
    return parse_space({k.replace("__", "."): v for k, v in tree.items()}, "space.yaml")


def complaint(tree, *overrides: str, name: str = "demo", num_train: int = NUM_TRAIN) -> str:
    with pytest.raises(RecipeError) as caught:
        check(parse_space(tree, "space.yaml"), load_recipe(name, overrides), num_train)
    return str(caught.value)


def test_a_file_is_read_in_its_order_and_survives_as_plain_values(tmp_path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        f"{HEAD}: {{choice: [1, 5, 10]}}\n{LR}: {{log: [1e-5, 1.0e-2]}}\n"
        f"finetune.optimizer.momentum: {{choice: [9e-1, 0.99]}}\n"
    )
    found = read_space(str(path))
    assert list(found.dimensions) == [HEAD, LR, "finetune.optimizer.momentum"]
    assert found.plain() == {
        HEAD: {"choice": [1, 5, 10]},
        LR: {"log": [1e-5, 1e-2]},
        "finetune.optimizer.momentum": {"choice": [0.9, 0.99]},
    }
    assert parse_space(found.plain(), "journal") == found


def test_entries_that_are_no_distribution_are_all_told_at_once() -> None:
    tree = {LR: {"lgo": [1, 2]}, JITTER: {"uniform": [0]}, HEAD: 5, "seed": {"choice": 3}}
    with pytest.raises(RecipeError) as caught:
        parse_space(tree, "space.yaml")
    text = str(caught.value)
    assert "space.yaml: 4 mistakes" in text
    assert "write {log: [LOW, HIGH]}, {uniform: [LOW, HIGH]} or {choice: [A, B]}" in text
    assert 'finetune.augment.jitter={"uniform": [0]}: uniform takes two finite numbers' in text
    assert 'seed={"choice": 3}: choice takes a list of values' in text
    with pytest.raises(RecipeError, match="nothing to search"):
        parse_space({}, "space.yaml")


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
    searched = parse_space(FOUR, "space.yaml")
    point = searched.sample(np.random.default_rng(seed))
    assert 1e-5 <= point[LR] <= 1e-2
    assert 0 <= point[JITTER] <= 0.5
    assert point[HEAD] in (1, 5, 10)
    changed = load_recipe("demo", Space.overrides(point))
    assert changed == DEMO.changed(Space.overrides(point))
    assert changed.finetune.optimizer.lr == point[LR]
    assert changed.finetune.optimizer.weight_decay == point[WEIGHT_DECAY]
    assert changed.finetune.augment.jitter == point[JITTER]


def test_log_draws_are_even_over_decades_and_uniform_ones_over_values() -> None:
    searched = parse_space(FOUR, "space.yaml")
    points = [searched.sample(np.random.default_rng(n)) for n in range(600)]
    decades = np.histogram(np.log10([p[LR] for p in points]), bins=[-5, -4, -3, -2])[0]
    assert min(decades) > 150
    assert 0.22 < np.mean([p[JITTER] for p in points]) < 0.28
    assert min(sum(p[HEAD] == v for p in points) for v in (1, 5, 10)) > 150


def test_a_grid_holds_the_bounds_the_middle_and_every_combination_once() -> None:
    grid = parse_space(FOUR, "space.yaml").grid(3)
    assert len(grid) == 3**4
    assert len({tuple(point.values()) for point in grid}) == 3**4
    assert sorted({p[LR] for p in grid}) == pytest.approx([1e-5, 10**-3.5, 1e-2])
    assert {p[LR] for p in grid} >= {1e-5, 1e-2}
    assert {p[JITTER] for p in grid} == {0, 0.25, 0.5}
    assert [p[JITTER] for p in space(**{JITTER: {"uniform": [0, 1]}}).grid(1)] == [0.5]


def test_the_recipes_own_point_comes_first_and_once_and_the_rest_goes_by_number() -> None:
    recipe = load_recipe("demo")
    searched = parse_space({HEAD: {"choice": [1, 5]}, LR: {"log": [1e-2, 1e-1]}}, "space.yaml")
    own = {HEAD: 5.0, LR: 1e-3}
    assert searched.own(recipe) == searched.trial(0, recipe, 7) == own
    assert searched.trial(3, recipe, 7) == searched.trial(3, recipe, 7)
    assert searched.trial(3, recipe, 7) != searched.trial(3, recipe, 8)
    assert searched.trial(3, recipe, 7) != searched.trial(4, recipe, 7)
    grid = parse_space({HEAD: {"choice": [1, 5]}}, "space.yaml").grid_trials(2, recipe)
    assert grid == [{HEAD: 5.0}, {HEAD: 1}]


@pytest.mark.parametrize("name", recipe_names())
def test_the_default_space_makes_sense_for_every_shipped_recipe_and_holds_its_own_point(
    name,
) -> None:
    recipe = load_recipe(name)
    searched = default_space(recipe, 1464)
    check(searched, recipe, 1464)
    for key, value in searched.own(recipe).items():
        low, high = searched.dimensions[key].bounds
        assert low <= value <= high


@pytest.mark.parametrize(
    "overrides", [["finetune.optimizer.weight_decay=0"], ["finetune.optimizer.lr=1e-10"]]
)
def test_the_default_space_reaches_a_decay_that_acts_where_the_recipes_own_does_not(
    overrides,
) -> None:
    recipe = load_recipe("voc-fcn32s-resnet18", overrides)
    check(default_space(recipe, 1464), recipe, 1464)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"finetune.optimizer.lrr": {"log": [1e-5, 1]}}, "no such key; did you mean lr?"),
        ({"optimiser.lr": {"log": [1e-5, 1]}}, "optimiser: no such key"),
        ({"cluster.num_workers": {"choice": [1, 2]}}, "it changes speed, never results"),
        ({"tracking.uri": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"store": {"choice": ["a", "b"]}}, "cannot change them"),
        ({"register.model": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"name": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"evaluate.split": {"choice": ["val", "test"]}}, "must be the same in all trials"),
        ({"data.shapes.num_train": {"choice": [10, 20]}}, "cannot be compared"),
        ({LR: {"log": [1e-2, 1e-5]}}, "upside down; write [1e-05, 0.01]"),
        ({LR: {"log": [1e-2, 1e-2]}}, "the bounds are equal"),
        ({LR: {"log": [0, 1e-2]}}, "log bounds must be above 0; raise 0 or write uniform"),
        ({LR: {"log": [-1, 1e-2]}}, "log bounds must be above 0; raise -1"),
        ({HEAD: {"choice": []}}, "a choice of no value"),
        ({HEAD: {"choice": [5, 5]}}, "a choice of one value"),
        ({JITTER: {"uniform": [0, 1.5]}}, "jitter=1.5: input should be less than or equal to 1"),
        ({"net.backbone": {"choice": ["vgg16", "vgg17"]}}, "net.backbone: no backbone 'vgg17'"),
        ({"finetune.epochs": {"choice": [5, 20]}}, "ends its schedule earlier"),
        (
            {"finetune.schedule.warmup_steps": {"uniform": [5, 20]}},
            "for whole numbers write a choice",
        ),
        (
            {"finetune.optimizer": {"choice": [{"lr": 1e-3}, {"lr": 1e-2}]}, LR: {"log": [1, 2]}},
            "lies within finetune.optimizer, which is searched too",
        ),
        (
            {"finetune.micro_batch": {"choice": [4, 16]}},
            "cluster.num_workers=2 but finetune.global_batch=16 / micro_batch=16",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_with_rule_and_remedy(tree, words) -> None:
    text = complaint(tree)
    assert words in text
    assert text.startswith("space of demo: ")


def test_all_mistakes_of_a_space_are_told_at_once() -> None:
    tree = {
        LR: {"log": [0, 1]},
        JITTER: {"uniform": [0, 3]},
        HEAD: {"choice": [1]},
        "seeed": {"choice": [1, 2]},
        "store": {"choice": ["a", "b"]},
    }
    text = complaint(tree)
    assert "space of demo: 5 mistakes" in text
    assert all(key in text for key in tree)


@pytest.mark.parametrize(
    ("overrides", "tree", "words"),
    [
        ([], {"finetune.optimizer.momentum": {"uniform": [0, 0.9]}}, "the optimiser is AdamW"),
        (
            ["finetune.schedule.kind=fixed"],
            {"finetune.schedule.power": {"uniform": [0.5, 2]}},
            "no power",
        ),
        (
            ["finetune.optimizer.weight_decay=0"],
            {"finetune.optimizer.decay_biases": {"choice": [True, False]}},
            "no weight decay",
        ),
        (
            ["net.stride=32"],
            {"net.skip_scale": {"choice": [[1, 1], [0.1, 0.1]]}},
            "stride 32 has no",
        ),
        (
            ["finetune.trainable=head"],
            {LR: {"log": [1e-4, 1e-2]}, HEAD: {"choice": [1, 10]}},
            "only lr x head_lr_mult counts",
        ),
    ],
)
def test_dimensions_that_cannot_matter_are_inert(overrides, tree, words) -> None:
    assert words in complaint(tree, *overrides)


def test_a_dimension_that_matters_at_one_value_of_another_is_not_inert() -> None:
    tree = {
        "finetune.optimizer.momentum": {"uniform": [0, 0.9]},
        "finetune.optimizer.kind": {"choice": ["sgd", "adamw"]},
        "finetune.schedule.power": {"uniform": [0.5, 2]},
        "finetune.schedule.kind": {"choice": ["fixed", "poly"]},
    }
    check(parse_space(tree, "space.yaml"), load_recipe("demo"), NUM_TRAIN)


HEAVY = [
    *("finetune.phases=[]", "finetune.epochs=69", "net.stride=8", "cluster.num_workers=1"),
    *("finetune.global_batch=1", "finetune.micro_batch=1", f"{HEAD}=1"),
    *("finetune.optimizer.lr=1e-10", "finetune.optimizer.momentum=0.99"),
]


def test_decay_in_the_papers_heavy_regime_shrinks_weights_by_half_a_millionth_and_is_inert() -> (
    None
):
    recipe = load_recipe("voc-fcn8s-vgg16", HEAVY)
    assert shrinkage(recipe, 1464) == pytest.approx(5e-7, rel=0.02)
    text = complaint(
        {WEIGHT_DECAY: {"log": [1e-5, 5e-4]}}, *HEAVY, name="voc-fcn8s-vgg16", num_train=1464
    )
    assert (
        "101016 steps x lr 1e-10 / (1 - momentum 0.99) x weight_decay 0.0005 = 5.1e-07, less than 0.001"
        in text
    )
    check(parse_space({WEIGHT_DECAY: {"log": [1e-5, 5]}}, "s"), recipe, 1464)


@pytest.mark.parametrize(
    ("top", "inert"), [(9.9e-4, True), (1.01e-3, False)], ids=["below", "above"]
)
def test_decay_is_inert_below_a_thousandth_at_the_largest_rate_of_the_space(top, inert) -> None:
    """200 steps x lr 1e-3 x head 5 x decay 1e-3 are 1e-3; SGD's momentum counts ten times."""
    tree = {WEIGHT_DECAY: {"log": [1e-6, top]}, LR: {"log": [1e-6, 1e-3]}}
    if inert:
        assert "200 steps x lr 0.001 x head_lr_mult 5" in complaint(tree)
    else:
        check(parse_space(tree, "space.yaml"), load_recipe("demo"), NUM_TRAIN)
    sgd = load_recipe("demo", ["finetune.optimizer.kind=sgd"])
    assert shrinkage(sgd, NUM_TRAIN) == pytest.approx(
        10 * shrinkage(load_recipe("demo"), NUM_TRAIN)
    )
    check(parse_space(tree, "space.yaml"), sgd, NUM_TRAIN)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_shrinkage_is_that_of_the_optimiser_itself(kind) -> None:
    """All steps of a run without a gradient: what is gone from the weights is the decay's."""
    net = FCN(Blueprint("efficientnet_lite0", 5, 32))
    freeze_trunk(net)
    recipe = load_recipe(
        "demo",
        [
            f"finetune.optimizer.kind={kind}",
            "finetune.optimizer.weight_decay=0.01",
            "finetune.trainable=head",
            "finetune.schedule.kind=fixed",
        ],
    )
    weights = next(p for p in net.score.parameters() if p.ndim > 1)
    torch.nn.init.ones_(weights)
    optimizer = build_optimizer(net, recipe.finetune.optimizer, recipe.finetune.optimizer.lr)
    for parameter in net.score.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(200):
        optimizer.step()
    lost = -math.log(float(weights.detach().mean()))
    assert lost == pytest.approx(shrinkage(recipe, NUM_TRAIN), rel=0.06)
