"""Weights from one net into another, with a receipt: what it proves, and what it does not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fcn.backbones import Backbone, classifier_of
from fcn.nets import FCN
from fcn.weight_names import Match, State, match_names

TOLERANCE = 1e-4
"""Classifier and dense form may differ by this fraction of the greatest score: float32 rounding of
sums over 25,088 inputs, taken in another order."""

Fate = Literal["copied", "reshaped", "grown", "initialised", "dropped"]
"""Grown: what belongs to a class came by the class's name, the rest starts as in a new net."""


@dataclass(frozen=True)
class Entry:
    """What became of one tensor."""

    source: str | None
    target: str | None
    fate: Fate
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...] | None
    sha256: str
    """Hash of the tensor's bytes in row-major order: the same before and after a copy or a reshape."""


@dataclass(frozen=True)
class Receipt:
    """Proof of a transplant: every tensor's fate, and how far source and target differ in output."""

    source: str
    backbone: str
    entries: tuple[Entry, ...]
    proof: str
    max_difference: float
    """Greatest difference of the two nets' answers to the same inputs, over the greatest answer."""
    matched_by: str
    """The rule that says which tensor of the source is which tensor of the net."""
    covers: tuple[str, ...]
    """What the entries and the proof show."""
    does_not_cover: tuple[str, ...]
    """What they do not show, and the reader has to trust."""
    tolerance: float = TOLERANCE

    def count(self, fate: Fate) -> int:
        """Return the number of tensors that had this fate."""
        return sum(entry.fate == fate for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Plain values, to be written beside the weights."""
        return asdict(self)


ARRIVED = "Every tensor that is copied or reshaped arrived bit for bit: its sha256 is the same."
NAMES_TRUSTED = (
    "That the tensors are what their names (or the map of names) say: both forms follow them."
)
SCORES_TRUSTED = "The scores of the whole net: the score layers are copied, and are not run."
TRAINING_TRUSTED = "On what, with which preprocessing and how well the weights were trained."


def transplant_classifier(
    net: FCN, state: State, source: str, names: Mapping[str, str] | None = None
) -> Receipt:
    """Copy a classifier's weights into the net's backbone and prove that nothing changed.

    `names` maps the names in `state` to the classifier's own, where they cannot be matched without.
    The classifier is rebuilt from `state` and run beside its convolutional form on the same inputs:
    one with fully connected layers at its native size, where the map has a single pixel; a pooled one
    at two sizes, where the mean of the class map is the classifier's answer.

    Raises:
        ValueError: the weights are of another net, their names cannot be matched with certainty, or
            the two forms disagree.
    """
    name = net.blueprint.backbone
    known = classifier_of(name)
    classifier, match = load_classifier(name, state, names)
    own = classifier.state_dict()
    dense = Backbone(classifier, name, net.backbone.preprocessing).eval()
    sizes_px = (224, 288) if dense.pooled else (known.family.native_px,)
    difference = _classifier_difference(classifier, dense, sizes_px)
    require_agreement(difference, f"{name} and its convolutional form", f"Is {source} a {name}?")

    # The dense form holds the classifier's own memory, so an address tells where each tensor went.
    lives_at = {tensor.data_ptr(): target for target, tensor in dense.state_dict().items()}
    pairs = {key: lives_at[own[target].data_ptr()] for key, target in match.names.items()}
    kept = {key: target for key, target in pairs.items() if not target.startswith("class_layer")}
    net.backbone.load_state_dict(
        {
            target: state[key].reshape(net.backbone.state_dict()[target].shape)
            for key, target in kept.items()
        }
    )
    proof = "mean of the class map" if dense.pooled else f"class map at {sizes_px[0]} px"
    fates = (*entries(net, state, kept, prefix="backbone."), *initialised(net, {}))
    forms = "The classifier with these weights and its convolutional form give the same scores."
    return Receipt(
        source=source,
        backbone=name,
        entries=fates,
        proof=f"classifier == {proof}",
        max_difference=difference,
        matched_by=match.rule,
        covers=(ARRIVED, forms),
        does_not_cover=(NAMES_TRUSTED, TRAINING_TRUSTED),
    )


def load_classifier(
    name: str, state: State, names: Mapping[str, str] | None = None
) -> tuple[nn.Module, Match]:
    """The classifier with these weights, and how their names were matched.

    Raises:
        ValueError: the weights are of another net, or their names cannot be matched with certainty.
    """
    known = classifier_of(name)
    classifier = known.build().eval()
    own = classifier.state_dict()
    match = match_names(state, own, name, known=known.known_names(), given=names)
    classifier.load_state_dict({target: state[key] for key, target in match.names.items()})
    return classifier, match


def transplant_net(
    net: FCN, donor: FCN, source: str, theirs: Sequence[str], ours: Sequence[str]
) -> Receipt:
    """Copy another FCN's weights: the backbone whole, scores and upsampling by the names of classes.

    `theirs` and `ours` are the classes of the donor and of the net, in their order. What scores a class
    that the donor does not have stays as in a new net.

    Raises:
        ValueError: the donor has another backbone, or the two backbones then disagree.
    """
    backbone = donor.blueprint.backbone
    if backbone != (own_backbone := net.blueprint.backbone):
        raise ValueError(
            f"{source} has a {backbone}, this net a {own_backbone}; set net.backbone={backbone}"
        )
    own, state = net.state_dict(), donor.state_dict()
    kept = {
        key: key
        for key, tensor in state.items()
        if key in own
        and own[key].shape == tensor.shape
        and (list(theirs) == list(ours) or key.startswith("backbone."))
    }
    net.load_state_dict({target: state[key] for key, target in kept.items()}, strict=False)
    grown = _grow(net, {k: t for k, t in state.items() if k not in kept}, theirs, ours)
    x = noise(donor, 96)
    with torch.inference_mode():
        taps, donors = net.eval().backbone(x), donor.eval().backbone(x)
    difference = max(relative(taps[s], donors[s]) for s in taps)
    require_agreement(difference, f"the backbones of {source} and this net", "Is the file damaged?")
    came = {entry.source for entry in grown}
    rest = {key: tensor for key, tensor in state.items() if key not in came}
    fates = (
        *entries(net, rest, kept),
        *grown,
        *initialised(net, {**kept, **{str(e.source): str(e.target) for e in grown}}),
    )
    return Receipt(
        source=source,
        backbone=backbone,
        entries=fates,
        proof="taps of both backbones",
        max_difference=difference,
        matched_by="the same names",
        covers=(
            ARRIVED,
            "Both backbones give the same maps at every stride.",
            *([_kept_classes(theirs, ours)] if grown else []),
        ),
        does_not_cover=(SCORES_TRUSTED, TRAINING_TRUSTED),
    )


def _grow(net: FCN, state: State, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Entry, ...]:
    """Copy what belongs to classes of the same name, of scores and learned upsampling."""
    shared = [(theirs.index(name), ours.index(name)) for name in ours if name in theirs]
    if not shared:
        return ()
    source, target = (list(numbers) for numbers in zip(*shared, strict=True))
    grown, own = [], net.state_dict()
    for key, tensor in state.items():
        if key not in own or own[key].ndim != tensor.ndim:
            continue
        new, taken = own[key].clone(), tensor[source]
        if tensor.ndim == 4 and tensor.shape[:2] == (len(theirs),) * 2:  # upscore: dense
            taken = taken[:, source]
            rows = new[target]
            rows[:, target] = taken
            taken = rows
        if new[target].shape != taken.shape:
            continue
        new[target] = taken
        net.load_state_dict({key: new}, strict=False)
        shapes = tuple(tensor.shape), tuple(new.shape)
        grown.append(Entry(key, key, "grown", *shapes, sha256(new)))
    return tuple(grown)


def _kept_classes(theirs: Sequence[str], ours: Sequence[str]) -> str:
    kept = ", ".join(name for name in ours if name in theirs)
    new = ", ".join(name for name in ours if name not in theirs) or "no class"
    return f"Scores of {kept} are the donor's, by the classes' names; scores of {new} start anew."


def noise(module: nn.Module, size_px: int) -> Tensor:
    """Two normalised images (2, 3, size_px, size_px), the same at every call."""
    generator = torch.Generator().manual_seed(size_px)
    x = torch.randn(2, 3, size_px, size_px, generator=generator)
    return x.to(next(module.parameters()).dtype)


@torch.inference_mode()
def _classifier_difference(
    classifier: nn.Module, dense: Backbone, sizes_px: tuple[int, ...]
) -> float:
    differences = []
    for size_px in sizes_px:
        x = noise(classifier, size_px)
        if not dense(x)[dense.coarsest].std() > 0:  # NaN is dead too
            return float("nan")
        differences.append(relative(dense.classify(x), classifier(x)))
    return max(differences)


def relative(a: Tensor, b: Tensor) -> float:
    """Greatest difference over the greatest value; infinite where it is no number."""
    fraction = (a - b).abs().max() / b.abs().max()
    return float(fraction) if fraction.isfinite() else math.inf


def require_agreement(difference: float, what: str, remedy: str) -> None:
    """Make sure that two forms give the same answers.

    Raises:
        ValueError: they do not, or answer nothing (NaN).
    """
    if math.isnan(difference):
        raise ValueError(
            f"{what} are dead: their features are the same whatever the image. {remedy}"
        )
    if not difference <= TOLERANCE:
        raise ValueError(f"{what} differ by {difference:.2g}, more than {TOLERANCE:.0e}. {remedy}")


def sha256(tensor: Tensor) -> str:
    """Return the sha256 of the tensor's bytes in row-major order, in hexadecimal."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)  # a scalar has no bytes to view
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def entries(net: FCN, state: State, kept: Mapping[str, str], prefix: str = "") -> Iterator[Entry]:
    """What became of each tensor of a file.

    Raises:
        ValueError: one is not in the net bit for bit.
    """
    own = net.state_dict()
    for key, tensor in state.items():
        digest = sha256(tensor)
        if key not in kept:
            yield Entry(key, None, "dropped", tuple(tensor.shape), None, digest)
            continue
        target = prefix + kept[key]
        if sha256(own[target]) != digest:
            raise ValueError(f"{key} did not arrive in {target} bit for bit")
        fate: Fate = "copied" if own[target].shape == tensor.shape else "reshaped"
        yield Entry(key, target, fate, tuple(tensor.shape), tuple(own[target].shape), digest)


def initialised(net: FCN, kept: Mapping[str, str]) -> Iterator[Entry]:
    """The net's tensors outside the backbone that came from nowhere."""
    for target, tensor in net.state_dict().items():
        if not target.startswith("backbone.") and target not in kept.values():
            yield Entry(None, target, "initialised", None, tuple(tensor.shape), sha256(tensor))
