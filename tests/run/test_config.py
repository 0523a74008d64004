"""A config holds what its file says, and a wrong one is refused with the place of the fault."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from adadelta_cli.cli.run import run
from adadelta_cli.errors import UsageError
from adadelta_cli.run import config, optimizers
from adadelta_cli.run.problems import problem
from adadelta_cli.update import Hyperparameters

ROSENBROCK = "problem:\n  name: rosenbrock\ntraining:\n  steps: 10\n"
MLP = "problem:\n  name: mlp\ntraining:\n  epochs: 1\n"
CONFIGS = Path(__file__).parents[2] / "configs"


def mlp(setting):
    """Write a config of the MLP with a setting of the problem."""
    return MLP.replace("name: mlp", f"name: mlp\n  {setting}")


@pytest.fixture
def write(tmp_path):
    """Write a config file, and return its path."""

    def write(content):
        path = tmp_path / "my.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# what is appended to ROSENBROCK (four lines), the line of the fault, what the message says
WRONG = {
    "unknown key": ("optimizer:\n  rh: 0.5\n", 6, r"optimizer\.rh .*did you mean rho"),
    "unknown section": ("optimiser: {}\n", 5, r"did you mean optimizer.*allowed: problem"),
    "text for a number": ("optimizer:\n  rho: high\n", 6, r"\.rho is 'high'; .*number"),
    "quoted number": ("optimizer:\n  rho: '0.9'\n", 6, r"rho is '0\.9'; .*number"),
    "bool for a number": ("optimizer:\n  rho: true\n", 6, r"rho is true; .*number"),
    "yes is a text": ("optimizer:\n  rho: yes\n", 6, r"rho is 'yes'"),
    "null for a number": ("optimizer:\n  rho:\n", 6, r"rho is null"),
    "too large": ("optimizer:\n  rho: 1\n", 6, r"rho is 1; .*at least 0 and less than 1"),
    "negative": ("optimizer:\n\n  epsilon: -1e-6\n", 7, r"epsilon is -1e-06; .*more than 0"),
    "infinite": ("optimizer:\n  wd: .inf\n", 6, r"wd is inf; .*finite number"),
    "no number": ("optimizer:\n  wd: .nan\n", 6, r"wd is nan"),
    "list for a section": ("optimizer: [1]\n", 5, r"optimizer is \[1\]; .*mapping, such as \{"),
    "duplicate key": ("optimizer:\n  rho: 1\n  wd: 0\n  rho: 2\n", 8, r"rho .*twice, .*line 6"),
    "duplicate section": ("training:\n  steps: 3\n", 5, r"training .*twice, .*line 3"),
    "other problem's metric": ("expect:\n  min_accuracy: 1\n", 6, r"reports loss, distance"),
    "key that is no text": ("1: 2\n", 5, r"key '1' is not a text"),
    "key that is a list": ("? [a]\n: 1\n", 5, r"key .* is not a text"),
    "key that is tagged": ("? !!str [a]\n: 1\n", 5, r"key .* is not a text"),
    "tag": ("optimizer:\n  rho: !!python/name:os.system\n", 6, r"rho is .*python/name"),
    "list tagged as a number": ("optimizer:\n  wd: !!int [1]\n", 6, r"wd is !!int .*allowed"),
    "mapping tagged as one": ("optimizer:\n  wd: !!float {}\n", 6, r"wd is !!float .*allowed"),
    "list tagged as a text": ("optimizer:\n  wd: !!str [1]\n", 6, r"wd is !!str .*allowed"),
    "syntax": ("optimizer: {\n", 6, r"YAML"),
    "tab": ("optimizer:\n\trho: 0.5\n", 6, r"YAML"),
    "two documents": ("---\nproblem: 3\n", 5, r"YAML.* single document"),
    "alias": ("optimizer: &a {}\nexpect: *a\n", 6, r"alias"),
    "merge key": ("optimizer: {<<: {rho: 0.5}}\n", 5, r"optimizer\.<< is unknown"),
    "number of 5000 digits": ("optimizer:\n  wd: " + 5000 * "9" + "\n", 6, r"optimizer\.wd is"),
}


@pytest.mark.parametrize(("appended", "line", "message"), WRONG.values(), ids=WRONG)
def test_a_fault_is_refused_with_file_line_key_and_what_is_allowed(write, appended, line, message):
    """Whatever is wrong, the message names the file, the line, the key, and what is allowed."""
    path = write(ROSENBROCK + appended)
    with pytest.raises(UsageError) as caught:
        config.load_config(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert re.search(message, str(caught.value)), caught.value


KEYS = {  # section, key, what the message suggests
    "lr": ("optimizer", "lr", r"did you mean learning_rate\?"),
    "Keras": ("optimizer", "learningRate", r"did you mean learning_rate\?"),
    "eps": ("optimizer", "eps", r"did you mean epsilon\?"),
    "weight_decay": ("optimizer", "weight_decay", r"did you mean wd\?"),
    "weight-decay": ("optimizer", "weight-decay", r"did you mean wd\?"),
    "momentum": ("optimizer", "momentum", r"mean rho\? name: momentum or nesterov has it\)"),
    "another optimizer's": ("optimizer", "beta1", r"beta1 is unknown \(name: adam has it\)"),
    "another problem's": ("problem", "hidden", r"hidden is unknown \(name: mlp has it\)"),
    "clip": ("optimizer", "max_grad_norm", r"did you mean clip_gradient\?"),
    "iterations": ("training", "iterations", r"did you mean steps\?"),
    "n_epochs": ("training", "n_epochs", r"did you mean epochs\?"),
    "batch": ("training", "batch", r"did you mean batch_size\?"),
    "accuracy": ("expect", "accuracy", r"did you mean min_accuracy\?"),
    "another section's": ("training", "learning_rate", r"did you mean optimizer\.learning_rate\?"),
    "another section's alias": ("training", "lr", r"did you mean optimizer\.learning_rate\?"),
    "seed": ("training", "seed", r"did you mean the option --seed"),
    "random_state": ("problem", "random_state", r"did you mean the option --seed"),
    "dtype": ("optimizer", "dtype", r"did you mean the option --dtype"),
    "device": ("training", "device", r"did you mean the option --ctx"),
    "dim": ("problem", "dim", r"did you mean dimension\?"),
    "a stranger": ("optimizer", "zzz", r"zzz is unknown; allowed: name, learning_rate"),
}


@pytest.mark.parametrize(("section", "key", "message"), KEYS.values(), ids=KEYS)
def test_another_name_of_a_key_is_understood(section, key, message):
    """Names of other frameworks, keys of other sections, and options suggest the right one."""
    with pytest.raises(UsageError, match=message):
        config.load_config("rosenbrock", [f"{section}.{key}=1"])


OPTIMIZER_KEYS = {  # optimizer, what is set, what the message says
    "momentum's in adam": ("adam", "momentum=0.9", r"did you mean beta1\? name: momentum or nest"),
    "rho in adam": ("adam", "rho=0.9", r"did you mean beta2\? name: adadelta or rmsprop has it"),
    "rho in sgd": ("sgd", "rho=0.9", r"rho is unknown \(name: adadelta or rmsprop has it\); .* wd"),
    "betas": ("adam", "betas=[0.9, 0.999]", r"did you mean beta1\?"),
    "eps": ("adagrad", "eps=1e-8", r"did you mean epsilon\?"),
    "lr": ("nesterov", "lr=0.1", r"did you mean learning_rate\?"),
    "range": ("momentum", "momentum=1", r"momentum is 1; .*at least 0 and less than 1"),
    "sign": ("rmsprop", "epsilon=0", r"epsilon is 0; .*more than 0"),
    "no text": ("adam", "beta2=high", r"optimizer\.beta2 is 'high'; .*number"),
    "unknown name": ("adamw", "wd=0", r"optimizer\.name is 'adamw' \(did you mean adam\?\); .*sgd"),
    "null name": ("null", "wd=0", r"optimizer\.name is null; allowed: adadelta, sgd"),
}


@pytest.mark.parametrize("case", OPTIMIZER_KEYS.values(), ids=OPTIMIZER_KEYS)
def test_each_optimizer_takes_its_own_keys(case):
    """An unknown one suggests the right key, or the optimizers that have it."""
    name, setting, message = case
    with pytest.raises(UsageError, match=message):
        config.load_config("rosenbrock", [f"optimizer={{name: {name}}}", f"optimizer.{setting}"])


def test_another_optimizer_starts_from_its_own_defaults():
    """The file's settings are those of the old one; other overrides stay, in any order."""
    for overrides in (
        ["optimizer.name=adam", "optimizer.wd=0.1"],
        ["optimizer.wd=0.1", "optimizer.name=adam"],
    ):
        loaded = config.load_config("rosenbrock", overrides)
        assert loaded.optimizer == optimizers.AdamSettings(name="adam", wd=0.1)
    same = config.load_config("rosenbrock", ["optimizer.name=adadelta"]).optimizer
    assert same == config.load_config("rosenbrock").optimizer
    other = config.load_config(
        "mlp", ["problem.name=rosenbrock", "training={steps: 1}", "expect={}"]
    )
    assert other.problem.dimension == 2
    with pytest.raises(UsageError, match=r"^--set optimizer\.rho=0\.5: optimizer\.rho is unknown"):
        config.load_config("rosenbrock", ["optimizer.rho=0.5", "optimizer.name=adam"])


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_optimizer_has_defaults(name):
    """Its name suffices, and the resolved config loads back."""
    loaded = config.load_config("rosenbrock", [f"optimizer={{name: {name}}}"])
    assert loaded.optimizer == optimizers.OPTIMIZERS[name](name=name)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seed", r"did you mean the option --seed"),
        ("lr", r"did you mean optimizer\.learning_rate\?"),
        ("rho", r"did you mean optimizer\.rho\?"),
        ("beta2", r"did you mean optimizer\.beta2 or optimizer\.rho\?"),
        ("epochs", r"did you mean training\.epochs\?"),
        ("optim", r"did you mean optimizer\?"),
    ],
)
def test_a_key_without_its_section_is_understood(key, message):
    """At the top of the file, too."""
    with pytest.raises(UsageError, match=message):
        config.load_config("mlp", [f"{key}=1"])


