"""What a user or an environment did wrong is refused, quickly and with a remedy; it is no bug."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from conftest import needs_mxnet, slow_but

from adadelta_cli import __main__, inputs
from adadelta_cli.cli.console import Terminal
from adadelta_cli.cli.main import adadelta
from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import array_backends, user_kernel
from adadelta_cli.implementations.registry import IMPLEMENTATIONS, YARDSTICKS
from adadelta_cli.run import config
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import runner

ROSENBROCK = "problem:\n  name: rosenbrock\ntraining:\n  steps: 10\n"
LABELLED = (
    "problem: {name: logistic_regression, csv: data.csv, label: lable}\ntraining: {steps: 1}\n"
)
LONG_NAME, LONG_PATH = "a" * 5000, "a/" * 2500
DIGITS = "9" * 400
ON_NUMPY = ["--backend", "numpy"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command line in this process; return its exit code and message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(ROSENBROCK)
    (tmp_path / "kernels.py").write_text("def step(*arguments):\n    pass\n")
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n")
    (tmp_path / "csv.yaml").write_text(LABELLED)

    def run(*args):
        try:
            how = {"prog_name": "adadelta", "standalone_mode": False}
            code, message = adadelta.main([*map(str, args)], **how), ""
        except Exception as error:  # noqa: BLE001 - what the program would make of it
            code, message = __main__.outcome(error)
        assert "bug" not in message
        assert len(message) < 3000, "a message is to be read"
        capsys.readouterr()
        return code, message

    return run


def setting(value):
    """Run a shipped config with a setting."""
    name = "mlp" if "held_out" in value else "logistic_regression"
    return ["run", name if "problem." in value else "small.yaml", "--set", value, *ON_NUMPY]


WRONG = {
    # distributed trainings
    "launch without --": (["launch", "--workers", "2", "run", "mlp"], r"-- is missing.*-- run mlp"),
    "launch of nothing": (["launch", "--"], "nothing follows --"),
    "no workers": (["launch", "--workers", "0", "--", "run", "mlp"], "from 1 to 1000"),
    "no servers": (["launch", "--servers", "0", "--", "run", "mlp"], "from 1 to 1000"),
    "launch of another command": (["launch", "--", "verify"], "`run` or a program of yours"),
    "launch of no program": (["launch", "--", "no-such-program"], "is not a program"),
    "kvstore": (["run", "mlp", "--kvstore", "dist_async"], "not one of dist_sync"),
    "no role": (["run", "mlp", "--kvstore", "dist_sync"], "DMLC_ROLE is not set.*adadelta launch"),
    # numbers that make no sense
    "held_out": (setting("problem.held_out=0.9999999999"), r"leaves none .* at most 0\.999"),
    "l2": (setting("problem.l2=1.7e308"), r"problem\.l2 is 1\.7e\+?308.*try"),
    "max_loss": (setting("expect.max_loss=1.7e308"), r"expect\.max_loss is 1\.7e\+?308; allowed"),
    "wd": (setting(f"optimizer.wd={DIGITS}"), r"optimizer\.wd .*allowed"),
    "wd in hexadecimal": (setting(f"optimizer.wd=0x{'f' * 5000}"), r"optimizer\.wd .*allowed"),
    "steps": (setting(f"training.steps={DIGITS}"), r"training\.steps .*allowed"),
    "dimension": (setting(f"problem.dimension={DIGITS}"), r"problem\.dimension .*allowed"),
    "--seed": (["run", "small.yaml", "--seed", DIGITS], r"--seed"),
    "--threads": (["run", "small.yaml", "--threads", DIGITS], r"--threads"),
    "bench --threads": (["bench", "--threads", f"1,{DIGITS}"], r"--threads is .*allowed"),
    "bench --threads ²": (["bench", "--threads", "²"], r"--threads is .*allowed"),
    "--processes": (["bench", "--processes", DIGITS], r"--processes"),
    "bench --sizes": (["bench", "--sizes", DIGITS], r"--sizes has .*allowed"),
    "verify --sizes": (["verify", "--sizes", DIGITS], r"--sizes has .*allowed"),
    "verify --steps": (["verify", "--steps", DIGITS], r"--steps"),
    "--timeout nan": (["verify", "--timeout", "nan"], r"--timeout"),
    "--timeout inf": (["verify", "--timeout", "inf"], r"--timeout"),
    "--max-time nan": (["bench", "--max-time", "nan"], r"--max-time"),
    "--precision nan": (["bench", "--precision", "nan"], r"--precision"),
    # paths that are no files
    "csv: a device": (setting("problem.csv=/dev/zero"), r"problem\.csv is /dev/zero.* regular"),
    "config: a device": (["run", "/dev/zero"], r"/dev/zero.* regular"),
    "--replay a device": (["verify", "--replay", "/dev/zero"], r"/dev/zero .* regular"),
    "--baseline a device": (["bench", "--baseline", "/dev/zero"], r"/dev/zero .* regular"),
    "compare a device": (["compare", "/dev/zero", "/dev/zero"], r"/dev/zero .* regular"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_wrong_usage(refused, args, message):
    """Exit code 2, and a message that says what is allowed."""
    code, got = refused(*args)
    assert code == 2
    assert re.search(message, got, re.DOTALL), got


PATHS = {
    "config": lambda path: ["run", path, *ON_NUMPY],
    "csv": lambda path: setting(f"problem.csv={path}"),
    "--out": lambda path: ["run", "small.yaml", "--out", path, *ON_NUMPY],
    "verify --out": lambda path: ["verify", "--case", "odd", "--out", path, *ON_NUMPY],
    "compare --out": lambda path: ["compare", "a", "b", "--out", path],
    "--record-gradients": lambda path: ["run", "small.yaml", "--record-gradients", path],
    "--impl, a file": lambda path: ["verify", "--impl", f"{path}.py:step"],
    "--impl, no function": lambda path: ["verify", "--impl", f"{path}.py"],
    "--impl, a module": lambda path: ["verify", "--impl", f"{path}:step"],
    "bench --impl": lambda path: ["bench", "--impl", f"{path}.py"],
    "--replay": lambda path: ["verify", "--replay", path],
    "--junit": lambda path: ["verify", "--case", "odd", "--junit", path, *ON_NUMPY],
    "--baseline": lambda path: ["bench", "--baseline", path],
    "--against": lambda path: ["bench", "--against", path],
    "sweep CONFIG": lambda path: ["sweep", path, "--seeds", "2"],
    "sweep --out": lambda path: ["sweep", "small.yaml", "--seeds", "2", "--out", path],
    "compare OLD": lambda path: ["compare", path, "b"],
    "verify CONFIG": lambda path: ["verify", path, *ON_NUMPY],
}


@pytest.mark.parametrize(
    "path", [LONG_NAME, LONG_PATH, f"there/is/none/{'a' * 300}"], ids=["name", "path", "last part"]
)
@pytest.mark.parametrize("where", PATHS.values(), ids=PATHS)
def test_a_path_of_5000_characters_is_wrong_usage(refused, where, path):
    """Wherever a path is taken, it is exit code 2; the message does not repeat all of it."""
    code, message = refused(*where(path))
    assert code == 2 and message
    assert not Path("results").exists()


def test_no_file_can_have_a_nul_in_its_name(refused):
    """YAML can write one."""
    code, message = refused(*setting('problem.csv="a\\0b"'))
    assert code == 2 and "problem.csv" in message


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    """Opening one waits until somebody writes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "regular" in inputs.unreadable_reason(pipe)


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    """Root may read all, so the system's answer is pretended."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    file = tmp_path / "file"
    file.touch()
    assert "permission" in inputs.unreadable_reason(file)


# --- options --------------------------------------------------------------------------------------


def given_to(name, parameter, value):
    """Return a command line that gives an option or an argument this value, and its name."""
    if isinstance(parameter, click.Option):
        option = max(parameter.opts, key=len)
        return [name, option, value, *(["x", "x"] if name == "compare" else [])], option
    shown = parameter.make_metavar(click.Context(adadelta.commands[name]))
    if isinstance(parameter.type, click.Choice):  # whose values Click shows
        shown = parameter.name.upper()
    before = ["x"] if parameter.name == "new" else []
    after = ["x"] if parameter.name == "old" else []
    return [name, *before, value, *after], re.sub(r"\W", "", shown)


TAKE_A_VALUE = {
    f"{name} {parameter.name}": (name, parameter)
    for name, command in adadelta.commands.items()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
}


@pytest.mark.parametrize(("name", "parameter"), TAKE_A_VALUE.values(), ids=TAKE_A_VALUE)
def test_an_option_or_argument_without_a_value_is_named(refused, name, parameter):
    """Nothing, as a script gives it that lacks a variable, or two; and a NUL, which no text has."""
    wrong = dict.fromkeys(["", " ", ",", ",,", " , ", "\t"], "is empty") | dict.fromkeys(
        ["\0", "a\0b", "a/\0"], "NUL"
    )
    for value, fault in wrong.items():
        args, what = given_to(name, parameter, value)
        code, message = refused(*args)
        assert code == 2 and f"{what} is" in message and fault in message, (args, message)
        if args[1].startswith("--"):
            assert refused(name, f"{args[1]}={value}", *args[3:]) == (code, message)
    assert not Path("results").exists()


def test_every_command_is_in_the_test_of_empty_values():
    """But for those without a parameter that takes a value."""
    without = {"schema", "doctor"}
    assert {name for name, _ in TAKE_A_VALUE.values()} == {*adadelta.commands} - without
    assert len(TAKE_A_VALUE) > 30


NUMBERS = {
    what: (name, parameter)
    for what, (name, parameter) in TAKE_A_VALUE.items()
    if isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType))
}
CLICKS_WORDS = re.compile(r"range|not a valid|Invalid value|<|Option '|Missing|Got ")


@pytest.mark.parametrize(("name", "parameter"), NUMBERS.values(), ids=NUMBERS)
def test_what_is_no_number_that_an_option_takes_is_answered_plainly(refused, name, parameter):
    """With what it is, and what is expected."""
    for value in ("x", "-1", "nan", "1e99", "1,5", "0x10", DIGITS):
        args, option = given_to(name, parameter, value)
        code, message = refused(*args)
        given = "999" if value == DIGITS else value
        assert code == 2 and message.startswith(f"{option} is '{given}"), message
        assert re.search(r"; expected a (whole )?number (from|above) \d", message), message
        assert not CLICKS_WORDS.search(message), message


def test_every_number_is_in_the_test_of_numbers():
    """As far as Click converts them."""
    assert {"run seed", "run threads", "bench precision", "compare threshold"} <= {*NUMBERS}
    assert len(NUMBERS) > 10


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["run", "--seed"], r"--seed has no value; .*--seed \S+"),
        (["run", "mlp", "--set"], r"--set has no value; .*--set KEY=VALUE"),
        (["compare", "a"], r"NEW is missing; expected adadelta compare \[OPTIONS\] OLD NEW"),
        (["compare"], r"OLD is missing; expected adadelta compare"),
        (["compare", "a", "b", "c"], r"'c' is one argument too many; expected adadelta compare"),
        (["doctor", "c", "d"], r"'c d' are .*too many; expected adadelta doctor \[OPTIONS\]"),
        (["run", "--json=3"], r"--json takes no value; leave out '=3'"),
        (["run", "small.yaml", "--no-fused=1"], r"--no-fused takes no value; leave out '=1'"),
        (["run", "--out", "small.yaml"], r"--out is 'small\.yaml', .*is a file; name another"),
        (["--seed"], r"--seed comes after the command"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_each_of_clicks_errors_is_in_plain_words(refused, args, wanted):
    """The problem, what was expected, the fix."""
    code, message = refused(*args)
    assert code == 2 and re.match(wanted, message), message
    assert not CLICKS_WORDS.search(message), message


@pytest.mark.parametrize("value", ["", " ", ",", ",,", "\0"])
def test_a_command_without_a_name_is_named(refused, value):
    """As for a script whose variable is the command."""
    code, message = refused(value)
    assert code == 2 and "COMMAND is" in message


@pytest.mark.parametrize("option", ["--sizes", "--threads"])
@pytest.mark.parametrize("value", ["1,,2", "1,", ",1", "1, ,2"])
def test_an_empty_part_of_a_list_is_refused(refused, option, value):
    """One variable of two may be missing."""
    code, message = refused("bench", option, value)
    assert code == 2 and option in message


CONTRADICTIONS = [
    "run small.yaml -q -v",
    "run small.yaml -qv",
    "doctor --quiet --verbose",
    "compare a b -v -q",
    "run small.yaml --fused --no-fused",
    "run small.yaml --resume --force",
    "run small.yaml --resume --record-gradients g.npz",
    "run small.yaml --seed 1 --seed 2",
    "run small.yaml --ctx cpu --backend cupy",
    "run small.yaml --ctx gpu --backend numpy",
    "bench --warm --cold",
    "bench --sizes 10 --sizes 20",
    "bench --train mlp --backend numpy",
    "bench --train mlp --impl numpy",
    "bench --train mlp --dtype float64",
    "bench --train mlp --cold",
    "bench --train mlp --peers",
    "bench --train mlp --ctx gpu",
    "bench --train mlp --against python",
    "bench --train torch-mlp --backend numpy",
    "bench --train torch-mlp --backend mxnet",
    "bench --train torch-mlp --impl torch-fused",
    "bench --train torch-cnn --dtype float64",
    "bench --train torch-cnn --cold",
    "bench --train torch-cnn --peers",
    "bench --train torch-mlp --ctx gpu",
    "bench --train torch-mlp --against python",
    "bench --train torch-mlp --train mlp --backend mxnet",
    "bench --sizes 10 --threshold 0.1",
    "bench --ctx gpu --threads 2",
    "bench --json --format markdown",
    "compare a b --json --format table",
    "verify --json --format markdown",
    "run small.yaml --json --format markdown",
    "bench --sizes 10 --backend numpy --impl mxnet-fused",
    "bench --sizes 10 --backend mxnet --impl kernel.py:step",
    "bench --sizes 10 --ctx gpu --impl numpy-fused",
    "verify --case odd --backend numpy --impl mxnet-fused",
    "verify --case odd --backend cupy --impl numpy-fused",
    "verify --case odd --backend mxnet --impl kernel.py:step",
    "run --kvstore dist_sync --ctx gpu",
    "run --kvstore dist_sync --backend numpy",
    "run --kvstore dist_sync --update-on servers --resume",
    "run --kvstore dist_sync --update-on servers --record-gradients g.npz",
    "run --kvstore dist_sync --update-on servers --dtype float16",
    "run --update-on servers",
    "run --wait 3",
    "verify --case odd --sizes 10",
    "verify --replay small.yaml --full",
    "verify --replay small.yaml --case odd",
    "verify --replay small.yaml --sizes 10",
    "verify small.yaml --replay small.yaml",
    "verify --case odd --subnormals flush",
    "verify small.yaml --steps 3",
    "verify --ctx gpu --peers",
    "verify small.yaml --self-test",
    *(
        f"verify --self-test {option}"
        for option in (
            *("--impl numpy", "--peers", "--replay small.yaml", "--full", "--case odd"),
            *("--sizes 10", "--steps 3", "--dtype float32", "--timeout 3", "--subnormals strict"),
            *("--threads 1", "--backend auto", "--ctx gpu", "--format markdown", "--junit a.xml"),
        )
    ),
]


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(refused, line):
    """And those without an effect. They are named."""
    Path("kernel.py").write_text("def step(*arrays, **settings): ...")
    args = line.split()
    code, message = refused(*args)
    assert code == 2, message
    without = {"--threshold", "--subnormals", "--steps"}  # what lacks something is named alone
    asked = [arg for arg in args if arg.startswith("--")]
    asked = [arg for arg in asked if arg in without] or asked
    assert all(option in message for option in asked[-2:]), message
    assert not Path("results").exists()


GO_TOGETHER = [
    "run small.yaml --backend numpy --force --json -q",
    "run small.yaml --backend numpy --resume -v --json --json",
    "run small.yaml --backend numpy --force --record-gradients g.npz --dtype float64 --threads 1",
    "verify --full --case odd --impl numpy-fused --dtype float32 --seed 3 --steps 2 -q",
    "verify --sizes 10 --impl numpy-fused --dtype float32 --timeout 30 --subnormals strict",
    "verify small.yaml --case odd --steps 2 --backend numpy --impl numpy-fused --dtype float32",
]


@pytest.mark.parametrize("line", GO_TOGETHER)
def test_options_that_say_the_same_or_have_nothing_to_do_go_together(refused, monkeypatch, line):
    """Such as --force where there is nothing to discard, and a flag that is given twice."""
    monkeypatch.setattr(runner, "Sandbox", lambda _timeout: InProcess())
    assert refused(*line.split())[0] in (None, 0)


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["run", "--sed", "1"], "--seed"),
        (["bench", "--size", "1e6"], "--sizes"),
        (["bench", "--no-such-thing-at-all"], None),
        (["run", "mlp", "--lr", "3"], "--set optimizer.learning_rate=..."),
        (["run", "mlp", "--epochs=3"], "--set training.epochs=..."),
        (["run", "mlp", "--momentum", "3"], "--set optimizer.rho=..."),
        (["run", "mlp", "-set", "a=1"], "--set"),
        (["verify", "--lr", "3"], None),
        (["verify", "--impls", "numpy"], "--impl"),
        (["verify", "--dtypes", "float32"], "--dtype"),
        (["bench", "--device", "gpu"], "--ctx"),
        (["run", "MLP"], "mlp"),
        (["run", "logistic"], "logistic_regression"),
        (["verifyy"], "verify"),
        (["help"], "--help"),
        (["version"], "--version"),
        (["train"], "run"),
        (["run", "mlp", "--set", "optimizer.name=lion"], None),
        (["run", "mlp", "--set", "optimizer.name=adm"], "adam"),
        (["run", "mlp", "--set", "problem.name=mpl"], "mlp"),
        (["run", "mlp", "--set", "model=mlp"], "problem?"),
        (["verif"], "verify"),
        (["run", "mpl"], "mlp"),
        (["run", "--dtype", "float23"], "float32"),
        (["run", "--backend", "mxnte"], "mxnet"),
        (["bench", "--impl", "numpyfused"], "numpy-fused"),
        (["bench", "--model", "resnet"], "resnet50"),
        (["bench", "--format", "tables"], "table"),
        (["verify", "--case", "od"], "odd"),
        (["verify", "--case", "wd"], "mean wd="),
        (["bench", "--junit", "x.xml"], None),
        (["run", "mlp", "--rho", "0.9"], "mean --set optimizer.rho=...?"),
        (["verify", "--case", "lengths-"], "lengths"),
        (["verify", "--case", "zzzz"], None),
        (["verify", "--subnormals", "flsh"], "flush"),
        (["run", "small.yml"], "small.yaml"),
        (["run", "mpl.yaml"], "mlp"),
        (["run", "zeiler/table2"], "zeiler2012/table2"),
        (["sweep", "sweep-rosenbrok"], "sweep-rosenbrock"),
        (["verify", "rosenbrook"], "rosenbrock"),
        (["run", "small.yaml", "--ctx", "cuda:1"], "gpu:1"),
        (["run", "small.yaml", "--ctx", "gpuu"], "gpu"),
        (["run", "small.yaml", "--ctx", "CPU"], "cpu"),
        (["run", "small.yaml", "--ctx", "tpu-v4-pod"], None),
        (["run", "small.yaml", "--log", "tensorbord:x"], "tensorboard"),
        (["run", "small.yaml", "--log", "ml-flow:x"], "mlflow"),
        (["run", "small.yaml", "--vary", "optimizer.roh=0.9,0.8", *ON_NUMPY], "rho"),
        (["run", "small.yaml", "--vary", "rho=0.9,0.8", *ON_NUMPY], "mean optimizer.rho?"),
        (["sweep", "small.yaml", "--grid", "rho=0.9,0.8", *ON_NUMPY], "mean optimizer.rho?"),
        (["run", "small.yaml", "--set", "trainign.steps=5", *ON_NUMPY], "training"),
        (["run", "small.yaml", "--kvstore", "dist_snyc"], "dist_sync"),
        (["run", "small.yaml", "--update-on", "server"], "servers"),
        (["sweep", "small.yaml", "--grid", "optimizer.roh=0.9,0.8", *ON_NUMPY], "rho"),
        (["sweep", "small.yaml", "--grid", "optimizer.rho=lgo:0.1:0.9", "--sample", "2"], "log"),
        (["sweep", "small.yaml", "--grid", "optimizer.rho=0.9", "--metric", "los"], "loss"),
        (["sweep", "small.yaml", "--set", "sweep.grid={optimizer.rho: 'itn:1:5'}"], "int"),
        (["convert", "a", "--from", "mxnt", "--to", "torch"], "mxnet"),
        (["convert", "a", "--from", "npz", "--to", "pytorch"], "torch"),
        (["list", "implementation"], "implementations"),
        (["explain", "optimizer.epsilno"], "optimizer.epsilon"),
        (["init", "--problem", "mpl"], "mlp"),
        (["completion", "bahs"], "bash"),
        (["bench", "--train", "torch-mpl"], "torch-mlp"),
        (["bench", "--dtype", "flaot32"], "float32"),
        (["verify", "--case", "drawn:shaeps=3"], "shapes"),
        (["verify", "--case", "drawn:shapes=3,fill=usaul"], "usual"),
        (["verify", "--impl", "kernels.py:setp", "--case", "odd"], "step"),
        (["run", "csv.yaml", *ON_NUMPY], "label"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_the_nearest_name_is_suggested(refused, args, wanted):
    """And none that is only as short; a message lists no catalogue."""
    code, message = refused(*args)
    assert code == 2 and len(message) < 400, message
    meant = re.search(r"[Dd]id you mean[^)?]*[)?]", message)
    assert (wanted in meant[0]) if wanted else not meant, message


@pytest.mark.parametrize("target", ["nowhere", "other.yml", "."])
def test_a_config_that_cannot_be_read_is_not_suggested(refused, tmp_path, target):
    """Neither for itself nor for another: links to nothing and in circles, folders."""
    (tmp_path / "other.yml").symlink_to(target)
    for name in ("other.yml", "othr.yml"):
        code, message = refused("run", name)
        assert code == 2 and "other.yml?" not in message, message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bench", "--junit", "x.xml"], "--junit (adadelta verify has it)"),
        (["compare", "a", "b", "--peers"], "--peers (adadelta verify and adadelta bench have it)"),
    ],
)
def test_the_commands_that_have_an_option_are_named(refused, args, words):
    """Where no option of this command is spelled like it."""
    code, message = refused(*args)
    assert code == 2 and f"no such option: {words}" in message, message


@pytest.mark.parametrize("option", ["-v", "--json", "--seed=3"])
def test_an_option_before_the_command_is_said_to_come_after_it(refused, option):
    """With an example."""
    code, message = refused(option, "run", "mlp")
    name = option.partition("=")[0]
    assert code == 2 and f"{name} comes after the command: adadelta run {name}" in message


KNOWN = {"verify": {*IMPLEMENTATIONS}, "bench": {*IMPLEMENTATIONS, *YARDSTICKS}}


@pytest.mark.parametrize("command", KNOWN)
@pytest.mark.parametrize(
    "name", ["unknown", "torch-adam", "torch-adam-fusd", "Torch", "mxnet-fuse"]
)
def test_an_unknown_implementation_is_answered_with_all_that_there_are(refused, command, name):
    """Those that the command takes; and a kernel of one's own."""
    code, message = refused(command, "--impl", name, *(["--sizes", "1"] * (command == "bench")))
    listed = message.partition("known are ")[2].partition(", and a kernel of your own")[0]
    assert code == 2 and {*listed.split(", ")} == KNOWN[command], message
    near = {"torch-adam-fusd": "torch-adam-fused", "Torch": "torch", "mxnet-fuse": "mxnet-fused"}
    if near.get(name) in KNOWN[command]:
        assert f"(did you mean {near[name]}" in message, message


