"""The Dockerfile, as far as it can be checked without Docker; CI builds the image and runs it."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from test_docs import ROOT

from adadelta_cli.system import environment

PROJECT = (ROOT / "pyproject.toml").read_text()
PAGE = (ROOT / "docs" / "ci.md").read_text()
TEXT = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES if line.strip()]
STAGES = [k for k, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
LAST = dict(INSTRUCTIONS[STAGES[-1] :])
IGNORED = [
    line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
]


def arguments(name):
    """List the arguments of each instruction of a name."""
    return [text.split() for each, text in INSTRUCTIONS if each == name]


def pairs(text):
    """Read the KEY=VALUE words of an instruction."""
    return dict(word.split("=", 1) for word in shlex.split(text))


def is_ignored(path):
    """Tell whether the last pattern that matches a path, or a folder above it, excludes it."""
    ignored = False
    for pattern in IGNORED:
        name = pattern.removeprefix("!")
        above = (path, *(each.as_posix() for each in Path(path).parents))
        parts = Path(path).parts if name.startswith("**/") else above
        if any(fnmatch.fnmatchcase(part, name.removeprefix("**/")) for part in parts):
            ignored = not pattern.startswith("!")
    return ignored


def test_the_base_is_pinned_to_a_python_that_is_supported_with_mxnet():
    """Each stage has the same, which docs and classifiers name."""
    (base,) = {words[0] for words in arguments("FROM")}
    version, system = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", base).groups()
    assert f'"Programming Language :: Python :: {version}"' in PROJECT
    assert version in {"3.10", "3.11", "3.12"} and system == "bookworm"
    assert f"an image of Python {version} with MXNet" in PAGE


def test_the_last_stage_has_only_what_runs():
    """No source, no build tool; packages of the system leave no lists behind."""
    copied = [text for name, text in INSTRUCTIONS[STAGES[-1] :] if name == "COPY"]
    assert copied == ["--from=build /opt/adadelta /opt/adadelta"]
    run = LAST["RUN"]
    assert "--no-install-recommends libgomp1" in run and "rm -rf /var/lib/apt/lists/*" in run
    assert not re.search(r"gcc|build-essential|pip", run)
    installs = [line for line in TEXT.splitlines() if "pip install" in line]
    assert installs and all("--no-cache-dir" in line for line in installs)


def test_the_user_is_fixed_and_not_root():
    """By number, so that Kubernetes can check it."""
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", LAST["USER"])
    assert LAST["USER"].partition(":")[0] in PAGE


def test_nothing_comes_from_the_network_but_packages():
    """ADD would fetch what nobody checks; so would curl."""
    assert not arguments("ADD")
    assert not re.search(r"\b(curl|wget|git)\b|https?://", " ".join(arguments("RUN")[0]))


def test_all_sources_are_there_and_sent():
    """Each COPY names what exists and .dockerignore lets through; it lets nothing else through."""
    sources = [
        word for words in arguments("COPY") if "--from" not in words[0] for word in words[:-1]
    ]
    for source in sources:
        assert (ROOT / source).exists() and not is_ignored(source), source
    sent = {each.name for each in ROOT.iterdir() if not is_ignored(each.name)}
    assert sent == {*sources}
    assert not is_ignored("adadelta_cli/run/config.py")
    assert is_ignored("adadelta_cli/run/__pycache__") and is_ignored(".git")


def test_what_the_build_reads_is_copied():
    """The README, the licence and the configs, which pyproject.toml names."""
    named = re.findall(r'"(README\.md|LICENSE)"', PROJECT)
    sources = {word for words in arguments("COPY") for word in words[:-1]}
    assert {*named, "configs", "adadelta_cli", "pyproject.toml"} <= sources


def test_the_variables_are_those_that_are_read():
    """Caches are below /tmp, and docs/ci.md has their names."""
    variables = pairs(LAST["ENV"])
    source = Path(environment.__file__).read_text()
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        assert variables[name].startswith("/tmp/adadelta/")  # noqa: S108 - of the container
        assert f'os.environ.get("{name}")' in source and f"`{name}`" in PAGE
    assert variables["PATH"] == "/opt/adadelta/bin:$PATH"
    assert LAST["ENTRYPOINT"] == '["adadelta"]' and "[project.scripts]\nadadelta =" in PROJECT
    assert LAST["WORKDIR"] == "/work"


def test_the_labels_are_those_of_the_project():
    """Licence and addresses are those of pyproject.toml."""
    labels = pairs(LAST["LABEL"])
    prefix = "org.opencontainers.image."
    assert all(name.startswith(prefix) for name in labels)
    for label, field in {
        "title": "name",
        "licenses": "license",
        "source": "Source",
        "documentation": "Documentation",
    }.items():
        value = re.search(rf'^{field} = "(.*)"', PROJECT, re.MULTILINE)[1]
        assert labels[prefix + label] == value


def test_ci_runs_the_image_as_the_docs_do():
    """With a read-only root, a /tmp in memory and the current folder at /work."""
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["container"]
    script = "\n".join(step.get("run", "") for step in steps["steps"])
    shown = [line for line in PAGE.splitlines() if line.startswith("$ docker run")]
    assert len(shown) >= 2
    for word in ("--read-only", "--tmpfs /tmp", ':/work"', '--user "$(id -u):$(id -g)"'):
        assert word in script and all(word in line for line in shown), word
    assert "docker build --tag adadelta ." in script and "docker build --tag adadelta ." in PAGE
    assert "verify" in script and "run rosenbrock" in script


# Runs a command in a mount namespace of its own whose root is read-only but for two folders, as a
# user without a name: what `docker run --read-only --tmpfs /tmp --user` does, on this system.
ISOLATED = """
set -e
mount --make-rprivate /
mount --bind "$WORK" "$WORK"
if [ -n "$CLOSED" ]; then # others may not enter this folder, as /root, which has the interpreter
  mkdir "$WORK/stage"
  mount --bind "$PREFIX" "$WORK/stage"
  mount -t tmpfs -o mode=755 tmpfs "$CLOSED"
  mkdir -p "$PREFIX"
  mount --move "$WORK/stage" "$PREFIX"
