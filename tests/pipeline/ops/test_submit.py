"""What a job takes along and what it never does; what is refused before anything is sent."""

import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from pipeline.cli import main
from pipeline.config.recipe import load_recipe
from pipeline.errors import ClusterError, RecipeError
from pipeline.ops import packing, submit

ROOT = Path(__file__).parents[3]
KEPT = [
    "mine.yaml",
    "pipeline/__init__.py",
    "pipeline/config/recipes/a.yaml",
    "notes/data/readme.txt",
]
SECRET = [
    *(".env", ".env.production", "deploy/server.pem", "deploy/tls.key", ".netrc", "id_rsa"),
    *(
        ".aws/credentials",
        ".ssh/config",
        "credentials.json",
        "gcp-credentials.json",
        "secrets.yaml",
    ),
    *(".ray/auth_token", ".mlflow/credentials", ".git-credentials", ".kube/config", ".pypirc"),
]
LARGE = [
    *("store/nets/a/net.safetensors", "data/train-0.arrow", "demo/mlflow.db", "weights/vgg16.pth"),
    *(".git/objects/pack", ".venv/bin/python", "pipeline/__pycache__/a.pyc", ".mypy_cache/a.json"),
]


def plant(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"hunter2 in {name}")
    return folder


def names_in(package: Path) -> list[str]:
    with zipfile.ZipFile(package) as archive:
        return sorted(name for name in archive.namelist() if not name.endswith("/"))


def test_the_package_holds_the_code_and_neither_secrets_nor_results(tmp_path) -> None:
    folder = plant(tmp_path / "work", *KEPT, *SECRET, *LARGE, "skipped.bin")
    (folder / ".gitignore").write_text("skipped.bin\n")
    sizes = packing.pack(folder, tmp_path / "package.zip")
    assert names_in(tmp_path / "package.zip") == sorted([*KEPT, ".gitignore"])
    assert sorted(sizes) == sorted([*KEPT, ".gitignore"])


def test_rayignore_makes_a_plain_ray_job_submit_leave_out_the_same(tmp_path) -> None:
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert tuple(line for line in lines if line and line[0] != "#") == packing.EXCLUDES
    folder = plant(tmp_path / "work", *KEPT, *SECRET, *LARGE)
    (folder / ".rayignore").write_text("\n".join(lines))
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
    assert names_in(tmp_path / "package.zip") == sorted([*KEPT, ".rayignore"])


def test_this_project_s_package_is_its_source(tmp_path) -> None:
    sizes = packing.packed(ROOT)
    assert {
        "pipeline/cli.py",
        "fcn/nets.py",
        "tuning/cli.py",
        "pipeline/config/recipes/demo.yaml",
    } <= {*sizes}
    assert sum(sizes.values()) < 5 * 2**20
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    assert {*tracked.stdout.split()} <= {*sizes}, "the excludes hit a file of the project"


def test_a_package_over_the_limit_is_refused_with_its_largest_files(tmp_path, monkeypatch) -> None:
    folder = plant(tmp_path / "work", *KEPT)
    (folder / "scan.tif").write_bytes(bytes(3 * 2**20))
    (folder / "small.tif").write_bytes(bytes(2**20))
    monkeypatch.setattr(packing, "LIMIT_BYTES", 4 * 2**20)
    with pytest.raises(ClusterError, match=r"scan\.tif \(3\.0 MiB\), small\.tif \(1\.0 MiB\)"):
        packing.pack(folder, tmp_path / "package.zip")
    assert not (tmp_path / "package.zip").exists()


def test_the_limit_is_what_the_documentation_says() -> None:
    assert f"{packing.LIMIT_BYTES / 2**20:.0f} MiB" in (ROOT / "docs" / "cluster.md").read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("store=store", "store=store: a relative path .* --set store=/shared/store"),
        ("data.root=camvid", "data.root=camvid: a relative path"),
        ("transplant.weights=vgg.pth", "transplant.weights=vgg.pth: a relative path"),
        ("cluster.address=local", "cluster.address=local: a job works on the cluster"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri=sqlite:///mlflow.db: a relative path"),
    ],
)
def test_what_the_cluster_could_not_see_is_refused(override, words) -> None:
    recipe = load_recipe("demo", ["store=/shared/store", override])
    with pytest.raises(RecipeError, match=words):
        submit.require_seen_from_afar(recipe)