def test_an_optimizer_of_another_formula_is_only_timed(refused):
    """Which verify says."""
    code, message = refused("verify", "--impl", "torch-adam-fused")
    assert code == 2 and "another formula" in message and "bench" in message


# --- quickly --------------------------------------------------------------------------------------


def seconds_to_refuse(tmp_path, keys):
    """Load a config with so many unknown keys; return how long it took, and the message."""
    half = keys // 2
    lines = [f"key{k}: 1\n" for k in range(half)]
    path = tmp_path / "many.yaml"
    path.write_text(ROSENBROCK + "".join(lines) + "optimizer:\n" + "".join(f"  {x}" for x in lines))
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        config.load_config(str(path))
    return time.process_time() - began, str(caught.value)


def test_of_many_faults_the_first_ten_are_listed(tmp_path):
    """Then how many more there are."""
    _, message = seconds_to_refuse(tmp_path, 5000)
    *listed, last = message.splitlines()
    assert len(listed) == 10 and "4,990 more" in last


def test_what_a_refusal_costs_grows_as_the_config(tmp_path, monkeypatch):
    """The schema is made once, a fault that is not listed costs next to nothing."""
    made = []
    model_json_schema = config.Config.model_json_schema
    monkeypatch.setattr(
        config.Config, "model_json_schema", lambda: made.append(1) or model_json_schema()
    )
    config.schema.cache_clear()
    few, many = (
        min(seconds_to_refuse(tmp_path, keys)[0] for _ in range(2)) for keys in (500, 5000)
    )
    assert len(made) == 1
    assert many < 25 * few, "ten times as many keys"


