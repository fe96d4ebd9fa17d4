"""What a finished flow says when something of it was lost or changed behind its back."""

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fcn import weights
from pipeline import results
from tests.pipeline.test_flow import run, tracker, trained_net

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lost") / "store"
    assert "champion now models:/demo/1" in run(folder)
    return folder


def test_the_closing_line_says_who_is_champion_now_though_nothing_was_computed(store) -> None:
    client = tracker(store).client
    first = client.get_model_version("demo", "1")
    other = client.create_model_version("demo", first.source, first.run_id)
    client.set_registered_model_alias("demo", "champion", other.version)
    output = run(store)
    assert "nothing changed, so nothing was computed again" in output
    assert f"champion now models:/demo/{other.version}" in output
    client.delete_registered_model_alias("demo", "champion")
    assert "champion now nobody: models:/demo has none" in run(store)


def test_a_lost_database_and_a_lost_net_are_made_again_and_the_net_is_the_same(store) -> None:
    net = trained_net(store)
    content = net.read_bytes()
    net.unlink()
    (store / "mlflow.db").unlink()
    shutil.rmtree(store / "mlruns")
    output = run(store)
    assert "net.safetensors is missing or of another size; it is made again" in output
    assert re.search(r"models:/demo/\d is not in MLflow any more; it is registered again", output)
    assert "finetune-8s computed" in output
    assert "evaluate unchanged" in output
    assert "champion now models:/demo/1" in output
    assert trained_net(store).read_bytes() == content
    # Read as a file: a client of this process would go on reading the database that was removed.
    with sqlite3.connect(store / "mlflow.db") as database:
        steps = database.execute("select step from metrics where key = 'train/loss' order by step")
        assert [step for (step,) in steps] == list(range(1, 13))
        aliases = database.execute("select alias, version from registered_model_aliases")
        assert list(aliases) == [("champion", 1)]


def test_a_version_that_was_deleted_is_registered_again(store) -> None:
    code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).delete_registered_model('demo')"
    uri = f"sqlite:///{store / 'mlflow.db'}"
    subprocess.run([sys.executable, "-c", code, uri], check=True, capture_output=True)
    output = run(store)
    assert "it is registered again" in output
    assert "register computed" in output
    assert "finetune-8s unchanged" in output
    assert "champion now models:/demo/1" in output


def test_both_layers_name_the_file_of_a_net_alike() -> None:
    assert results.NET == weights.NET
