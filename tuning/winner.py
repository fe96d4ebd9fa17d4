"""What a search was for: the best trial's recipe, its net in the store, its place in the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.data.shards import Shards
from pipeline.errors import RecipeError
from pipeline.flow import Flow, Step
from pipeline.results import Evaluation
from pipeline.stages import evaluate, register
from pipeline.stages.finetune import publish
from pipeline.storage.store import Store, fingerprint
from pipeline.training.checkpoint import Checkpoints
from tuning.records import Search, Trial
from tuning.space import Space
from tuning.told import SearchLogger


def winning_recipe(recipe: Recipe, trial: Trial) -> Recipe:
    """The recipe with a trial's values; all else is as it was."""
    return recipe.changed(Space.overrides(dict(trial.point)))


def best_recipe(search: Search, recipe: Recipe, *, whole: bool) -> Recipe:
    """The recipe of the best trial; `whole` if it is to be trained from its beginning.

    Raises:
        RecipeError: no trial came to its end yet, or what is best is no recipe's net.
    """
    best = search.best()
    if best is None or best.status != "finished":
        raise RecipeError(
            f"no trial of the search over {search.begun.recipe} has come to its end yet; go on with "
            "fcn-tune resume, with a larger --budget if it was spent"
        )
    if whole and best.clones:
        steps = ", ".join(
            f"{step} (from trial {source}'s net)" for step, source in best.clones.items()
        )
        raise RecipeError(
            f"trial {best.number} is of a population: its values changed after steps {steps}, so no "
            "recipe leads to its net. The net itself is registered as @challenger; without --run this "
            "prints the recipe of its last values"
        )
    return winning_recipe(recipe, best)


class Winner:
    """The best trial that came to its end."""

    def __init__(self, recipe: Recipe, search: Search, trial: Trial, key: str) -> None:
        self.search, self.trial = search, trial
        self.recipe = winning_recipe(recipe, trial)
        self.flow = Flow(self.recipe)
        self.store: Store = self.flow.store
        self._key = fingerprint("winner", key, trial.number, trial.trained)
        """Of what no recipe leads to: the net of a population."""

    def publish(self, folder: Path) -> Path:
        """Its net where a flow of its recipe finds it, from the trial's checkpoints.

        A population's net, whose values changed on the way, is under a key of its own.
        """
        phases = [s for s in self.flow.steps.values() if s.stage == "finetune"]
        generation = max((int(p.name) for p in folder.glob("*")), default=0)
        net = Path()
        for index, step in enumerate(phases):
            key = step.key if self.search.begun.scheduler != "pbt" else self._key
            net = self._published(step, key, folder / str(generation) / str(index))
        if self.search.begun.scheduler != "pbt":
            self.store.begin_run(
                self.recipe.name, {s.name: s.key for s in self.flow.steps.values()}
            )
        self.store.remember_run(self.recipe.name, net)
        return net

    def _published(self, step: Step, key: str, folder: Path) -> Path:
        if self.store.published(step.kind, key) is None:
            last, _ = Checkpoints.in_folder(folder).newest()
            assert step.phase is not None
            assert last is not None, f"{folder} has no checkpoint"
            publish(self.recipe, self.store, key, step.phase.stride, last)
        return self.store.folder(step.kind, key)

    def score(self, net: Path, files: Callable[[str], list[Path]]) -> Evaluation:
        """Its scores, computed by the stage that computes those of a flow."""
        step = self.flow.steps["evaluate"]
        key = step.key if self.search.begun.scheduler != "pbt" else self._key
        with self.store.turn(step.kind, key, step.name) as plain:
            if plain is not None:
                folder = {"folder": self.store.folder(step.kind, key)}
                return Evaluation.model_validate({**plain, **folder})
            split = self.recipe.evaluate.split
            return evaluate.run(self.recipe, self.store, key, net, Shards(files(split)))

    def register(self, net: Path, scores: Evaluation, told: SearchLogger) -> str:
        """A version that is called challenger, and not more: the gate is for `best --run`.

        The trial was chosen by the images that score it, so its score is a little better than it is.
        """
        model = self.recipe.register_as.model or self.recipe.name
        with told.registering() as (registry, search_run):
            run = told.run_of(registry.tracking, self.trial.number) or search_run
            version = register.enter(registry, run, model, net, scores)
            registry.name_challenger(model, version)
        return f"models:/{model}/{version} is @challenger"
