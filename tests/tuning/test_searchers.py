"""Which points are tried, and in which order they are handed out."""

import pytest
from ray.tune.search import Searcher

from pipeline.config.recipe import load_recipe
from pipeline.errors import RecipeError
from tests.tuning.made import FOUR, JITTER, LR, UPSCORE, WEIGHT_DECAY, Unwritten, fill, peak, plan
from tuning.estimators import NUM_AT_RANDOM
from tuning.searchers import TrialSearcher, grid_points, suggest_by
from tuning.space import Space

SPACE = Space.model_validate(FOUR)
DEMO = load_recipe("demo")


def config_of(trial) -> dict:
    return {"point": trial.point}


def by(kind: str, recipe=DEMO, space=SPACE, seed=0, num_trials=20):
    made = plan(sampler=kind, space=space, seed=seed, grid_trials=num_trials)
    return suggest_by(made, recipe)


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_the_first_point_is_the_recipes_own(kind) -> None:
    assert by(kind)(0, []) == SPACE.own(DEMO)


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


def test_a_grid_is_whole_and_no_larger_than_wanted() -> None:
    space = Space.model_validate({LR: FOUR[LR], JITTER: FOUR[JITTER]})
    assert len(grid_points(space, DEMO, 20)) == 4 * 4 + 1
    suggest = by("grid", space=space)
    points = [tuple(suggest(n, []).values()) for n in range(17)]
    assert len(set(points)) == 17


def searcher(records, num_trials=4, ending=lambda: "", config=config_of) -> TrialSearcher:
    return TrialSearcher(records, by("random"), num_trials, config, ending)


def test_what_was_under_way_is_handed_out_before_anything_new() -> None:
    records = Unwritten()
    fill(records, 2)
    records.add(2, {LR: 0.1})
    records.update(2, status="stopped", reason="the budget is spent")
    found = searcher(records)
    assert found.suggest("a") == {"number": 2, "point": {LR: 0.1}}
    assert records.search.trials[2].status == "running"
    assert found.suggest("b")["number"] == 3
    assert found.suggest("c") == Searcher.FINISHED
    assert len(records.search.trials) == 4


def test_nothing_begins_once_the_session_ends() -> None:
    records = Unwritten()
    assert searcher(records, ending=lambda: "the budget is spent").suggest("a") == Searcher.FINISHED
    assert records.search.trials == {}


def test_a_point_that_the_recipe_refuses_is_a_failed_trial() -> None:
    def config(trial) -> dict:
        if trial.number == 1:
            raise RecipeError("micro_batch=16 does not fit")
        return {}

    records = Unwritten()
    found = searcher(records, config=config)
    assert [found.suggest(id)["number"] for id in "abc"] == [0, 2, 3]
    assert records.search.trials[1].status == "failed"
    assert "does not fit" in records.search.trials[1].reason


def test_an_error_of_ours_ends_the_search_and_is_kept() -> None:
    def broken(trial) -> dict:
        raise OSError("the disk is gone")

    found = searcher(Unwritten(), config=broken)
    assert found.suggest("a") == Searcher.FINISHED
    assert "the disk is gone" in str(found.failure)


def test_a_grid_that_holds_the_recipes_own_point_is_the_same_when_it_is_asked_for_again() -> None:
    """Its size is kept as it was asked for; of its four points one is the recipe's own."""
    space = Space.model_validate({LR: {"choice": [1e-3, 1e-2]}, JITTER: {"choice": [0.2, 0.4]}})
    recipe = load_recipe("demo", [f"{LR}=1e-3", f"{JITTER}=0.2"])
    points = grid_points(space, recipe, 5)
    assert len(points) == 4
    assert grid_points(space, recipe, 5) == points
