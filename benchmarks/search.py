"""What a search is worth: against the recipe as it is, and against random trials at the same cost.

For each seed a search (tree of Parzen estimators, halving) is run first; then random trials without
pruning, as many as its steps would have trained to their ends, rounded up. All on scenes of shapes of
96 x 128 px, one worker a trial. Selection is by the validation images; the last columns are of 100
images that no search has seen.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.config.recipe import load_recipe
from pipeline.logs import configure_logging
from tuning.search import Result, run
from tuning.settings import Settings

SMALL = (
    "data.shapes={num_train: 96, num_val: 60, num_test: 100, height_px: 96, width_px: 128}",
    "finetune.augment.crop_px=[96, 128]",
    "finetune.epochs=6",
    "finetune.validate_every_epochs=1",
    "finetune.schedule.warmup_steps=3",
    "evaluate.split=test",
    "evaluate.num_pictures=0",
)


def row(name: str, seed: int, result: Result) -> tuple[str, ...]:
    """A search in a line."""
    search, scores = result.search, result.scores
    best, own = search.best(), search.trials[0]
    assert best is not None
    assert scores is not None
    cells = [f"{seed}", name, f"{len(search.trials)}", f"{search.steps_trained}"]
    values = (own.mean_iu, best.mean_iu, scores.mean_iu)
    return (*cells, *(f"{value or math.nan:.4f}" for value in values))


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--trials", default=24, show_default=True, help="Of the search with pruning.")
def main(seeds: int, trials: int) -> None:
    """Print a table, two lines a seed."""
    configure_logging()
    table = Table(
        *("seed", "search", "trials", "steps", "recipe, val", "best, val", "best, test"), box=None
    )
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("demo", [*SMALL, f"store={Path(folder) / 'store'}"])
        for seed in range(seeds):
            pruned = run(recipe, Settings(name=f"pruned-{seed}", trials=trials, seed=seed))
            cost = pruned.search.steps_trained / pruned.search.plan.max_steps
            plain = Settings(
                name=f"random-{seed}",
                trials=math.ceil(cost),
                seed=seed,
                sampler="random",
                scheduler="none",
            )
            table.add_row(*row("tpe, asha", seed, pruned))
            table.add_row(*row("random", seed, run(recipe, plain)))
            Console().print(table)


if __name__ == "__main__":
    main()