def test_every_alias_stands_for_something():
    """A key of a section, or an option of the command."""
    options = {option for each in run.params for option in each.opts}
    for name in config.ALIASES:
        assert name in options or list(config._keys(name)), name


WHOLE = {
    "no problem": ("training: {steps: 1}\n", r"problem is missing; .*mapping"),
    "no training": ("problem: {name: mlp}\n", r"training is missing; .* with steps, epochs"),
    "no name": ("problem: {}\ntraining: {steps: 1}\n", r"problem\.name is missing; .*rosen"),
    "wrong name": ("problem: {name: lda}\ntraining: {steps: 1}\n", r"\.name is 'lda'; .*rosen"),
    "null name": ("problem: {name: }\ntraining: {steps: 1}\n", r"problem\.name is null"),
    "neither": (MLP.replace("epochs: 1", "batch_size: 1"), r"exactly one of .*neither"),
    "both": (MLP + "  steps: 1\n", r"exactly one of .*both"),
    "epochs without data": (ROSENBROCK + "  epochs: 1\n", r"training\.epochs is 1, .*no data"),
    "batch without data": (ROSENBROCK + "  batch_size: 8\n", r"training\.batch_size is 8"),
    "one layer is a text": (mlp("hidden: [8, a]"), r"problem\.hidden\.1 is 'a'; .*integer"),
    "no layer": (mlp("hidden: []"), r"hidden is \[\]; .*list of 1 to 8"),
    "activation": (mlp("activation: gelu"), r"relu or tanh or sigmoid"),
    "empty": ("", r"line 1: the file is empty"),
    "comment": ("# nothing\n", r"line 1: the file is empty"),
    "list": ("- 1\n", r"line 1: the file is a list"),
    "text": ("hello\n", r"line 1: the file is a str"),
    "not UTF-8": (b"# caf\xe9\n" + ROSENBROCK.encode(), r"line 1: byte 0xe9 is not UTF-8"),
    "UTF-16": (ROSENBROCK.encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
    "control character": (ROSENBROCK + "#\x00", r"YAML"),
    "megabytes": (b"#" * 3_000_000, r"more than 100000 bytes"),
    "deep": ("[" * 50_000, r"nested too deeply"),
    "bomb": ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", r"line 2: .*alias"),
}


@pytest.mark.parametrize(("content", "message"), WHOLE.values(), ids=WHOLE)
def test_a_file_that_is_no_config_is_refused(write, content, message):
    """A file that is wrong as a whole gets one message that names it."""
    path = write(content)
    with pytest.raises(UsageError) as caught:
        config.load_config(path)
    assert str(caught.value).startswith(path)
    assert re.search(message, str(caught.value)), caught.value


def test_each_of_several_faults_is_reported():
    """Two faults make two lines, each with its own place."""
    with pytest.raises(UsageError) as caught:
        config.load_config("mlp", ["optimizer.rho=2", "training.batch_size=0"])
    first, second = str(caught.value).splitlines()
    assert first.startswith("--set optimizer.rho=2: optimizer.rho is 2;")
    assert second.startswith("--set training.batch_size=0: training.batch_size is 0;")


def test_numbers_are_those_of_yaml_1_2_in_a_file_and_after_set(write):
    """`1e-6` is a number and `010` is ten; test_yaml12.py has all forms."""
    path = write(f"{ROSENBROCK}optimizer: {{wd: 010, epsilon: 1e-6}}\n")
    assert config.load_config(path).optimizer.wd == 10
    assert config.load_config(path, ["optimizer.wd=1e-7"]).optimizer.wd == 1e-7


@pytest.mark.parametrize("label", ["yes", "010x", "~x", "on", "'1e3'", '"null"', "'12'", "größe"])
def test_a_resolved_config_loads_back_to_the_same(write, tmp_path, label):
    """What to_yaml writes is read as the same config, texts that look like numbers too."""
    path = write(
        "problem: {name: logistic_regression, csv: a.csv, label: " + label + "}\n"
        "optimizer: {epsilon: 1e-30, clip_gradient: 3}\n"
        "training: {epochs: 3, batch_size: 7}\nexpect: {max_gap: 1e-5}\n"
    )
    loaded = config.load_config(path)
    elsewhere = tmp_path / "elsewhere" / "config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(loaded.to_yaml(), encoding="utf-8")
    assert config.load_config(str(elsewhere)) == loaded
    assert loaded.problem.label == label.strip("'\"")


def test_a_csv_file_is_relative_to_the_config_that_names_it(write, tmp_path, monkeypatch):
    """In a file, the path starts at the file's folder; after --set, where the command runs."""
    path = write("problem: {name: logistic_regression, csv: a.csv}\ntraining: {steps: 1}\n")
    monkeypatch.chdir("/")
    assert config.load_config(path).problem.csv == str(tmp_path / "a.csv")
    assert config.load_config(path, ["problem.csv=b.csv"]).problem.csv == "/b.csv"


def test_a_linked_config_finds_its_csv_beside_the_file_itself(write, tmp_path):
    """A link elsewhere does not move the data; the message says where it looked."""
    path = write("problem: {name: logistic_regression, csv: a.csv}\ntraining: {steps: 1}\n")
    link = tmp_path / "elsewhere" / "link.yaml"
    link.parent.mkdir()
    link.symlink_to(path)
    loaded = config.load_config(str(link))
    assert loaded.problem.csv == str(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=rf"{tmp_path}/a\.csv, which .*folder of that file"):
        problem(loaded.problem)


def test_a_csv_file_in_a_folder_that_is_not_utf_8(tmp_path):
    """Its name goes to the resolved config and back."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.csv").write_text("a,label\n1,0\n2,1\n")
    text = "problem: {name: logistic_regression, csv: a.csv}\ntraining: {steps: 1}\n"
    (folder / "my.yaml").write_text(text)
    loaded = config.load_config(str(folder / "my.yaml"))
    assert problem(loaded.problem).data[1].tolist() == [-1, 1]
    (tmp_path / "resolved.yaml").write_bytes(loaded.to_yaml().encode())
    assert config.load_config(str(tmp_path / "resolved.yaml")) == loaded


def test_set_overrides_reaches_what_the_file_leaves_out():
    """An override may name a section that the file lacks, and replace a whole list or section."""
    overrides = ["expect.max_loss=3", "problem.hidden=[8, 4]", "optimizer={rho: 0.5}"]
    loaded = config.load_config("mlp", overrides)
    assert loaded.expect.max_loss == 3
    assert loaded.problem.hidden == (8, 4)
    assert loaded.optimizer == optimizers.AdadeltaSettings(rho=0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense", r"KEY=VALUE"),
        ("=3", r"KEY=VALUE"),
        ("optimizer..rho=3", r"KEY=VALUE"),
        ("optimizer.rh=0.5", r"optimizer\.rh is unknown \(did you mean rho"),
        ("problem.hidden.0=5", r"problem\.hidden has no keys; set it whole"),
        ("optimizer.rho=[", r"invalid YAML"),
        ("optimizer.rho=", r"optimizer\.rho is null"),
        ("training.steps=3", r"exactly one of .*null"),
    ],
)
def test_a_wrong_override_is_refused_by_its_name(override, message):
    """The message begins with the override itself, where the file is not at fault."""
    with pytest.raises(UsageError, match=message) as caught:
        config.load_config("mlp", [override])
    assert str(caught.value).startswith(f"--set {override}: ")


def test_epochs_give_way_to_steps_by_null():
    """An override of null takes a key away."""
    loaded = config.load_config("mlp", ["training.epochs=null", "training.steps=3"])
    assert (loaded.training.steps, loaded.training.epochs) == (3, None)


def test_a_name_that_ships_is_found_from_any_folder(tmp_path, monkeypatch):
    """Names work anywhere, even beside a folder of that name."""
    monkeypatch.chdir(tmp_path)
    Path("mlp").mkdir()
    assert config.load_config("mlp").problem.name == "mlp"
    assert config.shipped() == ("logistic_regression", "mlp", "rosenbrock")


def test_configs_inside_the_package_come_first(tmp_path, monkeypatch):
    """A wheel carries the configs inside the package, where there is no clone beside it."""
    inside = tmp_path / "adadelta_cli" / "configs"
    inside.mkdir(parents=True)
    (inside / "tiny.yaml").write_text(ROSENBROCK)
    monkeypatch.setattr(config, "__file__", str(inside.parent / "run" / "config.py"))
    assert config.load_config("tiny").training.steps == 10


def test_a_config_that_is_not_there_is_refused_with_the_names_that_are(tmp_path):
    """The message lists the bundled configs and the nearest one; a folder is no config."""
    with pytest.raises(UsageError, match=r"config 'nope'.*logistic_regression, mlp, rosenbrock"):
        config.load_config("nope")
    with pytest.raises(UsageError, match=r"did you mean mlp\?"):
        config.load_config("mpl")
    with pytest.raises(UsageError, match=r"is a folder"):
        config.load_config(str(tmp_path))


@pytest.mark.parametrize("name", config.shipped())
def test_a_shipped_config_starts_with_the_command_that_runs_it(name):
    """The first line is the command, the second tells editors the schema."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# adadelta run {name}"
    assert lines[1] == "# yaml-language-server: $schema=schema.json"
    assert list(config.load_config(name).expect.bounds())


def test_the_schema_beside_the_configs_is_that_of_the_models():
    """configs/schema.json is what `adadelta schema` prints."""
    assert json.loads((CONFIGS / "schema.json").read_text()) == config.schema()


def test_the_defaults_are_those_of_the_update():
    """An empty optimizer section gives the update's own defaults."""
    settings = optimizers.AdadeltaSettings().model_dump(exclude={"name"})
    assert settings == vars(Hyperparameters())


@pytest.mark.parametrize("key", ["\udcf2x", "training.\udc80", "problem.\ud800"])
def test_a_key_that_is_no_utf8_is_refused(key):
    """A file name's bytes in a shell variable may end up in a key."""
    with pytest.raises(UsageError, match="no text in UTF-8"):
        config.load_config("mlp", [f"{key}=1"])
