"""Parameter groups and schedules."""

from hypothesis import given
from hypothesis import strategies as st

from fcn.nets import FCN, Blueprint
from fcn.optim import freeze_trunk, lr_factor, parameter_groups


@given(st.integers(1, 500), st.integers(0, 20))
def test_poly_falls_to_nearly_nothing_after_its_warm_up(num_steps, warmup) -> None:
    factors = [lr_factor(s, num_steps, kind="poly", warmup_steps=warmup) for s in range(num_steps)]
    assert all(0 < f <= 1 for f in factors)
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)
    assert lr_factor(num_steps - 1, num_steps, kind="fixed") == 1


def test_head_only_training_leaves_the_backbone_alone() -> None:
    net = FCN(Blueprint("resnet18", 2, 8))
    freeze_trunk(net)
    trained = {
        id(p) for group in parameter_groups(net, lr=1, weight_decay=0) for p in group["params"]
    }
    assert trained == {id(p) for p in net.score.parameters()}


def test_bias_groups_follow_the_papers_solver() -> None:
    net = FCN(Blueprint("alexnet", 2, 32))
    groups = parameter_groups(
        net, lr=1.0, weight_decay=0.5, head_lr_mult=10, bias_lr_mult=2, decay_biases=False
    )
    seen = {(g["lr"], g["weight_decay"], g["params"][0].ndim > 1) for g in groups}
    assert seen == {(1, 0.5, True), (2, 0, False), (10, 0.5, True), (20, 0, False)}
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
