"""What a search over a space would waste is refused, and what decay does is computed as it is done."""

import math

import pytest
import torch

from fcn.nets import FCN, Blueprint
from fcn.optim import freeze_trunk
from pipeline.config.recipe import load_recipe, recipe_names
from pipeline.errors import RecipeError
from pipeline.training.trainer import build_optimizer
from tuning.space import LR, WEIGHT_DECAY, Space, parse
from tuning.validate import check, default_space, shrinkage

JITTER, HEAD = "finetune.augment.jitter", "finetune.optimizer.head_lr_mult"
NUM_TRAIN = 320


def complaint(tree, *overrides: str, name: str = "demo", num_train: int = NUM_TRAIN) -> str:
    with pytest.raises(RecipeError) as caught:
        check(parse(Space, tree, "space.yaml"), load_recipe(name, overrides), num_train)
    return str(caught.value)


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
        ({"cluster.num_workers": {"choice": [1, 2]}}, "it cannot change the result"),
        ({"tracking.uri": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"store": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"register.model": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"name": {"choice": ["a", "b"]}}, "cannot change the result"),
        ({"evaluate.split": {"choice": ["val", "test"]}}, "is the same in all trials"),
        ({"data.shapes.num_train": {"choice": [10, 20]}}, "cannot be compared"),
        ({LR: {"log": [1e-2, 1e-5]}}, "upside down; write [1e-05, 0.01]"),
        ({LR: {"log": [1e-2, 1e-2]}}, "the bounds are equal"),
        ({LR: {"log": [0, 1e-2]}}, "log bounds must be above 0; raise 0 or write uniform"),
        ({LR: {"log": [-1, 1e-2]}}, "log bounds must be above 0; raise -1"),
        ({HEAD: {"choice": []}}, "a choice takes two different values or more"),
        ({HEAD: {"choice": [5, 5]}}, "a choice takes two different values or more"),
        ({JITTER: {"uniform": [0, 1.5]}}, "jitter=1.5: input should be less than or equal to 1"),
        ({"net.backbone": {"choice": ["vgg16", "vgg17"]}}, 'net.backbone="vgg17"'),
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
    assert text.startswith("space")


def test_all_mistakes_of_a_space_are_told_at_once() -> None:
    tree = {
        JITTER: {"uniform": [0, 3]},
        "seeed": {"choice": [1, 2]},
        "store": {"choice": ["a", "b"]},
    }
    text = complaint(tree)
    assert "space of demo: 3 mistakes" in text
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
    check(parse(Space, tree, "space.yaml"), load_recipe("demo"), NUM_TRAIN)


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
    check(parse(Space, {WEIGHT_DECAY: {"log": [1e-5, 5]}}, "space.yaml"), recipe, 1464)


@pytest.mark.parametrize(
    ("top", "inert"), [(9.9e-4, True), (1.01e-3, False)], ids=["below", "above"]
)
def test_decay_is_inert_below_a_thousandth_at_the_largest_rate_of_the_space(top, inert) -> None:
    """200 steps x lr 1e-3 x head 5 x decay 1e-3 are 1e-3; SGD's momentum counts ten times."""
    tree = {WEIGHT_DECAY: {"log": [1e-6, top]}, LR: {"log": [1e-6, 1e-3]}}
    if inert:
        assert "200 steps x lr 0.001 x head_lr_mult 5" in complaint(tree)
    else:
        check(parse(Space, tree, "space.yaml"), load_recipe("demo"), NUM_TRAIN)
    sgd = load_recipe("demo", ["finetune.optimizer.kind=sgd"])
    assert shrinkage(sgd, NUM_TRAIN) == pytest.approx(
        10 * shrinkage(load_recipe("demo"), NUM_TRAIN)
    )
    check(parse(Space, tree, "space.yaml"), sgd, NUM_TRAIN)


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
