"""How many trials run side by side; a refusal with the arithmetic where not even one can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.cluster import per_worker
from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError

Resources = Mapping[str, float]


def side_by_side(spec: ClusterSpec, nodes: Sequence[Resources], at_most: int) -> int:
    """Trials of `spec.max_workers` workers that these nodes hold at a time.

    Raises:
        ClusterError: not even one.
    """
    need, workers = per_worker(spec), spec.max_workers
    places = sum(_places(need, node) for node in nodes)
    if places < workers:
        words = " and ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        have = "; ".join(_spell(node, need) for node in nodes)
        raise ClusterError(
            f"a trial of {workers} worker{'s' * (workers > 1)} needs {workers} x ({words}), and the "
            f"{len(nodes)} node{'s' * (len(nodes) > 1)} of this Ray hold {places} such "
            f"worker{'s' * (places != 1)} ({have}); use fewer --workers, a smaller "
            "cluster.cpus_per_worker or cluster.gpus_per_worker, or a larger cluster"
        )
    return min(places // workers, at_most)


def _places(need: Resources, node: Resources) -> int:
    """Workers that fit on a node; a millionth for what fractions lose in a sum."""
    return min(int(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in need.items())


def _spell(node: Resources, need: Resources) -> str:
    return ", ".join(f"{node.get(kind, 0.0):g} {kind}" for kind in need)
