"""What a user types and reads."""

import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.config.recipe import load_recipe


def call(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_help_lists_the_verbs_and_loads_no_torch() -> None:
    code = "import sys, pipeline.cli as c; c.main(['--help'], standalone_mode=False); " + (
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'mlflow', 'albumentations')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in (
        "run",
        "plan",
        "ingest",
        "transplant",
        "finetune",
        "evaluate",
        "register",
        "predict",
        "export-data",
        "gc",
    ):
        assert f"\n  {verb} " in done.stdout


def test_recipes_are_listed_and_shown_as_files_that_load(tmp_path) -> None:
    assert "demo " in call("recipes").output
    shown = call("show", "demo", "--set", "finetune.epochs=3")
    path = tmp_path / "shown.yaml"
    path.write_text(shown.output)
    assert load_recipe(str(path)) == load_recipe("demo", ["finetune.epochs=3"])


@pytest.mark.parametrize("verb", ["run", "plan", "show", "ingest"])
def test_a_recipe_to_mend_exits_with_2_and_without_traceback(verb) -> None:
    done = call(verb, "demo", "--set", "finetune.epoch=3", "--set", "net.stride=7")
    assert done.exit_code == 2
    assert "RecipeError: demo: 2 mistakes" in done.output
    assert "Traceback" not in done.output


def test_a_missing_data_folder_exits_with_1_and_the_remedy() -> None:
    done = call("run", "camvid", "--set", "data.root=/nowhere")
    assert done.exit_code == 1
    assert "DataError: /nowhere/train is not a folder; set data.root" in done.output


def test_a_recipe_over_folders_is_shown_but_not_run_without_them() -> None:
    assert call("show", "camvid").exit_code == 0
    done = call("run", "camvid")
    assert done.exit_code == 2
    assert "camvid: data.root is missing; --set data.root=FOLDER names it" in done.output


def test_missing_weights_exit_with_1_and_the_choices(tmp_path) -> None:
    for weights in ("/nowhere.pth", "run:nobody"):
        done = call(
            "plan", "demo", "--set", f"transplant.weights={weights}", "--set", f"store={tmp_path}"
        )
        assert done.exit_code == 1
        assert "WeightsError" in done.output
        assert "nobody" in done.output or "run:NAME" in done.output


def test_a_plan_names_each_step_what_it_needs_and_takes_nothing(tmp_path) -> None:
    began = time.monotonic()
    done = call("plan", "demo", "--set", f"store={tmp_path / 'store'}")
    assert done.exit_code == 0, done.output
    for step in ("ingest", "transplant", "finetune-8s", "evaluate", "register"):
        assert step in done.output
    assert not (tmp_path / "store").exists()
    assert time.monotonic() - began < 60


def test_predicting_with_a_model_that_is_not_there_is_an_error(tmp_path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"no image")
    done = call(
        "predict", "run:nobody", str(picture), "-o", str(tmp_path), "--store", str(tmp_path)
    )
    assert done.exit_code == 1
    assert "no finished run of that name" in done.output
    done = call("predict", str(tmp_path), str(picture), "-o", str(tmp_path))
    assert "holds no net" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "worker,flood"], "--faults: flood is none of worker, loader, node"),
        (["--set", "transplant.weights=run:demo"], "a drill trains in stores of its own"),
    ],
)
def test_a_drill_that_cannot_be_held_is_refused(arguments, words, tmp_path) -> None:
    done = call("drill", "demo", "--set", f"store={tmp_path}", *arguments)
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize("module", ["pipeline", "tuning"])
def test_python_dash_m_does_the_same(module) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage:" in done.stdout
