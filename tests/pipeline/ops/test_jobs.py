"""Flows as jobs on a real Ray head with token authentication; the documentation's transcript is true."""

import json
import os
import re
import shlex
from typing import Any

import pytest

from pipeline.config.schema import TrackingSpec
from pipeline.tracking.client import TrackingClient
from tests.transcript import ROOT, Head, head, record, shape

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

LEFT_HERE, HANDED_ON = "hunter2-stays-here", "hunter2-is-handed-on"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with head(tmp_path_factory.mktemp("jobs")) as ray:
        for name in (".env", "server.pem", ".netrc", ".aws/credentials", "credentials.json"):
            path = ray.work / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(LEFT_HERE)
        (ray.work / "readme.txt").symlink_to(".env")
        ray.user |= {"FCN_LEFT_HERE": LEFT_HERE, "FCN_HANDED_ON": HANDED_ON}
        yield ray


@pytest.fixture(scope="module")
def recorded(cluster) -> str:
    return record(cluster)


def documented() -> str:
    """The transcript in the documentation."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    return next(block for block in blocks if "job stop" in block).strip()


def found_in(ray: Head, secret: str) -> list[str]:
    """Files of the cluster and of its jobs that hold a secret."""
    files = [path for place in (ray.temp, ray.store) for path in place.rglob("*") if path.is_file()]
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def test_a_job_is_followed_left_alone_stopped_and_goes_on_as_documented(cluster, recorded) -> None:
    assert shape(recorded) == shape(documented()), recorded
    step = re.search(r"stopped by SIGTERM after step (\d+) of 30", recorded)
    assert step
    assert 0 < int(step[1]) < 30
    mlflow = TrackingClient(TrackingSpec(), cluster.store)
    runs = mlflow.client.search_runs([mlflow.experiment])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    child = next(run.info.run_id for run in runs if "mlflow.parentRunId" in run.data.tags)
    assert [step for step, _ in mlflow.history(child, "train/loss")] == list(range(1, 31))
    assert [step for step, _ in mlflow.history(child, "val/mean_iu")] == [15, 30]


def test_no_secret_of_the_user_reaches_cluster_log_or_store(cluster, recorded) -> None:
    """The working directory and the environment that the jobs were sent from held some."""
    assert found_in(cluster, "pipeline run small.yaml"), "nothing was searched"
    assert found_in(cluster, LEFT_HERE) == []


def test_a_variable_is_handed_on_by_name_and_not_printed(cluster) -> None:
    command = (
        "fcn-pipeline submit camvid --set store=/shared/store --name named --env FCN_HANDED_ON"
    )
    code, output = cluster.run(f"{command} --no-wait")
    assert code == 0, output
    assert re.search("^follow  ray job logs .* named$", output, re.M)

    def job() -> dict[str, Any]:
        return json.loads(cluster.get("/api/jobs/named"))

    cluster.wait(lambda: job()["status"] == "FAILED", "the job did not end")
    assert job()["driver_exit_code"] == 2
    assert job()["runtime_env"]["env_vars"]["FCN_HANDED_ON"] == HANDED_ON
    log = json.loads(cluster.get("/api/jobs/named/logs"))["logs"]
    assert HANDED_ON not in output + log
    code, output = cluster.run(command)
    assert code == 1
    assert "already exists" in output


def test_a_folder_that_is_too_large_is_refused_with_limit_and_remedy(cluster, tmp_path) -> None:
    (tmp_path / "scan.tif").write_bytes(os.urandom((100 << 20) + 1))
    command = "fcn-pipeline submit demo --set store=/shared/store --working-dir"
    code, output = cluster.run(f"{command} {tmp_path}")
    assert code == 1, output
    assert "ClusterError" in output
    assert "100 MiB" in output, output
    assert ".rayignore" in output
    assert "100 MiB" in (ROOT / "docs" / "cluster.md").read_text()
    assert "Uploading" not in output


def test_without_the_token_nothing_is_accepted_and_with_it_plain_ray_works_too(cluster) -> None:
    code, output = cluster.run(
        "fcn-pipeline submit small.yaml", RAY_AUTH_MODE="disabled", HOME=str(cluster.folder)
    )
    assert code == 1, output
    assert "ClusterError: the cluster asks for its token" in output
    assert "export RAY_AUTH_MODE=token" in output
    code, output = cluster.run("fcn-pipeline submit small.yaml", RAY_AUTH_TOKEN="0" * 64)
    assert code == 1, output
    assert "ClusterError: the cluster asks for its token" in output
    where = "import pathlib,pipeline;print(pathlib.Path(pipeline.__file__).parent.parent)"
    tune = "python -m tuning space demo --trials 1 --set store=/shared/store"
    both = shlex.quote(f"{tune} && fcn-pipeline recipes && python -c '{where}'")
    code, output = cluster.run(f"ray job submit --working-dir {ROOT} -- sh -c {both}")
    assert code == 0, output
    assert "finetune.optimizer.lr=" in output
    assert "voc-fcn8s-vgg16 " in output
    sent = re.search(r"^(/\S+)/runtime_resources/working_dir_files/", output, re.M)
    assert sent, "the job ran other code than was sent"
    assert sent[1].startswith(str(cluster.temp))
