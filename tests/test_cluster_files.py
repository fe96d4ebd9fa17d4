"""The cluster files are valid, keep to what the documentation says of them, and suit the flow."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.cli import main
from pipeline.cluster import require_fit
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.errors import ClusterError
from pipeline.ops.submit import STOP_S, require_shared_paths

ROOT = Path(__file__).parents[1]
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
KUBERNETES = yaml.safe_load((ROOT / "rayjob.yaml").read_text())
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())


def changed(tree: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    *folders, last = path.split("/")
    inner: Any = tree
    for name in folders:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return tree


def test_ray_s_launcher_takes_the_cluster_file() -> None:
    validate_config(prepare_config(AWS))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 8),
        ("available_node_types/gpu/min_workers", "none"),
        ("available_node_types/gpu/resources", {"CPU": -1}),
        ("head_node_type", "master"),
    ],
)
def test_ray_s_launcher_would_find_a_mistake_in_it(path, value) -> None:
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        validate_config(prepare_config(changed(AWS, path, value)))


def test_the_job_s_manifest_fits_the_schema() -> None:
    jsonschema.validate(KUBERNETES, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/entryPoint", "fcn-pipeline run camvid"),
        ("spec/rayClusterSpec/authOptions/mode", "tokens"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", "8"),
    ],
)
def test_the_schema_would_find_a_mistake_in_it(path, value) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(KUBERNETES, path, value), SCHEMA)


@pytest.mark.parametrize("name", ["cluster.yaml", "rayjob.yaml"])
def test_a_newcomer_changes_four_lines(name) -> None:
    assert re.findall(r"# CHANGE (\d)", (ROOT / name).read_text()) == ["1", "2", "3", "4"]


def test_the_head_has_no_cpus_to_give_and_workers_come_and_go() -> None:
    head, gpu = (AWS["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= AWS["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert head["node_config"]["ImageId"] == gpu["node_config"]["ImageId"]
    cluster = KUBERNETES["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["workerGroupSpecs"][0]["minReplicas"] == 0
    assert cluster["enableInTreeAutoscaling"]


def test_token_authentication_is_on() -> None:
    exported = [c for c in AWS["setup_commands"] if "RAY_AUTH_MODE=token" in c and ".bashrc" in c]
    assert exported
    assert AWS["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert KUBERNETES["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_environment_is_the_project_s_own() -> None:
    assert AWS["file_mounts"]["/home/ubuntu/constraints.txt"] == "constraints.txt"
    assert any("-r ~/constraints.txt" in command for command in AWS["setup_commands"])
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={KUBERNETES['spec']['rayClusterSpec']['rayVersion']}" in pins


def test_a_stopped_job_has_time_for_its_checkpoint() -> None:
    assert any(f"WAIT_TIME_S={STOP_S}" in c for c in AWS["head_start_ray_commands"])
    variables = yaml.safe_load(KUBERNETES["spec"]["runtimeEnvYAML"])["env_vars"]
    assert variables == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}


def job_recipe() -> Recipe:
    """That of the manifest's entrypoint, which must be a command that there is."""
    program, verb, recipe, *options = shlex.split(KUBERNETES["spec"]["entrypoint"])
    assert program == "fcn-pipeline"
    assert CliRunner().invoke(main, [verb, "--help"]).exit_code == 0
    assert options[::2] == ["--set"] * (len(options) // 2)
    return load_recipe(recipe, options[1::2])


def test_the_manifest_s_flow_uses_the_shared_folder_and_fits_its_workers() -> None:
    recipe = job_recipe()
    require_shared_paths(recipe)
    cluster = KUBERNETES["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        spec = pod["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in spec["containers"][0]["volumeMounts"]}
        volumes = {v["name"]: v for v in spec["volumes"]}
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
    assert recipe.store.is_relative_to("/shared")
    limits = pods[1]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert recipe.cluster.use_gpu
    assert int(limits["nvidia.com/gpu"]) >= 1
    assert float(limits["cpu"]) >= recipe.cluster.cpus_per_worker
    assert recipe.cluster.max_workers <= cluster["workerGroupSpecs"][0]["maxReplicas"]
    assert recipe.cluster.autoscaling, "a cluster that starts with no worker must be waited for"


def test_a_flow_waits_for_nodes_only_where_they_come_on_demand(caplog) -> None:
    caplog.set_level("INFO", "pipeline.cluster")
    recipe = job_recipe()
    head = [{"memory": 1e9}]  # it has no CPUs to give
    require_fit(recipe.cluster, head)
    assert "0 workers of 1 CPU and 1 GPU fit on 1 node (1 x 0 CPU and 0 GPU)" in caplog.text
    assert "waiting for nodes" in caplog.text
    fixed = recipe.changed(["cluster.autoscaling=false"])
    with pytest.raises(ClusterError, match=r"cluster\.autoscaling=true"):
        require_fit(fixed.cluster, head)