def test_a_long_key_is_not_repeated_as_a_whole(tmp_path):
    """Nor looked for among the known ones."""
    path = tmp_path / "long.yaml"
    path.write_text(f"{ROSENBROCK}? {'k' * 90_000}\n: 1\n")
    with pytest.raises(UsageError, match="is unknown") as caught:
        config.load_config(str(path))
    assert len(str(caught.value)) < 1000


# --- the environment ------------------------------------------------------------------------------


def command(tmp_path, *args, **environment):
    """Run the program in a process of its own."""
    (tmp_path / "small.yaml").write_text(ROSENBROCK)
    (tmp_path / "kernels.py").write_text("def step(*arguments):\n    pass\n")
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n")
    (tmp_path / "csv.yaml").write_text(LABELLED)
    return subprocess.run(
        [sys.executable, "-m", "adadelta_cli", *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **environment},
        timeout=100,
    )


ENVIRONMENTS = {
    "run, MPLBACKEND=nope": ["run", "small.yaml", *ON_NUMPY],
    "verify, MPLBACKEND=nope": ["verify", "--case", "odd", *ON_NUMPY],
    "bench, MPLBACKEND=nope": ["bench", "--sizes", "1", *ON_NUMPY],
}
MXNET_ENVIRONMENTS = {
    "run, MXNET_ENGINE_TYPE=foo": ["run", "small.yaml", "--backend", "mxnet"],
    "verify, MXNET_ENGINE_TYPE=foo": ["verify", "--case", "odd", "--backend", "mxnet"],
    "bench, MXNET_ENGINE_TYPE=foo": ["bench", "--sizes", "1", "--impl", "mxnet-fused"],
}


