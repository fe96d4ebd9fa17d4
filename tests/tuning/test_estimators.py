"""Points that Optuna draws follow from what is given alone, and go where the good values lie."""

import pytest

from pipeline.config.recipe import load_recipe
from tests.tuning.made import FOUR, LR, UPSCORE, WEIGHT_DECAY, Unwritten, fill, peak, plan
from tuning.estimators import NUM_AT_RANDOM
from tuning.searchers import suggest_by
from tuning.space import Space

SPACE = Space.model_validate(FOUR)
DEMO = load_recipe("demo")


def by(kind: str, recipe=DEMO, space=SPACE, seed=0, num_trials=20):
    made = plan(sampler=kind, space=space, seed=seed, grid_trials=num_trials)
    return suggest_by(made, recipe)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_point_follows_from_number_seed_and_what_is_over(kind) -> None:
    records = Unwritten()
    fill(records, 12)
    over = records.search.over()
    assert by(kind)(12, over) == by(kind)(12, over)
    assert by(kind)(12, over) != by(kind, seed=1)(12, over)
    assert by(kind)(12, over) != by(kind)(13, over)
    assert (by("tpe")(12, over) == by("tpe")(12, over[:-1])) is False
    assert all(SPACE.dimensions[k].contains(v) for k, v in by(kind)(12, over).items())


def test_a_recipe_outside_the_space_hinders_nothing() -> None:
    """Its weight decay is 0, whose logarithm nobody can take, and its choice is not in the list."""
    recipe = load_recipe(
        "demo", [f"{WEIGHT_DECAY}=0", "finetune.optimizer.lr=0.9", f"{UPSCORE}=learned"]
    )
    space = Space.model_validate(FOUR | {UPSCORE: {"choice": ["fixed", "bilinear"]}})
    suggest = by("tpe", recipe, space)
    records = Unwritten(space=space)
    for number in range(NUM_AT_RANDOM + 4):
        records.add(number, suggest(number, records.search.over()))
        records.score(number, 1000, 200, 0.5, status="finished")
    assert records.search.trials[0].point == space.own(recipe)
    assert records.search.trials[0].point[WEIGHT_DECAY] == 0


def test_estimators_go_where_the_good_values_lie_and_learn_from_failures() -> None:
    records = Unwritten()
    suggest = by("tpe")
    for number in range(30):
        point = suggest(number, records.search.over())
        records.add(number, point)
        if point[LR] > 0.013:
            records.update(number, status="failed", reason="the loss became nan")
        else:
            records.score(number, 1000, 200, peak(point), status="finished")
    early, late = (
        list(records.search.trials.values())[1:6],
        list(records.search.trials.values())[15:],
    )
    assert sum(peak(t.point) for t in late) / 15 > sum(peak(t.point) for t in early) / 5
    assert sum(t.status == "failed" for t in late) <= 4
