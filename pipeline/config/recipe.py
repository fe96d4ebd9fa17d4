"""The recipe: everything that decides a run, typed, closed and checked before anything starts.

`data`, `net`, `transplant`, `finetune`, `evaluate` and `seed` are the science: they decide the
numbers. `cluster`, `tracking`, `register` and `store` only say where and under which name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.config.data import DataSpec
from pipeline.config.schema import (
    ClusterSpec,
    Count,
    EvaluateSpec,
    FinetuneSpec,
    NetSpec,
    PhaseSpec,
    RegisterSpec,
    Spec,
    TrackingSpec,
    TransplantSpec,
)
from pipeline.errors import RecipeError
from pipeline.storage.object_store import URI


class Recipe(Spec):
    """The full, typed description of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    data: DataSpec
    net: NetSpec
    transplant: TransplantSpec | None = None
    finetune: FinetuneSpec
    evaluate: EvaluateSpec = EvaluateSpec()
    register_as: RegisterSpec = Field(default=RegisterSpec(), alias="register")
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()
    store: Annotated[str, Field(pattern=URI)] | Path = Path("store")
    """Of data sets, weights, nets and runs: a folder, or the URI of one in an object store."""

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        tune = self.finetune
        if self.cluster.max_workers > tune.num_micro_batches:
            raise ValueError(
                f"cluster.num_workers={self.cluster.max_workers} but finetune.global_batch="
                f"{tune.global_batch} / micro_batch={tune.micro_batch} gives {tune.num_micro_batches} "
                f"micro-batches to share; use at most {tune.num_micro_batches} workers or a smaller "
                "micro_batch"
            )
        if tune.init == "transplant" and self.transplant is None:
            raise ValueError("finetune.init=transplant needs a transplant section with its weights")
        if tune.phases and tune.phases[-1].stride != self.net.stride:
            raise ValueError(
                f"finetune.phases end at stride {tune.phases[-1].stride} but net.stride is "
                f"{self.net.stride}; they must be the same"
            )
        if tune.batch_norm == "sync" and not self.cluster.use_gpu:
            raise ValueError(
                "finetune.batch_norm=sync needs cluster.use_gpu=true; use micro on CPUs"
            )
        given, num_classes = tune.class_weights, len(self.data.class_table())
        if not isinstance(given, str) and len(given) != num_classes:
            raise ValueError(
                f"finetune.class_weights has {len(given)} numbers for {num_classes} classes; give one "
                "for each class, in their order"
            )
        if self.evaluate.split not in (splits := self.data.split_names()):
            raise ValueError(
                f"evaluate.split={self.evaluate.split} is not among the data set's splits "
                f"({', '.join(splits)})"
            )
        _require_place(self.store)
        return self

    @property
    def phases(self) -> tuple[PhaseSpec, ...]:
        """The trainings in their order; at-once training is a single one."""
        return self.finetune.phases or (
            PhaseSpec(stride=self.net.stride, epochs=self.finetune.epochs or 1),
        )

    def num_steps(self, phase: PhaseSpec, num_train: int) -> int:
        """Optimiser steps of a phase; the last global batch of an epoch may be short."""
        return phase.epochs * -(-num_train // self.finetune.global_batch)

    def plain(self) -> dict[str, Any]:
        """JSON values under the recipe's own keys."""
        return self.model_dump(mode="json", by_alias=True)

    def changed(self, overrides: Sequence[str]) -> Recipe:
        """The same with `a.b=c` overrides, validated again.

        Raises:
            RecipeError: as load_recipe does.
        """
        return _validated(self.plain(), self.name, overrides)

    def to_yaml(self) -> str:
        """The resolved recipe as a file that `load_recipe` takes."""
        return yaml.safe_dump(self.plain(), sort_keys=False)

    def flat(self) -> dict[str, str]:
        """Dotted keys and their values, as MLflow parameters."""
        return dict(_flatten(self.plain()))


def _require_place(store: str | Path) -> None:
    if isinstance(store, Path) and ":/" in str(store):
        raise ValueError(f"store={store} is neither a folder nor a URI such as s3://bucket/prefix")
    if isinstance(store, str) and "@" in urlsplit(store).netloc and store.startswith("s3"):
        raise ValueError(
            "store holds credentials, and recipes are shown in MLflow; give them by the environment "
            "(AWS_ACCESS_KEY_ID) or by the machine's role"
        )


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    folder = resources.files("pipeline.config") / "recipes"
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def summary(name: str) -> str:
    """The first line of a packaged recipe, which says what it is for."""
    text = (resources.files("pipeline.config") / "recipes" / f"{name}.yaml").read_text()
    return text.splitlines()[0].removeprefix("# ")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its name in the package or by path, with `a.b=c` overrides, validated once.

    Raises:
        RecipeError: all mistakes at once, each with its dotted path, value and rule.
    """
    return _validated(_read(name_or_path), name_or_path, overrides)


def _validated(tree: dict[str, Any], source: str, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        _override(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        mistakes = [_explain(mistake) for mistake in error.errors()]
        raise RecipeError("\n".join([f"{source}: {_mistakes(len(mistakes))}", *mistakes])) from None


def _mistakes(count: int) -> str:
    return "1 mistake" if count == 1 else f"{count} mistakes"


def _read(name_or_path: str) -> dict[str, Any]:
    packaged = resources.files("pipeline.config") / "recipes" / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    try:
        text = packaged.read_text() if packaged.is_file() else path.read_text()
    except (OSError, UnicodeDecodeError):
        raise RecipeError(
            f"{name_or_path}: no such recipe or file; recipes are {', '.join(recipe_names())}"
        ) from None
    return _parse(text, name_or_path, "the sections of a recipe")


def read_yaml(path: str, holds: str) -> dict[str, Any]:
    """The mapping in a YAML file; `holds` says what it should hold, for the message.

    Raises:
        RecipeError: no such file, or no mapping in it.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} should hold {holds} but cannot be read: {error}") from None
    return _parse(text, path, holds)


def _parse(text: str, source: str, holds: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} holds {type(tree).__name__}, not {holds}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    """Edit the raw tree; what does not exist is found by the validation after all edits."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: write KEY=VALUE, for example finetune.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, key = path.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = tree[section] = {}
        tree = inner
    tree[key] = value


def _explain(mistake: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    where = [str(part) for part in mistake["loc"]]
    path = ".".join(where)
    rule = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"  {path}: no such key; {hint}"
    if mistake["type"] == "missing":
        return f"  {path}: missing; it has no default"
    if mistake["type"] == "value_error":
        return f"  {path}: {rule}" if path else f"  {rule}"
    value = json.dumps(mistake["input"], default=str)
    return f"  {path}={value[:60]}: {rule[0].lower()}{rule[1:]}"


def _fields_at(path: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        fields = {(f.alias or name): f.annotation for name, f in model.model_fields.items()}
        model = next((t for t in _models_in(fields.get(part))), None)
        if model is None:
            return []
    return [f.alias or name for name, f in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:  # noqa: ANN401 - any type at all
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
