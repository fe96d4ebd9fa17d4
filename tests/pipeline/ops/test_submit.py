"""What a job takes along and what it never does; what is refused before anything is sent."""

import io
import json
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from click.testing import CliRunner
from ray.job_submission import JobStatus, JobSubmissionClient

import fcn
import pipeline
from pipeline.cli import main
from pipeline.config.recipe import load_recipe
from pipeline.errors import ClusterError, RecipeError
from pipeline.ops import submit
from pipeline.ops.package import EXCLUDES, is_excluded

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


class JobServer(BaseHTTPRequestHandler):
    """What Ray's client needs of a job server: it keeps what it is sent and runs nothing."""

    packages: dict[str, bytes]
    jobs: list[dict]
    refusal = ""

    def answer(self, code: int, content: bytes = b"{}") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        self.answer(200 if known else 404, json.dumps({"ray_version": ray.__version__}).encode())

    def do_PUT(self) -> None:
        self.packages[self.path.rpartition("/")[2]] = self.body()
        self.answer(500 if self.refusal else 200, self.refusal.encode())

    def do_POST(self) -> None:
        job = json.loads(self.body())
        self.jobs.append(job)
        name = job.get("submission_id") or "made-up"
        self.answer(200, json.dumps({"job_id": name, "submission_id": name}).encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # what a submission sets is taken back
    handler = type("Handler", (JobServer,), {"packages": {}, "jobs": []})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        handler.address = f"http://127.0.0.1:{http.server_port}"
        yield handler
        http.shutdown()


def sent(server, uri: str) -> list[str]:
    """The files of a package that was uploaded."""
    with zipfile.ZipFile(io.BytesIO(server.packages[uri.rpartition("/")[2]])) as archive:
        return sorted(name for name in archive.namelist() if not name.endswith("/"))


def send(server, folder: Path, recipe: str = "demo") -> dict:
    """The job's runtime environment, sent by the public interface of Ray's client."""
    target = submit.Target(server.address, folder, "named")
    job = submit.submit(recipe, ["store=/shared/store"], target)
    assert (job.name, job.address) == ("named", server.address)
    return server.jobs[-1]["runtime_env"]


def test_the_package_holds_the_code_and_neither_secrets_nor_results(tmp_path, server) -> None:
    folder = plant(tmp_path / "work", *KEPT, *SECRET, *LARGE, "skipped.bin", "odd/.rayignore")
    (folder / ".gitignore").write_text("skipped.bin\n")
    (folder / "odd" / ".rayignore").write_text("*\n")
    env = send(server, folder)
    assert sent(server, env["working_dir"]) == sorted([*KEPT, ".gitignore"])
    assert "py_modules" not in env
    assert env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
    assert server.jobs[0]["entrypoint"] == "python -m pipeline run demo --set=store=/shared/store"


def test_a_folder_without_the_code_is_sent_with_the_code_that_is_installed(
    tmp_path, server
) -> None:
    names = ["mine.yaml", "data/images/a.png", "data/loader.txt", *SECRET]
    env = send(server, plant(tmp_path / "work", *names))
    assert sent(server, env["working_dir"]) == ["mine.yaml"]
    modules = [sent(server, uri) for uri in env["py_modules"]]
    for module, files in zip((fcn, pipeline), modules, strict=True):
        root = Path(module.__file__).parent
        code = [p.relative_to(root.parent).as_posix() for p in root.rglob("*")]
        assert files == sorted(p for p in code if p.endswith((".py", ".yaml")))


@pytest.mark.parametrize("with_code", [True, False])
def test_links_stay_here_and_are_named(tmp_path, server, caplog, with_code) -> None:
    """Ray alone would send what they point at: a secret from elsewhere under a harmless name."""
    folder = plant(tmp_path / "work", "mine.yaml", "inside/notes.txt", ".env", "store/a")
    code = ["pipeline/__init__.py"] if with_code else []
    plant(folder, *code)
    plant(tmp_path, "outside/key.txt", "wallet.txt")
    odd = "notes [1]!*? #.txt"
    (folder / "readme.txt").symlink_to(tmp_path / "wallet.txt")
    (folder / "inside" / odd).symlink_to(tmp_path / "wallet.txt")
    (folder / "pictures").symlink_to(tmp_path / "outside")
    (folder / "settings.txt").symlink_to(".env")
    (folder / "store" / "newest").symlink_to("a")  # stays here anyway
    env = send(server, folder)
    assert sent(server, env["working_dir"]) == sorted(["inside/notes.txt", "mine.yaml", *code])
    assert not any(b"hunter2 in wallet" in content for content in server.packages.values())
    for name in ("readme.txt", odd, "pictures", "settings.txt"):
        assert name in caplog.text
    assert "newest" not in caplog.text


def test_rayignore_makes_a_plain_ray_job_submit_leave_out_the_same(tmp_path, server) -> None:
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert tuple(line for line in lines if line and line[0] != "#") == EXCLUDES
    folder = plant(tmp_path / "work", *KEPT, *SECRET, *LARGE)
    (folder / ".rayignore").write_text("\n".join(lines))
    JobSubmissionClient(server.address).submit_job(
        entrypoint="true", runtime_env={"working_dir": str(folder)}
    )
    (package,) = server.packages
    assert sent(server, package) == sorted([*KEPT, ".rayignore"])


def test_this_project_s_package_is_its_source(server) -> None:
    files = sent(server, send(server, ROOT)["working_dir"])
    assert sum(map(len, server.packages.values())) < 5 * 2**20
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    there = {name for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert there
    assert there <= {*files}, "the excludes hit a file of the project"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (
            "Traceback\nValueError: Package size (600.00MiB) exceeds the maximum size of 512.00MiB.",
            ("600.00MiB", "512 MiB"),
        ),
        ("413: Maximum request body size 104857600 exceeded", ("100 MiB",)),
    ],
)
def test_a_folder_that_is_too_large_is_refused_with_limit_and_remedy(
    tmp_path, server, refusal, words
) -> None:
    server.refusal = refusal
    with pytest.raises(ClusterError, match=r"\.rayignore") as error:
        send(server, plant(tmp_path / "work", *KEPT))
    for word in words:
        assert word in str(error.value)
    assert server.jobs == []


