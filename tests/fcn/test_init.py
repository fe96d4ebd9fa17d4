"""What `import fcn` offers."""

import doctest
import subprocess
import sys

import fcn


def test_the_public_names_are_these() -> None:
    assert fcn.__all__ == [
        "BACKBONES",
        "FCN",
        "VOID",
        "Blueprint",
        "ClassTable",
        "Confusion",
        "Preprocessing",
        "Receipt",
        "load_net",
        "predict",
        "read_weights",
        "save_net",
        "transplant_classifier",
        "transplant_net",
    ]
    for name in fcn.__all__:
        assert getattr(fcn, name) is not None


def test_the_example_in_the_docstring_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(fcn)
    assert result.attempted >= 5
    assert not result.failed


def test_labels_need_no_torch() -> None:
    """The command line reads class tables before it knows whether it needs torch's seconds."""
    code = "import sys, fcn.labels; from fcn import VOID; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
