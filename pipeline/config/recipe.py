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

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.config.data import DataSpec
from pipeline.config.documents import loses_a_comment, parse, parse_mapping, read_text
from pipeline.config.legal import MAX_NAME, require_legal_classes, require_model_name
from pipeline.config.schema import (
    ClusterSpec,
    EvaluateSpec,
    FinetuneSpec,
    NetSpec,
    PhaseSpec,
    RegisterSpec,
    Spec,
    TrackingSpec,
    TransplantSpec,
)
from pipeline.config.uris import REMEDY, keys_with_credentials
from pipeline.errors import RecipeError
from pipeline.storage.object_store import URI

MAX_SECTIONS, MAX_SHOWN = 10, 60
"""Parts of an overridden key before its last; characters of a value in a message."""


class Recipe(Spec):
    """The full, typed description of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
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
        if self.evaluate.split not in (splits := self.data.split_names()):
            raise ValueError(
                f"evaluate.split={self.evaluate.split} is not among the data set's splits "
                f"({', '.join(splits)})"
            )
        require_legal_classes(self.data.class_table())
        require_model_name(self.model_name)
        _require_place(self.store)
        return self

    @property
    def model_name(self) -> str:
        """Under which the net is registered."""
        return self.register_as.model or self.name

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
    if found := [f"  {key} holds credentials: {REMEDY}" for key in keys_with_credentials(tree)]:
        raise RecipeError("\n".join([f"{source}: {_mistakes(len(found))}", *found]))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        mistakes = [_explain(mistake) for mistake in error.errors()]
        raise RecipeError("\n".join([f"{source}: {_mistakes(len(mistakes))}", *mistakes])) from None


def _mistakes(count: int) -> str:
    return "1 mistake" if count == 1 else f"{count} mistakes"


def _read(name_or_path: str) -> dict[str, Any]:
    names = recipe_names()
    packaged = resources.files("pipeline.config") / "recipes" / f"{name_or_path}.yaml"
    try:
        text = packaged.read_text() if name_or_path in names else read_text(Path(name_or_path))
    except (OSError, ValueError) as error:
        why = "no such recipe or file" if isinstance(error, FileNotFoundError) else str(error)
        raise RecipeError(f"{name_or_path}: {why}; recipes are {', '.join(names)}") from None
    return parse_mapping(text, name_or_path, "the sections of a recipe")


def _override(tree: dict[str, Any], override: str) -> None:
    """Edit the raw tree; what does not exist is found by the validation after all edits."""
    path, equals, text = override.partition("=")
    *sections, key = path.split(".")
    if not equals or not key or len(sections) > MAX_SECTIONS:
        raise RecipeError(f"--set {override[:60]}: write KEY=VALUE, for example finetune.epochs=5")
    value = _value(path, text)
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = tree[section] = {}
        tree = inner
    tree[key] = value


def _value(path: str, text: str) -> Any:  # noqa: ANN401 - any plain value
    if not text.strip():
        raise RecipeError(
            f"--set {path}=: no value is given; write {path}=null where none is needed"
        )
    try:
        if loses_a_comment(text):
            raise ValueError(
                "what follows # would be left out as a comment; put the value in quotes"
            )
        return parse(text)
    except yaml.YAMLError:
        return text
    except ValueError as error:
        raise RecipeError(f"--set {path}={_short(text)}: {error}") from None


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
    return f"  {path}={_short(value)}: {rule[0].lower()}{rule[1:]}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _fields_at(path: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        fields = {(f.alias or name): f.annotation for name, f in model.model_fields.items()}
        if part in fields:  # else the position in a list, or the name of a split
            model = next(iter(_models_in(fields[part])), None)
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
        if isinstance(value, dict) and value and all(map(str.isidentifier, value)):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