@pytest.mark.parametrize(
    "weights", ["package", "torchvision", "run:demo", "models:/demo@champion", "/shared/vgg.pth"]
)
def test_what_all_nodes_share_is_accepted(weights) -> None:
    sets = ["store=/shared/store", "data.root=/shared/camvid", f"transplant.weights={weights}"]
    submit.require_seen_from_afar(load_recipe("demo", sets))


def test_the_job_finds_the_recipe_by_name_or_inside_the_package(tmp_path, monkeypatch) -> None:
    folder = plant(tmp_path / "work", "recipes/mine.yaml", ".env.yaml")
    plant(tmp_path, "other.yaml")
    monkeypatch.chdir(folder)
    files = packing.packed(folder)
    assert submit.place_in(folder, files, "camvid") == "camvid"
    assert submit.place_in(folder, files, "recipes/mine.yaml") == "recipes/mine.yaml"
    inside = str(folder / "recipes" / "mine.yaml")
    assert submit.place_in(folder, files, inside) == "recipes/mine.yaml"
    with pytest.raises(RecipeError, match="copy it there, or name its folder with --working-dir"):
        submit.place_in(folder, files, "../other.yaml")
    with pytest.raises(RecipeError, match=r"\.env\.yaml stays here"):
        submit.place_in(folder, files, ".env.yaml")


def test_overrides_reach_the_job_whatever_they_hold() -> None:
    text = submit.command("my recipe.yaml", ["a=[1, 2]", "b=$HOME 'x'"])
    show = f"set -- {text}; printf '%s\\n' \"$@\""
    said = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True).stdout
    arguments = ["my recipe.yaml", "--set=a=[1, 2]", "--set=b=$HOME 'x'"]
    assert said.splitlines() == ["python", "-m", "pipeline", "run", *arguments]


def test_only_named_variables_are_handed_on() -> None:
    here = {"TOKEN": "hunter2", "OTHER": "x"}
    assert submit.values_of(["TOKEN"], here) == {"TOKEN": "hunter2"}
    assert submit.values_of([], here) == {}
    with pytest.raises(ClusterError, match="--env MISSING: no such variable here"):
        submit.values_of(["MISSING"], here)


@pytest.mark.parametrize(
    ("status", "code", "exits"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_the_exit_code_is_the_flows(status, code, exits) -> None:
    info = SimpleNamespace(status=status, driver_exit_code=code, submission_id="a", message="")
    assert submit.exit_code(info) == exits


def test_a_job_that_never_began_says_why() -> None:
    facts = {"submission_id": "a", "message": "runtime_env setup failed: no space"}
    info = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=None, **facts)
    with pytest.raises(ClusterError, match="a did not run: runtime_env setup failed: no space"):
        submit.exit_code(info)


@pytest.mark.parametrize("uri", ["http://user:hunter2@host:5000", "https://token@host"])
def test_credentials_in_a_tracking_uri_are_refused_and_not_repeated(uri) -> None:
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_USERNAME") as caught:
        load_recipe("demo", [f"tracking.uri={uri}"])
    assert "hunter2" not in str(caught.value)
    assert "token@" not in str(caught.value)
    assert load_recipe("demo", ["tracking.uri=http://host:5000/a@b"]).tracking.uri


def test_a_mistake_is_found_here_with_the_exit_code_of_a_recipe_to_mend() -> None:
    done = CliRunner().invoke(main, ["submit", "demo", "--set", "net.stride=7"])
    assert done.exit_code == 2
    done = CliRunner().invoke(main, ["submit", "demo"])
    assert done.exit_code == 2
    assert "store=store: a relative path would lie in the job's own folder" in done.output


def test_without_a_cluster_it_says_where_it_looked_and_what_to_do(tmp_path) -> None:
    arguments = ["submit", "demo", "--set=store=/shared/store", "--address=127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--working-dir", str(plant(tmp_path, "a"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "ClusterError: no job server: Failed to connect to Ray at address: http://127.0.0.1:9"
        in (done.stderr)
    )
    assert "Traceback" not in done.stderr
