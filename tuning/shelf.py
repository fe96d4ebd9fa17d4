"""Where a search lies in the store: its journal, the recipe and the settings that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.recipe import Recipe, load_recipe
from pipeline.errors import RecipeError, StoreError
from pipeline.storage.store import Store
from tuning.events import Journal, SearchBegun
from tuning.records import Search
from tuning.settings import Settings


class Shelf:
    """The folder of a search."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self._recipe, self._settings = folder / "recipe.yaml", folder / "settings.json"

    def open(self, begun: SearchBegun, recipe: Recipe, settings: Settings) -> Search:
        """The search as far as it came, which may be nowhere.

        Raises:
            RecipeError: it was begun otherwise.
        """
        search = self._known(begun) if self.journal.exists() else None
        if search is not None:
            self._require_size(settings)
        self._recipe.parent.mkdir(parents=True, exist_ok=True)
        self._recipe.write_text(recipe.to_yaml())
        self._settings.write_text(settings.model_dump_json(indent=1))
        if search is None:
            Journal(self.journal).append(begun)
            search = Search.read(self.journal)
        return search

    def read(self) -> tuple[Search, Recipe, Settings]:
        """What is there.

        Raises:
            StoreError: there is no search.
        """
        if not self._settings.is_file():
            there = sorted(path.parent.name for path in self.folder.parent.glob("*/settings.json"))
            raise StoreError(
                f"there is no search {self.folder.name} in {self.folder.parent}; "
                f"there are {', '.join(there) or 'none'}"
            )
        settings = Settings.model_validate_json(self._settings.read_text())
        return Search.read(self.journal), load_recipe(str(self._recipe)), settings

    def under_way(self) -> str:
        """Who is at it, in words; empty if nobody is."""
        lock = Store(self.folder.parent.parent).lock(f"flow-search-{self.folder.name}")
        if lock.take():
            lock.free()
            return ""
        return lock.holder()

    def _require_size(self, settings: Settings) -> None:
        """A grid with more points is another grid, a population with more members another one."""
        had = Settings.model_validate_json(self._settings.read_text()).trials
        if (settings.sampler == "grid" or settings.scheduler == "pbt") and settings.trials != had:
            raise RecipeError(
                f"--trials {settings.trials}: the search {self.folder.name} was begun with {had}, and "
                "neither a grid nor a population can change its size; give another --name"
            )

    def _known(self, begun: SearchBegun) -> Search | None:
        """The number of slots stays that of the beginning, whatever room there is now."""
        try:
            search = Search.read(self.journal)
        except StoreError as error:
            if "holds no event" in str(error):  # killed before it began
                return None
            raise
        here, there = _plain(begun), _plain(search.begun)
        differing = [key for key in here if here[key] != there[key] and key != "slots"]
        if differing:
            lines = [f"  {key}: it has {there[key]}, and now {here[key]}" for key in differing]
            raise RecipeError(
                "\n".join(
                    [
                        f"a search named {self.folder.name} was begun otherwise; type what it was begun "
                        "with, or give another --name",
                        *lines,
                    ]
                )
            )
        return search


def shelf_of(store: Path, name: str) -> Shelf:
    """Of the search of a name."""
    return Shelf(Store(store).folder("searches", name))


def _plain(begun: SearchBegun) -> dict[str, Any]:
    return begun.model_dump(mode="json", exclude={"at", "event"})
