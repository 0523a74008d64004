"""The GitHub action: its inputs, the workflows in docs/ci.md, and its scripts, run with bash."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from test_docs import ROOT

import adadelta_cli

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("name", step.get("uses")): step for step in ACTION["runs"]["steps"]}
PROJECT = (ROOT / "pyproject.toml").read_text()
PAGE = (ROOT / "docs" / "ci.md").read_text()
SHOWN = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
WORKFLOWS = [each for each in SHOWN if "jobs" in each]
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]  # as GitHub starts `shell: bash`
needs_bash = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("git")), reason="bash or git is not installed"
)

# Stands for `python -m venv FOLDER`: an environment that has this test's packages, and whose pip
# only writes down what it was asked for.
PYTHON = """#!/bin/bash
set -e
mkdir -p "$3/bin"
"{python}" -m venv --without-pip "$3/real"
packages=$(echo "$3"/real/lib/python*/site-packages)
printf '%s\\n' "{package}" "{site}" > "$packages/this.pth"
printf '%s\\n' '#!/bin/bash' 'if [[ "$1 $2" == "-m pip" ]]; then' \\
  '  printf "%s\\n" "$PWD" "$@" >> "{asked}"; exit; fi' \\
  "exec '$3/real/bin/python' \\"\\$@\\"" > "$3/bin/python"
printf '%s\\n' '#!/bin/bash' \\
  "exec '$3/real/bin/python' -m adadelta_cli \\"\\$@\\"" > "$3/bin/adadelta"