def assert_the_variable_is_named(tmp_path, wrong, args):
    """Exit code 3 before any work, and the variable to change; libraries read it at their start."""
    name, _, value = wrong.partition(", ")[2].partition("=")
    done = command(tmp_path, *args, **{name: value})
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("Error: ") and f"{name} is '{value}'" in done.stderr
    assert "bug" not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("wrong", slow_but(ENVIRONMENTS, "run, MPLBACKEND=nope"))
def test_an_environment_that_does_not_go_is_named(tmp_path, wrong):
    """By every command."""
    assert_the_variable_is_named(tmp_path, wrong, ENVIRONMENTS[wrong])


@needs_mxnet
@pytest.mark.parametrize("wrong", slow_but(MXNET_ENVIRONMENTS, "verify, MXNET_ENGINE_TYPE=foo"))
def test_an_environment_that_does_not_go_with_mxnet_is_named(tmp_path, wrong):
    """MXNet would end the process."""
    assert_the_variable_is_named(tmp_path, wrong, MXNET_ENVIRONMENTS[wrong])


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["--sizes", "1e10"], "smaller"),
        (["--sizes", "9e99"], "smaller"),
        (["--case", "length-9000000000000"], "smaller"),
        (["--case", "large", "--steps", "100000", "--dtype", "float64"], "fewer steps"),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_the_work(refused, args, advice):
    """It is the machine that lacks memory, and no kernel that fails."""
    code, message = refused("verify", *args, *ON_NUMPY)
    assert code == 3 and advice in message and "GB" in message
    assert not Path("results").exists()


