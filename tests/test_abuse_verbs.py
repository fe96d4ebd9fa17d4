"""Verbs that are given what they cannot use: submit, drill, gc, plan, and the search's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tuning.search  # noqa: F401 - takes seconds, which no refusal may take
from fcn.weights import read_weights
from pipeline.cli import main
from pipeline.config.recipe import load_recipe
from pipeline.ops import submit
from pipeline.ops.drill import DrillResult, FaultResult, verdict
from tests.abuse import SECRET, refused, require
from tuning.cli import main as tune

BIG = "9" * 400
DUPLICATE = """finetune.optimizer.lr: {log: [1.0e-5, 1.0e-2]}
finetune.optimizer.lr: {log: [1.0e-5, 1.0e-3]}
"""
PIPELINE = [
    ("plan demo --set store=file", 1, "folder that you may write"),
    ("run demo --set store=file", 1, "folder that you may write"),
    ("ingest demo --set store=file/x", 1, "folder that you may write"),
    ("run demo --set store=/proc/x", 1, "folder that you may write"),
    ("plan demo --set store=/dev/null", 1, "folder that you may write"),
    (f"plan demo --set store={'s' * 300}", 1, "folder that you may write"),
    ("plan demo --set store=ftp://host/x", 1, "ftp://host/x"),
    ("plan demo --set transplant.weights=fifo", 1, "give torchvision, package, a file"),
    ("plan demo --set transplant.weights=/dev/zero", 1, "give torchvision, package, a file"),
    ("plan demo --set transplant.weights=.", 1, "give torchvision, package, a file"),
    ("plan demo --set transplant.weights=run:nobody", 1, "no finished run of that name"),
    ("plan demo --set transplant.weights=run:../../x", 1, "no finished run of that name"),
    ("plan demo --set transplant.weights=models:/x@champion", 1, "tracking.uri"),
    ("plan camvid --set data.root=file", 1, "set data.root"),
    ("plan camvid", 2, "--set data.root=FOLDER"),
    ("plan demo --cluster --set cluster.address=127.0.0.1:9", 1, "cluster.address"),
    ("gc --store file", 1, "name one with --store"),
    ("gc --store nowhere", 1, "name one with --store"),
    ("gc --store fifo", 1, "name one with --store"),
    ("gc --store ftp://host/x", 1, "ftp://host/x"),
    (f"gc --store s3://K:{SECRET}@bucket", 2, "environment"),
    ("drill demo --tolerance nan", 2, "--tolerance"),
    ("drill demo --tolerance inf", 2, "--tolerance"),
    ("drill demo --tolerance -1", 2, "--tolerance"),
    ("drill demo --faults worker,flood", 2, "flood is none of worker, loader"),
    ("drill demo --faults ,", 2, "none of worker, loader"),
    ("drill demo --times 0", 2, "x>=1"),
    ("drill demo --seed x", 2, "valid integer"),
    ("drill demo --set transplant.weights=run:x", 2, "drill with package"),
    ("submit demo", 2, "--set store=/shared/store"),
    ("submit nothing --set store=/shared/x", 2, "recipes are camvid"),
    ("submit demo --set store=/shared/x --working-dir nowhere", 2, "does not exist"),
    ("submit demo --set store=/shared/x --working-dir file", 2, "is a file"),
    ("submit demo --set store=/shared/x --env NOT_SET_HERE", 1, "export it first"),
    (f"submit demo --set store=/shared/x --env PW={SECRET}", 1, "give the name alone"),
    (
        "submit demo --set store=/shared/x --address http://127.0.0.1:9",
        1,
        "--address names another",
    ),
    (f"submit demo --set store=/shared/x --address http://u:{SECRET}@h", 2, "environment"),
    ("submit secrets.yaml --set store=/shared/x", 2, "rename or move it"),
    ("submit own.yaml --set store=/shared/x --working-dir work", 2, "--working-dir"),
    ("nothing", 2, "No such command"),
    ("run", 2, "Missing argument 'RECIPE'"),
    ("show demo --set", 2, "requires an argument"),
    ("show demo --bad", 2, "No such option"),
    ("show demo extra", 2, "unexpected extra argument"),
    ("show ../nothing", 2, "recipes are camvid"),
]
TUNE = [
    ("status nobody", 1, "there is no search nobody"),
    ("status ../x", 1, "there is no search"),
    ("status nobody --store file", 1, "store"),
    (f"status nobody --store s3://K:{SECRET}@bucket", 2, "environment"),
    ("best nobody", 1, "there is no search nobody"),
    ("report nobody", 1, "there is no search nobody"),
    ("resume nobody", 1, "there is no search nobody"),
    (f"search demo --budget {BIG}", 2, "such as 2h"),
    (f"search demo --budget {BIG}h", 2, "such as 2h"),
    ("search demo --budget nan", 2, "such as 2h"),
    ("search demo --budget 0", 2, "such as 2h"),
    ("search demo --trials 0", 2, "greater than 0"),
    (f"search demo --trials {BIG}", 2, "less than or equal to 1000000000"),
    ("search demo --space fifo", 2, "give a file"),
    ("search demo --space /dev/zero", 2, "give a file"),
    ("search demo --space twice.yaml", 2, "is given twice, in lines 1 and 2"),
    ("search demo --space nothing.yaml", 2, "cannot be read"),
    ("search demo --max-failed nan", 2, "finite number"),
    ("search demo --max-failed 2", 2, "less than or equal to 1"),
    ("search demo --workers 0", 2, "greater than 0"),
    ("search demo --name a/b", 2, "match pattern"),
    (f"search demo --name {'n' * 300}", 2, "at most 100 characters"),
    ("search demo --sampler guess", 2, "tpe"),
    ("search demo --seed -1", 2, "greater than or equal to 0"),
    ("search nothing", 2, "recipes are camvid"),
    ("space camvid", 2, "--set data.root=FOLDER"),
    ("space demo --space twice.yaml", 2, "is given twice"),
    ("space demo --trials 0", 2, "x>=1"),
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("words")
    (tmp_path / "twice.yaml").write_text(DUPLICATE)
    (tmp_path / "work").mkdir()
    for name in ("secrets.yaml", "own.yaml"):
        (tmp_path / name).write_text(load_recipe("demo").to_yaml())
    return tmp_path


@pytest.mark.parametrize(("line", "code", "word"), PIPELINE, ids=[row[0][:60] for row in PIPELINE])
def test_the_pipeline_answers_with_a_code_and_a_remedy(here, line, code, word) -> None:
    require(main, line.split(" "), code, word)
    assert not (here / "store").exists()


@pytest.mark.parametrize(("line", "code", "word"), TUNE, ids=[row[0][:60] for row in TUNE])
def test_the_search_answers_with_a_code_and_a_remedy(here, line, code, word) -> None:
    require(tune, line.split(" "), code, word)
    assert not (here / "store").exists()


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("-m pipeline show /dev/zero", 2, "give a file"),
        ("-m pipeline show fifo", 2, "give a file"),
        ("-m pipeline show demo --set finetune.micro_batch=1e9", 2, "finetune.micro_batch"),
        (f"-m pipeline show demo --set tracking.uri=http://u:{SECRET}@h", 2, "environment"),
        ("-m pipeline run demo --set store=file", 1, "folder that you may write"),
        ("-m tuning search demo --space twice.yaml", 2, "is given twice"),
    ],
)
def test_a_process_of_its_own_answers_the_same(here, line, code, word) -> None:
    done = subprocess.run(
        [sys.executable, *line.split(" ")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert word in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_path_with_brackets_is_planned_and_printed(here) -> None:
    assert refused(main, "plan", "demo", "--set", "store=x[/x]y").exit_code == 0


# --- submit


LEFT = [
    *("prod.env", ".secrets", "api_token.txt", "my-credential.json", "service-account-1.json"),
    *(
        "terraform.tfstate",
        "terraform.tfstate.backup",
        "auth.ini",
        ".dockerconfigjson",
        "id_deploy",
    ),
    *("server.pem", "ID_RSA", "Prod.ENV", "db_password.txt", "keys/a.ppk", ".vault_pass"),
]
TAKEN = ["mine.yaml", "lib/tokenizer.py", "lib/secretary.py", "notes.txt", "authors.md"]


def test_a_dry_run_lists_the_package_and_shows_what_is_left(here, caplog) -> None:
    work = here / "work"
    for name in (*LEFT, *TAKEN):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(SECRET)
    for name, target in (("up", ".."), ("root", "/etc"), ("here", "."), ("wallet.txt", "../file")):
        (work / name).symlink_to(target)
    os.mkfifo(work / "pipe")
    Path(os.fsdecode(bytes(work / "caf") + b"\xe9.txt")).write_text("x")
    done = refused(
        main, "submit", "demo", "--set", "store=/shared/x", "--dry-run", "--working-dir", "work"
    )
    assert done.exit_code == 0
    listed = {line.split()[-1] for line in done.stdout.splitlines()}
    assert set(TAKEN) <= listed
    assert not {*LEFT, "pipe", "wallet.txt"} & listed
    assert not any(name.startswith(("up", "root", "here", "caf")) for name in listed)
    assert "python -m pipeline run demo" in done.stdout
    for name in (*(n for n in LEFT if "/" not in n), "up", "root", "here", "wallet.txt", "pipe"):
        assert name in caplog.text


def test_the_commands_that_follow_a_job_quote_its_name() -> None:
    job = submit.Submitted.__new__(submit.Submitted)
    job.address, job.name = "http://h:8265", "a;touch X"
    assert "--follow 'a;touch X'" in job.how_to()
    assert "http://h:8265 'a;touch X'" in job.how_to()


# --- drill


class Late:
    """A drill of which one training was struck, and a fault never came in time."""

    def __init__(self, *_: object) -> None:
        self.missed: list[str] = []

    def run(self, *_: object):
        yield DrillResult([FaultResult("worker", 3, 9, 1.0)], 4, 0, 5, 0, 0.0)
        self.missed = ["driver"]


class Failing(Late):
    """A drill that ends by an error after its first training."""

    def run(self, *_: object):
        yield from super().run()
        raise submit.ClusterError("the training in x failed")


@pytest.mark.parametrize(("kind", "code"), [(Late, 3), (Failing, 1)])
def test_a_drill_prints_what_it_found_however_it_ends(monkeypatch, here, kind, code) -> None:
    monkeypatch.setattr("pipeline.ops.drill.Drill", kind)
    done = refused(main, "drill", "demo", "--faults", "worker,driver")
    assert done.exit_code == code
    assert "3 of 9" in done.output
    assert "equal" in done.output
    assert ("driver came too late each time; train for longer" in done.output) is (code == 3)


def test_a_difference_counts_more_than_a_fault_that_was_late() -> None:
    different = DrillResult([FaultResult("worker", 3, 9, 1.0)], 4, 1, 5, 0, 0.5)
    assert "0 of 1 trainings with 1 faults" in verdict([different], ["driver"])


# --- weights


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pth", b"e hello world"),
        ("empty.pth", b""),
        ("zip.pth", b"PK\x03\x04" + bytes(100)),
        ("pickle.pth", b"\x80\x04K\x05."),
        ("int.safetensors", b"\xff" * 16),
        ("huge.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ],
)
def test_weights_that_are_none_are_named(here, name, content) -> None:
    (here / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_weights(here / name)


def test_weights_by_number_are_no_state_dict(here) -> None:
    torch.save({1: torch.zeros(2)}, here / "numbers.pth")
    with pytest.raises(ValueError, match="state dict of tensors by name"):
        read_weights(here / "numbers.pth")
