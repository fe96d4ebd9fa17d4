"""MLflow as a real service with users: who may do what, and what an error says to the others."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.artifacts import load_text

from pipeline.config.schema import TrackingSpec
from pipeline.errors import OutageError, RecipeError, TrackingError
from pipeline.ops.node_probe import why_unreachable
from pipeline.tracking.client import TrackingClient, greet
from tests.conftest import tiny
from tests.server import Server

ADMIN, TRAINER = ("admin", "first-password-of-all"), ("trainer", "a-password-of-its-own")
DOCS = (Path(__file__).parents[3] / "docs" / "mlflow.md").read_text()
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """As the documentation has it, but for its databases."""
    folder = tmp_path_factory.mktemp("server")
    ini = re.search(r"```ini\n(.*?)```", DOCS, re.S)[1]
    (folder / "auth.ini").write_text(
        re.sub(r"database_uri = .*", f"database_uri = sqlite:///{folder}/auth.db", ini)
    )
    one = Server(
        folder,
        ["--app-name", "basic-auth", "--cors-allowed-origins", "https://mlflow.example.org"],
        {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdef" * 2,
        },
    )
    one.flags = [*one.flags, "--allowed-hosts", f"127.0.0.1:{one.port}"]
    try:
        one.start()
        user = dict(zip(("username", "password"), TRAINER, strict=True))
        call(one, "users/create", ADMIN, user).raise_for_status()
        yield one
    finally:
        one.kill()


def call(server: Server, what: str, user, plain, **headers: str) -> requests.Response:
    url = f"{server.uri}/api/2.0/mlflow/{what}"
    return requests.post(url, json=plain, auth=user, headers=headers, timeout=30)


@pytest.fixture
def become(monkeypatch):
    def user(name: str | None, password: str | None = None) -> None:
        for key, value in (("USERNAME", name), ("PASSWORD", password)):
            if value is None:
                monkeypatch.delenv(f"MLFLOW_TRACKING_{key}", raising=False)
            else:
                monkeypatch.setenv(f"MLFLOW_TRACKING_{key}", value)

    return user


@pytest.mark.parametrize(
    ("user", "shown"), [((None,), "not set now"), (("trainer", "wrong"), "trainer")]
)
def test_whoever_has_no_password_learns_which_variables_to_set(
    server, become, tmp_path, user, shown
) -> None:
    become(*user)
    spec = TrackingSpec(uri=server.uri)
    for speak in (lambda: TrackingClient(spec, tmp_path), lambda: greet(spec)):
        with pytest.raises(TrackingError, match="401") as caught:
            speak()
        assert not isinstance(caught.value, OutageError)  # waiting would not help
        assert f"Set MLFLOW_TRACKING_USERNAME ({shown}) and MLFLOW_TRACKING_PASSWORD" in str(
            caught.value
        )


def test_with_the_password_a_run_is_written_and_read_back(server, become, tmp_path) -> None:
    become(*TRAINER)
    spec = TrackingSpec(uri=server.uri)
    greet(spec)
    tracker = TrackingClient(spec, tmp_path)
    run = tracker.open_run("flow", "abc")
    tracker.log_params(run, {"net.stride": "8"})
    tracker.log_rows(run, [(step, {"train/loss": 1.0 / step}) for step in (1, 2, 3)])
    tracker.log_text(run, "name: mine", "recipe.yaml")
    tracker.close_run(run, "FINISHED")
    again = TrackingClient(spec, tmp_path)
    assert again.find_run("abc") == run
    assert again.history(run, "train/loss") == [(s, 1.0 / s) for s in (1, 2, 3)]
    found = again.client.get_run(run)
    assert (found.info.status, found.data.params) == ("FINISHED", {"net.stride": "8"})
    assert load_text(f"{found.info.artifact_uri}/recipe.yaml") == "name: mine"


def test_what_belongs_to_another_user_is_refused_with_a_remedy(server, become, tmp_path) -> None:
    become(*ADMIN)
    TrackingClient(TrackingSpec(uri=server.uri, experiment="secret"), tmp_path)
    become(*TRAINER)
    with pytest.raises(TrackingError, match=r"403.*trainer may not.*tracking\.experiment"):
        greet(TrackingSpec(uri=server.uri, experiment="secret"))


def test_strangers_read_nothing_and_other_names_are_refused_but_health_is_open(server) -> None:
    search = {"max_results": 5}
    assert call(server, "experiments/search", None, search).status_code == 401
    assert call(server, "experiments/search", TRAINER, search).status_code == 200
    elsewhere = call(server, "experiments/search", TRAINER, search, Host="evil.example")
    assert elsewhere.status_code == 403
    assert why_unreachable(f"{server.uri}/health") is None


def test_a_password_in_a_recipe_is_refused_and_not_repeated() -> None:
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        tiny("tracking.uri=https://me:swordfish@mlflow.example.org")
    assert "swordfish" not in str(caught.value)
