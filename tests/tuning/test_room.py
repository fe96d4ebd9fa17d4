"""How many trials fit is arithmetic, done before anything starts."""

import pytest

from pipeline.config.schema import ClusterSpec
from pipeline.errors import ClusterError
from tuning.room import side_by_side

GPUS = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"num_workers": 1}, 20),
        ({"num_workers": 3}, 6),
        ({"num_workers": 1, "cpus_per_worker": 4}, 5),
        ({"num_workers": 1, "cpus_per_worker": 5}, 2),
        ({"num_workers": 1, "use_gpu": True}, 3),
        ({"num_workers": 2, "use_gpu": True}, 1),
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.25}, 12),
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.1}, 16),
    ],
)
def test_trials_share_nodes_but_no_worker_does(spec, count) -> None:
    assert side_by_side(ClusterSpec(**spec), GPUS, at_most=100) == count
    assert side_by_side(ClusterSpec(**spec), GPUS, at_most=1) == 1


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    spec = ClusterSpec(num_workers=4, use_gpu=True, cpus_per_worker=2)
    with pytest.raises(ClusterError) as error:
        side_by_side(spec, GPUS, at_most=10)
    assert str(error.value) == (
        "a trial of 4 workers needs 4 x (2 CPU and 1 GPU), and the 3 nodes of this Ray hold 3 such "
        "workers (8 CPU, 2 GPU; 8 CPU, 1 GPU; 4 CPU, 0 GPU); use fewer --workers, a smaller "
        "cluster.cpus_per_worker or cluster.gpus_per_worker, or a larger cluster"
    )