def test_memory_is_compared_with_what_is_available(refused, monkeypatch):
    """Where it is not known how much there is, nothing is refused."""
    monkeypatch.setattr(runner, "Sandbox", lambda _timeout: InProcess())
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    args = ["verify", "--sizes", "17", "--impl", "numpy-fused", "--dtype", "float32", *ON_NUMPY]
    code, message = refused(*args)
    # Two implementations and four copies on the way, each of 4 states of three arrays.
    assert code == 3 and f"({17 * 4 * 12 * 6} bytes)" in message and "(1000 bytes)" in message
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    assert refused(*args)[0] in (None, 0)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_in_brackets_is_no_markup(tmp_path):
    """Rich takes [red] for a colour, and [/x] for an error."""
    folder = tmp_path / "k["
    folder.mkdir()
    kernel = Path(__file__).parents[2] / "examples" / "numpy_kernel.py"
    (folder / "x].py").write_text(kernel.read_text())
    (tmp_path / "q[red].yaml").write_text(ROSENBROCK)
    impl = ["--impl", "k[/x].py:step", *ON_NUMPY]
    bench = ["--sizes", "1", "--processes", "1", "--max-time", "0.1", "--out", "o[/y]"]
    for args, shown in (
        (["verify", *impl, "--case", "odd"], "k[/x].py:step"),
        (["bench", *impl, *bench], "k[/x].py:step"),
        (["compare", "o[/y]", "o[/y]"], "o[/y]"),
        (["run", "q[red].yaml", *ON_NUMPY], "q[red]"),
    ):
        done = command(tmp_path, *args)
        assert done.returncode == 0 and shown in done.stdout, (args, done.stderr)