chmod +x "$3/bin/python" "$3/bin/adadelta"
"""


class Runner:
    """A runner of GitHub, as far as the scripts of the action see it."""

    def __init__(self, folder, workspace, **inputs):
        self.folder, self.workspace = folder, workspace
        self.inputs = {name: each.get("default", "") for name, each in ACTION["inputs"].items()}
        self.inputs |= inputs
        self.outputs = {}
        self.summary = folder / "summary.md"
        (folder / "temp").mkdir(parents=True)
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "GITHUB_WORKSPACE": str(workspace),
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(folder / "output"),
            "RUNNER_TEMP": str(folder / "temp"),
        }
        self._put_python()

    def _put_python(self):
        place = self.folder / "bin" / "python"
        place.parent.mkdir()
        names = {
            "python": sys.executable,
            "package": Path(adadelta_cli.__file__).parents[1],
            "site": sysconfig.get_path("purelib"),
            "asked": self.folder / "asked",
        }
        place.write_text(PYTHON.format(**names))
        place.chmod(0o755)

    def value(self, text):
        """Return the value of a text with expressions of GitHub."""
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: self._expression(found[1]), text)

    def _expression(self, text):
        for name in text.split(" || "):
            kind, _, rest = name.partition(".")
            step, _, output = rest.partition(".outputs.")
            known = {"inputs": self.inputs.get(rest), "github": "", "steps": None}[kind]
            value = self.outputs.get(step, {}).get(output, "") if kind == "steps" else known
            assert value is not None, text
            if value:
                return value
        return ""

    def run(self, name):
        """Run a step; return the finished process."""
        step = STEPS[name]
        values = {key: self.value(text) for key, text in step.get("env", {}).items()}
        output = self.folder / "output"
        output.write_text("")
        done = subprocess.run(
            [*BASH, step["run"]],
            env=self.environment | values,
            cwd=self.workspace,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = output.read_text().splitlines()
        self.outputs[step.get("id", name)] = dict(line.split("=", 1) for line in lines)
        return done

    @property
    def root(self):
        """The folder of the action."""
        return Path(self.outputs["install"]["root"])


def test_no_input_stands_in_a_script():
    """An expression would be replaced in the text of the script, and executed."""
    for path in ("action.yml", *(ROOT / ".github" / "workflows").glob("*.yml")):
        content = yaml.safe_load((ROOT / path).read_text())
        jobs = content["jobs"].values() if "jobs" in content else [content["runs"]]
        scripts = [step.get("run", "") for job in jobs for step in job["steps"]]
        assert not [script for script in scripts if "${{" in script], path


def test_the_action_is_complete():
    """Each input has a description and is used; each script has its shell and known variables."""
    text = (ROOT / "action.yml").read_text()
    for name, each in ACTION["inputs"].items():
        assert each["description"] and ("default" in each or each["required"]), name
        assert f"inputs.{name}" in text, name
        assert f"`{name}`" in PAGE, name
    assert {*re.findall(r"inputs\.([\w-]+)", text)} == {*ACTION["inputs"]}
    ids = {step["id"] for step in STEPS.values() if "id" in step}
    assert {*re.findall(r"steps\.(\w+)\.", text)} == ids
    for step in STEPS.values():
        assert ("run" in step) == (step.get("shell") == "bash")
        used = {*re.findall(r"\$\{?#?([A-Z_]+)\b", step.get("run", ""))}
        given = {"GITHUB_WORKSPACE", "GITHUB_ACTION_PATH", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"}
        assert used - given - {"RUNNER_TEMP"} == {*step.get("env", {})}, step


def test_the_defaults_are_those_of_the_options():
    """Where the action has a default of its own, docs/ci.md has it."""
    named = {
        name: each["default"] for name, each in ACTION["inputs"].items() if each.get("default")
    }
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", PAGE, re.MULTILINE))
    for name, default in named.items():
        (row,) = (text for names, text in rows.items() if f"`{name}`" in names)
        assert default in row, name


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda each: each["name"])
def test_the_workflow_in_the_docs_uses_the_action(workflow):
    """Its inputs exist, required ones are there, and its token can write nothing."""
    assert workflow[True] == "pull_request"  # YAML 1.1 reads `on` so
    assert workflow["permissions"] == {"contents": "read"}
    (uses,) = (s for s in workflow["jobs"]["step"]["steps"] if "adadelta" in s["uses"])
    assert {*uses["with"]} <= {*ACTION["inputs"]}
    assert {n for n, each in ACTION["inputs"].items() if each.get("required")} <= {*uses["with"]}
    repository = re.search(r"^Source = \"https://github.com/(.*)\"", PROJECT, re.MULTILINE)[1]
    assert uses["uses"].partition("@")[0] == repository


def test_the_lines_for_gitlab_name_the_file_that_is_written():
    """The report is what --junit writes."""
    (job,) = (each["step"] for each in SHOWN if "step" in each)
    file = job["artifacts"]["reports"]["junit"]
    assert f"--junit {file}" in job["script"][-1] and job["artifacts"]["when"] == "always"


def workspace_of(folder):
    """Make a clone of depth 1 whose head is behind a base that it does not have; return both."""
    origin, clone = folder / "origin", folder / "clone"
    text = (ROOT / "examples" / "numpy_kernel.py").read_text()
    mark = "\nimport os\nfrom pathlib import Path\nPath(os.environ['MARKS'], '{}').touch()\n"

    def git(*args, cwd=origin):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=m"]
        done = subprocess.run(
            [shutil.which("git"), *who, *args], cwd=cwd, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    (origin / "my kernels").mkdir(parents=True)
    git("init", "--quiet")
    commits = []
    for side in ("base", "head"):
        (origin / "my kernels" / "kernel.py").write_text(text + mark.format(side))
        git("add", ".")
        git("commit", "--quiet", "--message", side)
        commits.append(git("rev-parse", "HEAD"))
    git("clone", "--quiet", "--depth", "1", f"file://{origin}", str(clone), cwd=folder)
    return clone, commits[0]


@pytest.mark.slow
@needs_bash
def test_the_scripts_of_the_action_run(tmp_path):
    """Head and base are each imported from their own commit; summary and artifact are complete."""
    workspace, base = workspace_of(tmp_path)
    runner = Runner(
        tmp_path / "runner",
        workspace,
        implementation="my kernels/kernel.py:step\n",
        cases="odd",
        dtype="float32",
        sizes="1e4",
        processes="1",
        against=base,
        install="-r requirements.txt",
        **{"max-time": "0.1"},
    )
    marks = tmp_path / "marks"
    marks.mkdir()
    runner.environment["MARKS"] = str(marks)
    for name in ("Install", "Verify", "Install the base", "Bench", "Report"):
        done = runner.run(name)
        assert done.returncode == 0, f"{name}: {done.stdout} {done.stderr}"
        assert name != "Verify" or [*marks.iterdir()] == [marks / "head"]
    assert {each.name for each in marks.iterdir()} == {"base", "head"}
    results = runner.root / "results"
    for part in ("verify/verify.json", "bench/bench.json", "report.html", "verify.xml"):
        assert (results / part).stat().st_size, part
    root = ET.parse(results / "verify.xml").getroot()  # noqa: S314 - of this test
    assert root[0].get("name") == "my kernels/kernel.py:step" and root.get("failures") == "0"
    (pair,) = json.loads((results / "bench/bench.json").read_text())["pairs"]
    assert pair["old_s"] and pair["new_s"]
    summary = runner.summary.read_text()
    assert "**adadelta verify**: " in summary and "| kernel:step |" in summary
    assert f"\n\n**adadelta bench**, compared with the base {base}\n\n| workload" in summary
    assert "**adadelta compare**" in summary and "**UNCLEAR**" in summary
    asked = (tmp_path / "runner" / "asked").read_text()
    assert asked.count(f"install\n--quiet\n{ROOT}\n") == 2
    assert f"{workspace}\n-m\npip\ninstall\n--quiet\n-r\nrequirements.txt\n" in asked
    assert f"{runner.root / 'tree'}\n-m\npip\n" in asked and not (runner.root / "tree").exists()


RECORDS = '#!/bin/bash\nprintf \'%s\\n\' "$@" > "$ARGS"\n'
HOSTILE = {
    "a command": "$(touch pwned)",
    "an end": "'; touch pwned; '",
    "an end in double quotes": '"; touch pwned; "',
    "backticks": "`touch pwned`",
    "an option": "--help",
    "a pattern": "*",
}


@pytest.fixture
def recording(tmp_path):
    """Return a runner whose `adadelta` and `pip` write down their arguments."""
    runner = Runner(tmp_path / "runner", tmp_path)
    root = tmp_path / "action"
    for name in ("head/bin/adadelta", "head/bin/python"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(RECORDS)
        (root / name).chmod(0o755)
    (root / "empty").mkdir()
    runner.outputs["install"] = {"root": str(root)}
    runner.environment["ARGS"] = str(tmp_path / "args")
    return runner


@needs_bash
@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_an_input_is_an_argument_whatever_it_is(recording, tmp_path, value):
    """Nothing of it is executed, taken for an option, or replaced by names of files."""
    recording.inputs |= {"implementation": f"numpy\n  {value}\n", "cases": value, "sizes": value}
    recording.inputs |= {"dtype": f"float32,{value}", "processes": value, "threshold": value}
    assert recording.run("Verify").returncode == 0
    args = (tmp_path / "args").read_text().splitlines()
    assert [arg for arg in args if "impl" in arg] == ["--impl=numpy", f"--impl={value}"]
    assert f"--case={value}" in args
    words = value.replace(",", " ").split()
    assert [arg for arg in args if "dtype" in arg] == [f"--dtype={w}" for w in ("float32", *words)]
    assert recording.run("Bench").returncode == 0
    args = (tmp_path / "args").read_text().splitlines()
    assert {f"--sizes={value}", f"--processes={value}"} <= {*args}
    assert "--against" not in args, "there is no base"
    assert not [*tmp_path.rglob("pwned")]


FAILS = """#!/bin/bash
echo "{stdout}"
mkdir -p "$ROOT/results/bench"
echo '{{"rows": [{{"note": "{note}"}}]}}' > "$ROOT/results/bench/bench.json"
exit {code}
"""


@needs_bash
@pytest.mark.parametrize(
    ("fail", "code", "note", "ended"),
    [
        ("true", 1, "", 1),
        ("false", 1, "", 0),
        ("false", 1, "wrong: 3 of 9 values", 1),
        ("false", 1, "failed: raised X", 1),
        ("false", 2, "", 2),
        ("false", 4, "", 4),
        ("false", 0, "", 0),
    ],
)
def test_only_slower_is_a_warning_without_fail_on_slower(recording, fail, code, note, ended):
    """A wrong step and any other failure end the step with their exit code."""
    root = recording.root
    text = FAILS.format(stdout="the table", note=note, code=code)
    (root / "head/bin/adadelta").write_text(text)
    (root / "head/bin/python").unlink()
    (root / "head/bin/python").symlink_to(sys.executable)
    recording.inputs |= {"fail-on-slower": fail, "implementation": "numpy-fused"}
    done = recording.run("Bench")
    assert done.returncode == ended, done.stderr
    assert ("::warning::" in done.stdout) == (code == 1 and not ended)
    assert "the table" in recording.summary.read_text()


@needs_bash
def test_a_wrong_value_of_fail_on_slower_is_refused(tmp_path):
    """Before anything is installed."""
    runner = Runner(tmp_path / "runner", tmp_path, **{"fail-on-slower": "yes"})
    done = runner.run("Install")
    assert done.returncode == 2 and "fail-on-slower" in done.stdout
    assert not runner.outputs["install"]


@needs_bash
@pytest.mark.parametrize(
    ("second", "code"), [("b/k.py:step", 2), ("a/k.py:other", 0), ("b/k2.py:step", 0)]
)
def test_bench_refuses_files_of_one_name_in_two_folders(recording, second, code):
    """They are imported as modules: the first would be timed in place of the second."""
    recording.inputs["implementation"] = f"a/k.py:step\n{second}"
    site = recording.root / "site"
    site.mkdir()
    python = recording.root / "head/bin/python"
    python.unlink()
    python.write_text(f"#!/bin/bash\necho '{site}'\n")
    python.chmod(0o755)
    done = recording.run("Bench")
    assert done.returncode == code, done.stderr
    assert ("::error::" in done.stdout and "b/k.py" in done.stdout) == (code == 2)
