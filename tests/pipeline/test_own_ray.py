"""The Ray of a run without an address: its own, closed to others, and gone without a trace."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OWN_RAY = """
import json, ray
from pipeline.cluster import join
from pipeline.config.schema import ClusterSpec
join(ClusterSpec())
session = ray._private.worker._global_node.get_session_dir_path()
context = ray.get_runtime_context()
url = ray._private.worker.get_dashboard_url()
print(json.dumps({"gcs": context.gcs_address, "session": session, "dashboard": url}))
"""


@pytest.mark.ray
def test_without_an_address_a_run_has_a_ray_of_its_own_that_leaves_nothing(
    local_ray,
) -> None:
    """There is another Ray on this machine, and its address where Ray looks for one."""
    import ray

    other = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory(prefix="fcn-") as folder:  # short: sockets lie in it
        begin_beside(other, Path(folder))


def begin_beside(other: str, folder: Path) -> None:
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(other)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(folder), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["gcs"] != other
    private = folder / f"fcn-{os.getuid()}"
    assert Path(said["session"]).is_relative_to(private)
    assert said["dashboard"].startswith("127.0.0.1:")
    assert stat.S_IMODE((folder / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert not list(private.iterdir())