FORGED = "\n\x1b[31mError: all is well\a\u202e\x85"


@pytest.mark.parametrize(
    "text",
    [
        '"a{0}",a,label\n1,2,0\n1,2\n',
        '"a{0}","a{0}",label\n1,2,0\n',
        '"a{0}",b\n1,2\n',
        'a,label\n"x{0}",0\n1,1\n',
        'a,label\n1,"x{0}"\n2,"y{0}"\n3,"z{0}"\n',
        '"a{0}",label\n1,\n',
        '"a{0}",label\nx,0\n2,1\n',
    ],
)
def test_a_csv_file_cannot_forge_a_message(refused, tmp_path, text):
    """A header or a cell may hold line breaks, colours and changes of direction."""
    path = tmp_path / "data.csv"
    path.write_bytes(text.format(FORGED).encode())
    code, message = refused(*setting(f"problem.csv={path}"))
    assert code == 2 and message.isprintable(), message


@pytest.mark.parametrize("value", ["\x1b[31m\n", "\udce9\n", "\u202e"])
def test_no_option_can_forge_a_message(refused, value):
    """Each value that a message repeats is escaped."""
    for name, parameter in TAKE_A_VALUE.values():
        if parameter.name in {
            "out",
            "record_gradients",
            "file",
            "data",
            "junit",
        }:  # such a name can be made
            continue
        code, message = refused(*given_to(name, parameter, f"x{value}x")[0])
        assert code == 2 and message.isprintable(), (name, parameter.name, message)