def test_a_password_in_the_address_is_not_printed() -> None:
    client = SimpleNamespace(get_address=lambda: "https://user:hunter2@host:8265")
    job = submit.Submitted(client, "named")
    assert job.address == "https://host:8265"
    assert "hunter2" not in job.how_to()


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
        submit.require_shared_paths(recipe)


@pytest.mark.parametrize(
    "weights", ["package", "torchvision", "run:demo", "models:/demo@champion", "/shared/vgg.pth"]
)
def test_what_all_nodes_share_is_accepted(weights) -> None:
    sets = ["store=/shared/store", "data.root=/shared/camvid", f"transplant.weights={weights}"]
    submit.require_shared_paths(load_recipe("demo", sets))


def test_the_job_finds_the_recipe_by_name_or_inside_the_package(tmp_path, monkeypatch) -> None:
    folder = plant(tmp_path / "work", "recipes/mine.yaml", ".env.yaml")
    plant(tmp_path, "other.yaml")
    monkeypatch.chdir(folder)
    assert submit.path_in(folder, "camvid") == "camvid"
    assert submit.path_in(folder, "recipes/mine.yaml") == "recipes/mine.yaml"
    inside = str(folder / "recipes" / "mine.yaml")
    assert submit.path_in(folder, inside) == "recipes/mine.yaml"
    with pytest.raises(RecipeError, match="copy it there, or name its folder with --working-dir"):
        submit.path_in(folder, "../other.yaml")
    with pytest.raises(RecipeError, match=r"\.env\.yaml is never sent.*rename"):
        submit.path_in(folder, ".env.yaml")


def test_what_is_excluded_is_what_ray_leaves_out(tmp_path, server) -> None:
    names = [*KEPT, *SECRET, *LARGE, "a/store/b", "a/build/c", "x_cache", ".x_cache/d", "env"]
    folder = plant(tmp_path / "work", *names)
    files = sent(server, send(server, folder)["working_dir"])
    assert files == sorted(name for name in names if not is_excluded(Path(name)))


def test_overrides_reach_the_job_whatever_they_hold() -> None:
    text = submit.command("my recipe.yaml", ["a=[1, 2]", "b=$HOME 'x'"])
    show = f"set -- {text}; printf '%s\\n' \"$@\""
    output = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True).stdout
    arguments = ["my recipe.yaml", "--set=a=[1, 2]", "--set=b=$HOME 'x'"]
    assert output.splitlines() == ["python", "-m", "pipeline", "run", *arguments]


def test_only_named_variables_are_handed_on(tmp_path, server, monkeypatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    monkeypatch.setenv("OTHER", "x")
    folder, sets = plant(tmp_path / "work", *KEPT), ["store=/shared/store"]
    submit.submit("demo", sets, submit.Target(server.address, folder, env=("TOKEN",)))
    variables = server.jobs[-1]["runtime_env"]["env_vars"]
    assert variables == {"RAY_JOB_STOP_WAIT_TIME_S": "300", "TOKEN": "hunter2"}
    with pytest.raises(ClusterError, match=r"--env MISSING: .*export it first"):
        submit.submit("demo", sets, submit.Target(server.address, folder, env=("MISSING",)))


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
