"""What would fail in hours is found in seconds on a real cluster, by the rule that a run obeys."""

import re

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from tests.conftest import TINY
from tests.transcript import free_ports


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_several_planted_faults_are_found_on_a_real_cluster_in_one_go(tmp_path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        common = [*TINY, f"cluster.address={nodes.address}"]

        def sets(*values: str) -> list[str]:
            return [f"--set={value}" for value in (*common, *values)]

        def check(*values: str):
            done = CliRunner(env={"COLUMNS": "1000"}).invoke(
                main, ["plan", "demo", "--cluster", *sets(*values)]
            )
            return done, re.sub(r"\s+", " ", done.output)

        done, text = check(
            "store=/proc/store",  # where not even root may write
            f"tracking.uri=http://127.0.0.1:{free_ports(1)[0]}",
            "cluster.num_workers=3",
        )
        assert done.exit_code == 1, done.output
        for name in ("fit", "store", "mlflow"):
            assert f"{name} failure" in text
        for words in ("versions ok", "nodes ok", "set cluster.num_workers=2"):
            assert words in text
        done, text = check(f"store={tmp_path}/store")
        assert done.exit_code == 0, done.output
        assert "failure" not in text
        assert "each sees what the others wrote" in text
        assert list(tmp_path.iterdir()) == []  # no trace is left
        too_wide = (f"store={tmp_path}/store", "cluster.cpus_per_worker=2")  # 2 nodes of 1 CPU
        done, text = check(*too_wide)
        assert (done.exit_code, "0 workers of 2 CPU fit on 2 nodes (2 x 1 CPU)" in text) == (
            1,
            True,
        )
        assert "the cluster holds 0 at a time: the run would be refused" in text
        done = CliRunner().invoke(main, ["run", "demo", *sets(*too_wide)])
        assert done.exit_code == 1
        assert "ClusterError" in done.output
        assert "0 workers of 2 CPU fit on 2 nodes (2 x 1 CPU)" in done.output
    finally:
        ray.shutdown()
        nodes.shutdown()