NEWLINE = "a\nError: all is well\x1b[2J"
ON_ONE_LINE = {
    "a folder's name": ["run", f"{NEWLINE}/two.yaml"],
    "a config that is not YAML": ["run", f"{NEWLINE}/bad.yaml"],
    "a config that is not UTF-8": ["run", f"{NEWLINE}/bytes.yaml"],
    "a config of another type": ["run", f"{NEWLINE}/list.yaml"],
    "a csv": setting(
        f'problem.csv="{NEWLINE}/two.yaml"'.replace("\n", "\\n").replace("\x1b", "\\e")
    ),
    "an argument too many": ["compare", "a", "b", NEWLINE],
    "a kernel without function": ["verify", "--impl", f"{NEWLINE}/k.py"],
    "a kernel of another function": ["verify", "--impl", f"{NEWLINE}/k.py:stop"],
    "a kernel that raises": ["verify", "--impl", f"{NEWLINE}/raises.py:step"],
    "bench of a kernel": ["bench", "--sizes", "1", "--impl", f"{NEWLINE}/k.py:stop"],
    "a recording": ["verify", "--replay", f"{NEWLINE}/bad.yaml"],
    "a baseline": ["bench", "--baseline", f"{NEWLINE}/bad.yaml"],
    "a result without rows": ["compare", f"{NEWLINE}/x.json", f"{NEWLINE}/x.json"],
    "another Python": ["bench", "--against", f"{NEWLINE}/bad.yaml", "--sizes", "1"],
    "a flag with a value": ["run", f"--force={NEWLINE}"],
    "a command": [NEWLINE],
    "a device as a file": ["run", "small.yaml", "--record-gradients", f"{NEWLINE}/link", *ON_NUMPY],
    "--out": ["run", "small.yaml", "--out", f"{NEWLINE}/two.yaml/x", *ON_NUMPY],
    "a damaged checkpoint": ["run", "small.yaml", "--resume", "--out", f"{NEWLINE}/out", *ON_NUMPY],
    "an unknown key": ["run", "small.yaml", "--set", f"optimizer.{NEWLINE}=1", *ON_NUMPY],
    "a value that is not one": ["run", "small.yaml", "--set", f"optimizer.rho='{NEWLINE}'"],
}


@pytest.mark.parametrize("args", ON_ONE_LINE.values(), ids=ON_ONE_LINE)
def test_a_name_with_a_line_break_adds_no_line_to_a_message(refused, args):
    """It is escaped; a config's faults have a line each."""
    folder = Path(NEWLINE)
    (folder / "out" / "small").mkdir(parents=True)
    (folder / "out" / "small" / "checkpoint.npz").write_text("no zip")
    (folder / "two.yaml").write_text(f"{ROSENBROCK}x: 1\ny: 1\n")
    (folder / "bad.yaml").write_text("a: [\n")
    (folder / "bytes.yaml").write_bytes(b"\xff")
    (folder / "list.yaml").write_text("[1]")
    (folder / "x.json").write_text('{"rows": []}')
    (folder / "k.py").write_text("def step(): ...")
    (folder / "raises.py").write_text("raise ValueError('a\\nb')")
    (folder / "link").symlink_to("/dev/null")
    code, message = refused(*args)
    lines = message.split("\n")
    assert code in {2, 4} and all(map(str.isprintable, lines)), message
    faults = 2 if args == ON_ONE_LINE["a folder's name"] else 1
    assert len(lines) == faults, message


def test_a_note_is_one_line(capsys):
    """Whatever the name in it."""
    Terminal().note(f"Files: {NEWLINE}/verify.csv")
    printed = capsys.readouterr().err
    assert printed == "Files: a\\nError: all is well\\x1b[2J/verify.csv\n"


# --- links and what is no file --------------------------------------------------------------------


