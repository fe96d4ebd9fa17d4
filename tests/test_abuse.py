"""Recipes that are hostile or careless: each is refused with an exit code and a word of the remedy.

The other tables are in test_abuse_predict.py and test_abuse_verbs.py.
"""

import os

import pytest
from click.testing import CliRunner

import pipeline.ops.drill  # noqa: F401 - takes seconds, which no refusal may take
from pipeline.cli import main
from pipeline.config.recipe import load_recipe
from tests.abuse import SECRET, refused, require

LONG = "x" * 5000
FOLDER = (
    "data.source=folder",
    "data.splits={train: {images: a, labels: b}, val: {images: c, labels: d}}",
)
OVERRIDES = [
    # numbers
    ("finetune.micro_batch=1000000000", "use micro_batch=16"),
    (f"finetune.micro_batch={'9' * 31}", "a number of 31 digits"),
    (f"finetune.micro_batch={'9' * 30}", "less than or equal to 1000000000"),
    (f"seed={'9' * 5000}", "a number of 5000 digits"),
    (f"seed=0x{'f' * 50}", "a number of 52 digits"),
    ("seed=9223372036854775808", "less than"),
    ("seed=-1", "greater than or equal to 0"),
    ("seed=1.5", "valid integer"),
    ("seed=true", "is given where a number"),
    ("finetune.epochs=true", "is given where a number"),
    ("finetune.epochs=0", "greater than 0"),
    ("finetune.epochs=1e400", "finetune.epochs"),
    ("finetune.optimizer.lr=0", "greater than 0"),
    ("finetune.optimizer.lr=.inf", "finite number"),
    ("finetune.optimizer.lr=.nan", "finite number"),
    ("finetune.optimizer.lr=fast", "valid number"),
    ("finetune.optimizer.weight_decay=true", "is given where a number"),
    ("finetune.optimizer.momentum=1", "less than 1"),
    ("finetune.augment.crop_px=[0, 10]", "greater than 0"),
    ("finetune.augment.crop_px=[true, 10]", "is given where a number"),
    ("finetune.augment.crop_px=[100000, 100000]", "less than or equal to 16384"),
    ("finetune.augment.scale=[1.0e-9, 1.0e-9]", "greater than or equal to 0.1"),
    ("finetune.augment.scale=[2, 1]", "write the smaller factor first"),
    ("finetune.augment.flip_prob=2", "less than or equal to 1"),
    ("data.shapes.num_train=-1", "greater than 0"),
    ("data.shapes.num_train=99999999999", "less than or equal to 1000000000"),
    ("data.void_ids=[x]", "valid integer"),
    ("cluster.num_workers=true", "num_workers"),
    ("cluster.num_workers=[2, 1]", "[min, max]"),
    ("cluster.num_workers=1000000", "use at most 2 workers"),
    ("cluster.cpus_per_worker=0", "greater than 0"),
    ("cluster.cpus_per_worker=.inf", "finite number"),
    ("cluster.gpus_per_worker=1.5", "less than or equal to 1"),
    ("evaluate.num_pictures=-1", "greater than or equal to 0"),
    # texts
    ("name=", "write name=null"),
    ("tracking.uri=", "write tracking.uri=null"),
    ("tracking.uri=''", "the text is empty"),
    ("tracking.uri='  '", "the text is empty"),
    ("tracking.experiment=''", "the text is empty"),
    (f"tracking.experiment={'x' * 600}", "at most 100 characters"),
    ("store=''", "the text is empty"),
    (f"store={LONG}", "write at most 4,096"),
    ('store="a\\nb"', "printable"),
    ('store="a\\0b"', "printable"),
    ('store="\\e[31mred"', "printable"),
    ("store=a\udce9b", "printable"),
    ("name=a\udce9b", "printable"),
    ("cluster.num_workers=\udce9", "num_workers"),
    ("store=a #b", "put the value in quotes"),
    ("data.root=a #b", "put the value in quotes"),
    ('register.model="a\\nb"', "printable"),
    (f"register.model={'x' * 101}", "at most 100 characters"),
    ("register.model=a/b", "set register.model to a name without"),
    ("register.model=a:b", "set register.model to a name without"),
    ("register.model=it's", "set register.model to a name without"),
    ("register.model=a@b", "set register.model to a name without"),
    ("name=fcn-1.5", "set register.model to a name without"),
    (f"name={'a' * 101}", "at most 100 characters"),
    (f"name={'a' * 300}", "at most 100 characters"),
    ("name=a b", "match pattern"),
    ("name=../up", "match pattern"),
    ("name=[/x]", "valid string"),
    ("name=[bold]x", "match pattern"),
    ("net.backbone=vgg17", "efficientnet_lite0"),
    ("net.stride=7", "8, 16 or 32"),
    ("finetune.precision=fp16", "bf16"),
    ("transplant.weights=models:/x", "write models:/NAME@champion"),
    ("transplant.weights=models:/", "write models:/NAME@champion"),
    ("transplant.weights=models:/x/latest", "write models:/NAME@champion"),
    ("store=s3:/bucket", "a URI such as s3://bucket/prefix"),
    # shapes of values
    ("finetune=1", "valid dictionary"),
    ("finetune=[]", "valid dictionary"),
    ("finetune=null", "valid dictionary"),
    ("finetune.phases={}", "valid tuple"),
    ("seed={}", "valid integer"),
    ("seed=[[[[[[]]]]]]", "valid integer"),
    (f"seed={'[' * 40}{']' * 40}", "nested more than 30 deep"),
    (f"seed={'[' * 20000}", "nested more than 30 deep"),
    ("seed=&a [*a]", "an alias lies inside"),
    ("seed={a: 1, a: 2}", "a is given twice"),
    ("seed=!!python/object/apply:os.system [id]", "a value has a tag"),
    ("seed=!!timestamp x", "a value has a tag"),
    ("seed=!!binary aGk=", "a value has a tag"),
    ("data.shapes.num_train.x=1", "valid integer"),
    # keys
    ("finetune.epoch=3", "did you mean epochs?"),
    ("data.splits={train: {imges: a}}", "did you mean images?"),
    ("a.b=1", "no such key"),
    (".=1", "write KEY=VALUE"),
    ("=1", "write KEY=VALUE"),
    ("finetune", "write KEY=VALUE"),
    (f"{'a.' * 5000}a=1", "write KEY=VALUE"),
    # what later stages would refuse
    ("transplant=null", "needs a transplant section"),
    ("finetune.batch_norm=sync", "needs cluster.use_gpu=true"),
    ("data.source=coco9", "known are"),
    ("data.classes=[a, b]", "leave classes and label_map out"),
    ("evaluate.split=val2", "'train', 'val' or 'test'"),
    # credentials
    (f"tracking.uri=http://u:{SECRET}@h", "give credentials by the environment"),
    (f"tracking.uri=https://{SECRET}@h", "give credentials by the environment"),
    (f"tracking.uri=https://h/?token={SECRET}", "give credentials by the environment"),
    (f"tracking.uri=postgresql://u:{SECRET}@h/db", "give credentials by the environment"),
    (f"store=s3://u:{SECRET}@b/x", "give credentials by the environment"),
    (f"store=s3://{SECRET}@b/x", "give credentials by the environment"),
    (f"store=gs://b?access_token={SECRET}", "give credentials by the environment"),
    (f"store=abfss://c:{SECRET}@a.dfs.core.windows.net/x", "give credentials by the environment"),
    (f"store=abfs://c@a/x?sig={SECRET}", "give credentials by the environment"),
    (
        f"store=s3://b?endpoint_override=http%3A%2F%2Fu%3A{SECRET}%40h",
        "give credentials by the environment",
    ),
    (f"data.root=https://u:{SECRET}@h/x", "give credentials by the environment"),
    (f"cluster.address=ray://u:{SECRET}@h:10001", "give credentials by the environment"),
    (f"register.model=https://h/x?password={SECRET}", "give credentials by the environment"),
    (f"name=https://h/x?api_key={SECRET}", "give credentials by the environment"),
]
CLASSES = [
    ("[a]", "at least 2"),
    ("[a, a, b]", "is given twice"),
    (f"[{', '.join(f'c{i}' for i in range(256))}]", "2 to 255"),
    ("[a, '']", "the text is empty"),
    ('[a, "b\\nc"]', "printable"),
    (f"[a, {'b' * 101}]", "write 1 to 100"),
    ("[a, ..]", "write 1 to 100"),
    ("['a(', 'a)']", "would both be called a_ in MLflow; rename one"),
    ("[{name: a, colour: [300, -1, 0]}, b]", "of 0 to 255"),
    ("[{name: a, colour: [1, 2]}, b]", "colour"),
    ("[{name: a, colour: red}, b]", "colour"),
    ("[{name: a, color: [1, 2, 3]}, b]", "did you mean colour?"),
    ("[true, b]", "classes"),
    ("a", "classes"),
]
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900))
FILES = [
    ("twice", b"name: a\nseed: 1\nseed: 2\n", "seed is given twice, in lines 2 and 3"),
    ("twice_inside", b"name: a\nnet: {stride: 8, stride: 16}\n", "stride is given twice"),
    ("bomb", BOMB.encode(), "stands for more than 20,000 values"),
    ("chain", CHAIN.encode(), "nested more than 30 deep"),
    ("recursion", b"name: &a [*a]\n", "an alias lies inside"),
    ("large", b"# " + b"x" * 10**6, "larger than 100,000 bytes"),
    ("deep", b"[" * 90000, "nested more than 30 deep"),
    ("many", b"a: [" + b"1," * 40000 + b"]", "stands for more than 20,000 values"),
    ("digits", b"seed: " + b"9" * 5000, "a number of 5000 digits"),
    ("latin1", b"name: caf\xe9\n", "utf-8"),
    ("utf16", "name: a\n".encode("utf-16"), "utf-8"),
    ("nul", b"name: a\0b\n", "is not YAML"),
    ("empty", b"", "holds NoneType"),
    ("text", b"hello", "holds str"),
    ("list", b"[1, 2]", "holds list"),
    ("open", b"a: [", "is not YAML"),
    ("tabs", b"a:\n\t- b", "is not YAML"),
    ("tag", b"a: !!python/name:os.system", "a value has a tag"),
    ("odd_key", b"? [a, b]\n: 1\n", "a key is no single value"),
    ("undefined_alias", b"a: *b\n", "is not YAML"),
    ("two_documents", b"a: 1\n---\nb: 2\n", "is not YAML"),
    ("number_keys", b"1: 2\n", "keys should be strings"),
    ("null_key", b"~: 2\n", "keys should be strings"),
    ("secret_key", f"http://u:{SECRET}@h: 1\n".encode(), "give credentials by the environment"),
    ("merge", b"a: &a {b: 1}\nname: {<<: *a}\n", "valid string"),
]