fi
mount -t tmpfs -o noexec,nosuid,nodev tmpfs /tmp
mount -o remount,bind,ro /
cd "$WORK"
exec setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps=-all "$@"
"""


COMMANDS = (  # the second finds the compiled kernels of the first
    "run rosenbrock --backend numpy",
    "verify --impl numpy-fused --dtype float32 --case odd",
    "--version",
)


def can_isolate():
    """Tell whether this process may make a mount namespace and be another user."""
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /tmp && setpriv --version"]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def closed_above(path):
    """Return the first folder above a path that other users may not enter, if any."""
    above = reversed(Path(path).resolve().parents)
    return next((str(each) for each in above if not each.stat().st_mode & stat.S_IXOTH), "")


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="needs unshare, setpriv and root's rights")
def test_it_works_with_a_read_only_root_as_a_user_without_a_name():
    """No warning about a cache, no file outside of /tmp and the work folder, exit code 0."""
    place = Path("/var/tmp") / f"adadelta-{os.getpid()}"  # noqa: S108 - /tmp is covered
    place.mkdir()
    try:
        place.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        paths = [str(ROOT), sysconfig.get_path("purelib")]
        given = {name: value for name, value in pairs(LAST["ENV"]).items() if name != "PATH"}
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(paths),
            "WORK": str(place),
            "PREFIX": sys.base_prefix,
            "CLOSED": closed_above(sys.base_prefix),
            **given,
        }
        commands = " && ".join(f'"{sys.executable}" -m adadelta_cli {each}' for each in COMMANDS)
        line = ["unshare", "--mount", "sh", "-c", ISOLATED, "sh", "sh", "-c", commands]
        done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        results = place / "results"
        assert (results.stat().st_uid, results.stat().st_gid) == (54321, 54321)
        assert {each.name for each in results.rglob("*.png")} == {"loss.png", "verify.png"}
    finally:
        shutil.rmtree(place)