@pytest.fixture
def links(tmp_path):
    """Make a config with a relative CSV file, and links of every kind."""
    real, far = tmp_path / "real", tmp_path / "far"
    for each in (real, far, tmp_path / "folder"):
        each.mkdir()
    (real / "c.yaml").write_text(
        "problem: {name: logistic_regression, csv: data.csv}\ntraining: {steps: 2}\n"
    )
    os.mkfifo(tmp_path / "pipe")
    for name, target in {
        "one": "../real/c.yaml",
        "two": "one",
        "dangling": "nowhere",
        "twice": "dangling",
        "loop": "pool",
        "pool": "loop",
        "folder": "../folder",
        "pipe": "../pipe",
        "beside": "../real",
        "kernel": "/proc/version",
        "error": "/proc/self/mem",  # which raises an error when it is read
    }.items():
        (far / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize("where", ["far/one", "far/two", "far/beside/c.yaml", "real/c.yaml"])
def test_a_relative_csv_is_beside_the_file_that_links_lead_to(refused, links, where):
    """Never beside a link; the message says where it was looked for."""
    data = links / "real" / "data.csv"
    (links / "far" / "data.csv").write_text("never read\n")
    code, message = refused("run", where, *ON_NUMPY)
    assert code == 2 and f"problem.csv is {data}," in message and "link's target" in message
    data.write_text("a,label\n" + "".join(f"{k},{k % 2}\n" for k in range(20)))
    assert refused("run", where, *ON_NUMPY)[0] in (None, 0)


NO_FILES = {
    "far/dangling": "No such file or directory (a symbolic link to nowhere)",
    "far/twice": "No such file or directory (a symbolic link to dangling)",
    "far/loop": "levels of symbolic links",
    "far/folder": "it is a folder",
    "folder": "it is a folder",
    "far/pipe": "a pipe",
    "pipe": "a pipe",
    "/dev/null": "a device",
    "/proc/version": "a file of the kernel",
    "far/kernel": "a file of the kernel",
    "far/error": "a file of the kernel",
    "/sys/kernel/notes": "a file of the kernel",
    "real/c.yaml/below": "Not a directory",
}


def python(path):
    """Make a link to a path that ends as a Python file does."""
    link = Path("kernel.py")
    link.symlink_to(Path(path).absolute())
    return link


def resumed(path):
    """Make a link to a path where a run expects its checkpoint."""
    folder = Path("results/run/small")
    folder.mkdir(parents=True)
    (folder / "checkpoint.npz").symlink_to(Path(path).absolute())
    return ["run", "small.yaml", *ON_NUMPY, "--resume"]


READ = {
    "run CONFIG": lambda path: ["run", path],
    "verify CONFIG": lambda path: ["verify", path],
    "problem.csv": lambda path: setting(f"problem.csv={path}"),
    "--replay": lambda path: ["verify", "--replay", path],
    "--baseline": lambda path: ["bench", "--baseline", path],
    "sweep CONFIG": lambda path: ["sweep", path, "--seeds", "2"],
    "compare OLD": lambda path: ["compare", path, path],
    "--against": lambda path: ["bench", "--against", path, "--sizes", "1", *ON_NUMPY],
    "verify --impl": lambda path: ["verify", "--impl", f"{python(path)}:step"],
    "bench --impl": lambda path: ["bench", "--impl", f"{python(path)}:step", "--sizes", "1"],
    "--impl, no function": lambda path: ["verify", "--impl", python(path)],
    "--resume": resumed,
    "run again": lambda path: resumed(path)[:-1],
}


FOR_CHECKPOINTS = {"--resume", "run again"}  # a missing one is no error


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(
    ("reader", "where"),
    [
        (reader, where)
        for reader in READ
        for where, reason in NO_FILES.items()
        if reader not in FOR_CHECKPOINTS or reason[:2] in {"a ", "it"}
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(refused, monkeypatch, reader, where):
    """Nothing waits for a pipe; a folder may stand for its bench.json."""
    monkeypatch.setattr(user_kernel, "Sandbox", lambda _timeout: InProcess())  # none is imported
    code, message = refused(*READ[reader](where))
    reason = NO_FILES[where].removeprefix("it is ").partition(" (")[0]
    assert code == 2 and any(name in message for name in (where, "kernel.py", "checkpoint.npz"))
    named = reason in message.replace("a named pipe", "a pipe")
    assert named or ("folder" in where and "bench.json" in message), message


@needs_mxnet
@pytest.mark.parametrize("where", [where for where in NO_FILES if where[:4] in {"pipe", "/pro"}])
def test_states_of_what_is_no_file_are_refused(links, where):
    """The reader of states reads nothing else, either."""
    from adadelta_cli.mxnet_bridge import states

    with pytest.raises(UsageError, match=NO_FILES[where]):
        states.read_states(links / where)


@pytest.mark.parametrize("name", ["torch-mlp", "torch-cnn"])
def test_a_training_without_its_library_is_not_available(refused, name, monkeypatch):
    """The message says what to install, and nothing is timed or written."""
    missing = "torch not installed; python -m pip install 'adadelta[torch]'"
    monkeypatch.setattr(array_backends, "missing_library", lambda _library: missing)
    code, message = refused("bench", "--train", name, "--backend", "numpy")
    assert code == 2, "wrong usage comes first"
    code, message = refused("bench", "--train", name)
    assert (code, message) == (3, f"--train {name}: {missing}")
    assert not Path("results").exists()
