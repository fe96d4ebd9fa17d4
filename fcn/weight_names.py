"""Which tensor of a weights file is which tensor of a net; what cannot be verified is refused."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]
Shape = tuple[int, ...]

REMEDY = (
    "give a map from the file's names to the net's (transplant.names in a recipe, names= in Python)"
)

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """The file's names to the net's, and the rule by which they were matched."""

    names: dict[str, str]
    rule: str


def match_names(
    state: State,
    own: State,
    net_name: str,
    *,
    known: Mapping[str, str] | None = None,
    given: Mapping[str, str] | None = None,
) -> Match:
    """Match the tensors of a file to those of a net, each of which must get exactly one.

    A map that the user gives is followed. Otherwise the names must be the net's (a prefix common to
    all of them may stand before), or those of a known file (`known`: its names to the net's), or the
    last parts of the names and the shapes must leave a single assignment of layers. Order in the file
    is no evidence: equally shaped tensors in another order would go in wrongly without a trace.

    Auxiliary classifiers of GoogLeNet and Inception are left out. A file may lack the counters of batch
    normalisation (num_batches_tracked), which older ones do: they start at zero and are no weights.

    Raises:
        ValueError: the tensors are not those of the net, or no rule can verify which is which.
    """
    theirs = {k: tuple(v.shape) for k, v in state.items() if not k.startswith(AUXILIARY)}
    ours = {key: tuple(tensor.shape) for key, tensor in own.items()}
    if () not in theirs.values():  # the counters are the only scalars, whatever they are called
        ours = {key: shape for key, shape in ours.items() if not key.endswith(COUNTER)}
    if given is not None:
        _require_complete(given, theirs, ours)
        return Match(dict(given), "the map of names that the user gave")
    prefix = _prefix(theirs, ours)
    renamed = {key: key.removeprefix(prefix) for key in theirs}
    if {renamed[key]: shape for key, shape in theirs.items()} == ours:
        return Match(renamed, f"the same names after {prefix!r}" if prefix else "the same names")
    if known is not None and {known.get(k): shape for k, shape in theirs.items()} == ours:
        return Match({key: known[key] for key in theirs}, "the names of a known file")
    if Counter(theirs.values()) != Counter(ours.values()):
        raise ValueError(_differences(theirs, ours, net_name))
    names = _only_assignment(theirs, ours, net_name)
    return Match(names, "last parts of the names and shapes, which leave a single assignment")


def _prefix(theirs: Mapping[str, Shape], ours: Mapping[str, Shape]) -> str:
    """What stands before the net's first name in the file, such as `module.`; or nothing."""
    first = next(iter(ours))
    found = [key.removesuffix(first) for key in theirs if key.endswith(first)]
    return next((start for start in found if all(key.startswith(start) for key in theirs)), "")


def _require_complete(
    given: Mapping[str, str], theirs: Mapping[str, Shape], ours: Mapping[str, Shape]
) -> None:
    times = Counter(given.values())
    wrong = [f"{key} is not in the file" for key in given if key not in theirs]
    wrong += [f"{name} is not in the net" for name in times if name not in ours]
    wrong += [f"{name} has {times[name]} sources" for name in ours if times[name] != 1]
    wrong += [
        f"{key} is {theirs[key]}, {name} is {ours[name]}"
        for key, name in given.items()
        if key in theirs and name in ours and theirs[key] != ours[name]
    ]
    if wrong:
        raise ValueError(
            f"the map of names does not fit: {_first(wrong)}; it needs one line for each of the "
            f"net's {len(ours)} tensors, of the same shape"
        )


def _only_assignment(
    theirs: Mapping[str, Shape], ours: Mapping[str, Shape], net_name: str
) -> dict[str, str]:
    """Layer to layer, where no two layers have the same parts of the same shapes."""
    layers, targets = _by_parts(theirs), _by_parts(ours)
    odd = [names[0] for parts, names in layers.items() if len(names) != len(targets.get(parts, ()))]
    if odd:
        raise ValueError(
            f"the shapes are those of {net_name}, the names are not, and the last parts of the names "
            f"(weight, bias, running_mean ...) differ, first at {odd[0]!r}; {REMEDY}"
        )
    for parts, names in layers.items():
        if len(names) > 1:
            raise ValueError(
                f"the shapes are those of {net_name}, the names are not, and layers "
                f"{' and '.join(map(repr, names[:2]))} have the same shapes, so nothing verifies which "
                f"of them is {targets[parts][0]!r}; {REMEDY}"
            )
    return {
        _join(names[0], part): _join(targets[parts][0], part)
        for parts, names in layers.items()
        for part, _ in parts
    }


def _by_parts(shapes: Mapping[str, Shape]) -> dict[frozenset[tuple[str, Shape]], list[str]]:
    """Names of layers by the last parts and shapes of their tensors."""
    layers = defaultdict(set)
    for key, shape in shapes.items():
        layer, _, part = key.rpartition(".")
        layers[layer].add((part, shape))
    by_parts = defaultdict(list)
    for layer, parts in layers.items():
        by_parts[frozenset(parts)].append(layer)
    return by_parts


def _join(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _differences(theirs: Mapping[str, Shape], ours: Mapping[str, Shape], net_name: str) -> str:
    wrong = [
        f"{key} is {theirs.get(key, 'missing')}, not {shape}"
        for key, shape in ours.items()
        if theirs.get(key) != shape
    ]
    wrong += [f"{key} is not in {net_name}" for key in theirs if key not in ours]
    return (
        f"these are not the weights of {net_name}: {len(theirs)} tensors for {len(ours)}; "
        f"{_first(wrong)}; give the weights of {net_name}, or change net.backbone"
    )


def _first(wrong: list[str], num: int = 4) -> str:
    more = [f"and {len(wrong) - num} more"] if len(wrong) > num else []
    return "; ".join([*wrong[:num], *more])