@pytest.mark.parametrize(("override", "word"), OVERRIDES, ids=lambda text: text[:40])
def test_an_override_that_cannot_be_taken_is_a_recipe_to_mend(override, word) -> None:
    require(main, ["show", "demo", "--set", override], 2, word)


@pytest.mark.parametrize(("classes", "word"), CLASSES, ids=lambda text: text[:40])
def test_classes_that_no_score_or_picture_could_show_are_refused(classes, word) -> None:
    sets = [f"--set={each}" for each in (*FOLDER, f"data.classes={classes}")]
    require(main, ["show", "demo", *sets], 2, word)


@pytest.mark.parametrize(("name", "content", "word"), FILES, ids=[row[0] for row in FILES])
def test_a_file_that_is_no_recipe_is_refused_in_a_moment(name, content, word, tmp_path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(content)
    require(main, ["show", str(path)], 2, word)


@pytest.mark.parametrize("verb", ["show", "plan", "run", "ingest", "submit", "drill"])
def test_no_verb_waits_for_what_is_no_file(verb, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (str(tmp_path / "pipe.yaml"), "/dev/zero"):
        require(main, [verb, path], 2, "give a file")
    words = "no images and labels that belong together" if verb == "run" else "give a file"
    require(main, [verb, str(tmp_path)], 2, words)


@pytest.mark.parametrize(
    "override",
    [
        "name=2024-99-99",
        "store=a#b",
        "store='a #b'",
        "store=x[/x]y",
        "tracking.experiment=naïve Bayes 日本",
        "store=abfs://container@account.dfs.core.windows.net/x",
        "store=gs://anonymous@bucket/x",
        "tracking.uri=http://host:5000/a@b",
        "tracking.uri=null",
        "transplant.weights=models:/demo/3",
        "finetune.micro_batch=4",
    ],
)
def test_what_only_looks_odd_is_taken(override) -> None:
    assert refused(main, "show", "demo", "--set", override).exit_code == 0


def test_class_names_that_mlflow_would_refuse_are_mapped_for_it_alone() -> None:
    names = "[bannister (banister), 'tree/bush', a$b]"
    recipe = load_recipe("demo", [*FOLDER, f"data.classes={names}"])
    assert recipe.data.class_table().names == ("bannister (banister)", "tree/bush", "a$b")


KEYS = sorted(load_recipe("demo").flat() | load_recipe("voc-fcn8s-vgg16").flat())
VALUES = (
    *("true", "-1", "1e400", ".nan", "null", "''", "[]", "{}", "[true]", '"a\\nb"', "[/x]"),
    *("9" * 40, LONG, "\udce9", f"http://u:{SECRET}@h", "{a: 1, a: 2}", "*a", "@x", "`", "!x"),
)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_answers_every_wrong_value(key) -> None:
    for value in VALUES:
        done = refused(main, "show", "demo", "--set", f"{key}={value}")
        assert done.exit_code in (0, 2), (value, done.output)
        if value in ("''", "[true]", '"a\\nb"', LONG, "\udce9", "{a: 1, a: 2}", VALUES[14]):
            assert done.exit_code == 2, (value, done.output)


def test_a_value_is_shown_shortly_in_its_complaint() -> None:
    done = CliRunner().invoke(main, ["show", "demo", "--set", f"seed={'x' * 4000}"])
    assert done.exit_code == 2
    assert len(done.output) < 300
