"""What a search was for: the best trial's recipe, its net in the store, its place in the registry."""

from __future__ import annotations

from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError
from pipeline.flow import Flow
from pipeline.results import Evaluation
from pipeline.stages import register
from pipeline.stages.finetune import publish
from pipeline.training.checkpoint import Checkpoints
from tuning.logger import SearchLogger
from tuning.records import Search, Trial


def best_recipe(search: Search, recipe: Recipe) -> Recipe:
    """The recipe with the best trial's values; all else is as it was.

    Raises:
        RecipeError: no trial has come to its end yet.
    """
    best = search.best()
    if best is None or best.status != "finished":
        raise RecipeError(
            f"no trial of the search over {search.plan.recipe} has come to its end yet; go on with "
            "fcn-tune resume, with a larger --budget if it was spent"
        )
    return recipe.changed(best.overrides())


class Winner:
    """The best trial that came to its end, as a flow of its recipe would have made it."""

    def __init__(self, recipe: Recipe, trial: Trial, logger: SearchLogger) -> None:
        self.trial, self.logger = trial, logger
        self.recipe = recipe.changed(trial.overrides())
        self.flow = Flow(self.recipe)

    def publish(self, folder: str) -> None:
        """Its nets where a flow of its recipe finds them, from the trial's checkpoints."""
        store = self.flow.store
        rule = self.flow.prepare(self.logger).results["ingest"].input_rule()
        phases = [step for step in self.flow.steps.values() if step.is_phase]
        for index, step in enumerate(phases):
            if self.flow.published(step) is None:
                last, _ = Checkpoints(store.files, f"{folder}/{index}").newest()
                assert last is not None, f"{folder}/{index} has no checkpoint"
                publish(self.recipe, store, step.key, step.phase.stride, last, rule)
        store.remember_net(self.recipe.name, phases[-1].stage.folder, phases[-1].key)

    def score(self) -> Evaluation:
        """Its scores, computed by the stage that computes those of a flow."""
        step = self.flow.steps["evaluate"]
        with self.flow.store.compute_once(step.stage.folder, step.key, step.name) as manifest:
            if manifest is None:
                step.stage.run(self.flow, step)
        folder = self.flow.stored(step.name).localize()
        manifest = self.flow.published(step) or {}
        return Evaluation.model_validate({**manifest, "folder": folder})

    def register(self, scores: Evaluation) -> str:
        """A version that is called challenger, and not more: the gate is for `best --run`.

        The trial was chosen by the images that score it, so its score is a little better than it is.
        """
        model = self.recipe.register_as.model or self.recipe.name
        net = self.flow.stored(self.flow.steps["evaluate"].needs[-1]).localize()
        with self.logger.registering() as (registry, search_run):
            run = self.logger.run_of(registry.tracking, self.trial.number) or search_run
            version = register.enter(registry, run, model, net, scores)
            registry.name_challenger(model, version)
        return f"models:/{model}/{version} is @challenger"
