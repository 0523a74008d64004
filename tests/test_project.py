"""What a public project has beside its code: CI, hooks, templates, a citation, a map."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from test_docs import ROOT

from adadelta_cli.system import machine
from adadelta_cli.verification.cases import DEFAULT
from adadelta_cli.verification.mutants import MUTANTS

PROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))  # all but config.yml
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
PACKAGE = ROOT / "adadelta_cli"
PACKAGES = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE / "run" / "problems"})


SECTIONS = CONTRIBUTING[CONTRIBUTING.index("Data flows") : CONTRIBUTING.index("## What may be")]
SUFFIX = "(?:py|cu|md|json|toml|yaml|yml)"
ELSEWHERE = {"copyreg", "verify", "TYPE_CHECKING"}  # defined outside of the package, or commands
# The requirements in pyproject.toml by their table, in lower case.
EXTRAS = {
    table: re.findall(r'"([\w-]+)(?=[<>=;"\[])', text.lower())
    for table, text in re.findall(r"^([a-z]+) = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)
    if table in {"dependencies", "torch", "jax", "gpu"}
}
# psutil, setuptools and Jinja2 compute nothing; `gpu.probe` finds NVIDIA's versions.
UNRECORDED = {"psutil", "setuptools", "jinja2"} | {
    name for name in EXTRAS["gpu"] if "nvidia" in name
}


def load(name):
    """Read one of the YAML files; fail where it is none."""
    return yaml.safe_load((ROOT / name).read_text())


def field(name):
    """Return a text of pyproject.toml, whose reader the standard library has from 3.11 on."""
    return re.search(rf'^{name} = "(.*)"', PROJECT, re.MULTILINE)[1]


def targets(text):
    """List the targets of the `make` commands in a text."""
    return {each for line in re.findall(r"\bmake ([a-z -]+)", text) for each in line.split()[:1]}


def test_ci_runs_every_python_that_is_declared():
    """The matrix of CI is the classifiers' list, and it installs a wheel and runs the tests."""
    jobs = load(".github/workflows/ci.yml")["jobs"]
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert jobs["test"]["strategy"]["matrix"]["python"] == declared
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert "pip wheel" in commands
    assert targets(commands) == {"check", "test"}
    assert ".ci/run" in commands


def test_the_site_is_built_for_pull_requests_and_published_from_main():
    """With the least permissions: only the job that publishes may write, and to Pages only."""
    workflow = load(".github/workflows/docs.yml")
    jobs = workflow["jobs"]
    assert targets("\n".join(step.get("run", "") for step in jobs["build"]["steps"])) == {"docs"}
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in jobs["build"]
    publish = jobs["publish"]
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert "refs/heads/main" in publish["if"] and publish["needs"] == "build"
    used = [
        step["uses"].split("@")[0]
        for job in jobs.values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert used[2:] == [
        f"actions/{name}" for name in ("upload-pages-artifact", "configure-pages", "deploy-pages")
    ]


def test_hooks_use_the_tools_of_make_check():
    """A local hook runs a tool that `make check` runs."""
    hooks = [
        h for r in load(".pre-commit-config.yaml")["repos"] for h in r["hooks"] if "entry" in h
    ]
    tools = {hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"}
    assert {".venv/bin/ruff", ".venv/bin/codespell"} <= tools
    for tool in tools - {"make"}:
        assert tool.replace(".venv/bin", "$(BIN)") in MAKEFILE


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_complete(form):
    """Each has a name, a description, and questions with ids of their own and labels."""
    content = load(form)
    assert content["name"]
    assert content["description"]
    ids = [each["id"] for each in content["body"]]
    assert len(ids) == len(set(ids))
    assert all(each["attributes"]["label"] for each in content["body"])


def test_the_forms_cover_bugs_verdicts_and_features():
    """There are forms, and blank issues are decided on."""
    assert {form.stem for form in FORMS} == {"bug", "feature", "verifier"}
    assert "blank_issues_enabled" in load(".github/ISSUE_TEMPLATE/config.yml")


def test_the_citation_is_that_of_the_package():
    """Title, version and licence are those of pyproject.toml; the paper is cited."""
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    for key in ("message", "authors"):
        assert citation[key]
    names = {"title": "name", "version": "version", "license": "license"}
    assert {key: citation[key] for key in names} == {k: field(v) for k, v in names.items()}
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:1212.5701"


def test_the_addresses_are_complete():
    """PyPI shows them beside the description."""
    urls = dict(re.findall(r'^(\w+) = "(https://.*)"$', PROJECT, re.MULTILINE))
    wanted = {"Homepage", "Documentation", "Source", "Issues", "Changelog", "Paper"}
    assert {*urls} == wanted
    assert all(
        urls[name].startswith(urls["Source"]) for name in ("Homepage", "Issues", "Changelog")
    )
    assert urls["Paper"] == load("CITATION.cff")["references"][0]["url"]


RELEASE = load(".github/workflows/release.yml")


def test_a_release_is_checked_before_it_is_published():
    """Tag and version agree, the wheel is installed and runs; nothing stores a token."""
    jobs = RELEASE["jobs"]
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` so
    assert RELEASE["permissions"] == {"contents": "read"}
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    order = [".ci/release-notes", "make check", "python -m build", "twine check --strict"]
    places = [commands.index(each) for each in (*order, "wheel/bin/adadelta run rosenbrock")]
    assert places == sorted(places)
    assert targets(commands) <= TARGETS
    publish = jobs["publish"]
    assert publish["needs"] == "build" and publish["environment"]["name"] == "pypi"
    assert publish["permissions"]["id-token"] == publish["permissions"]["attestations"] == "write"
    uses = [step["uses"].partition("@")[0] for step in publish["steps"]]
    assert uses[1:] == ["actions/attest-build-provenance", "pypa/gh-action-pypi-publish"]
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
    assert jobs["release"]["needs"] == "publish"


@pytest.fixture
def notes(tmp_path):
    """Return what prints the notes of a tag, with a changelog; exit code, stdout, stderr."""
    (tmp_path / ".ci").mkdir()
    for name in (".ci/release-notes", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)

    def notes(tag, changelog):
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        line = [tmp_path / ".ci/release-notes", *tag]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return notes


VERSION = field("version")
DATED = (
    f"# Changelog\n\n## 9.9.9 - 2030-01-01\n\nb\n\n## {VERSION} - 2026-01-31\n\n### Added\n\n- a\n"
)


def test_the_notes_of_a_release_are_its_section(notes):
    """Neither those of another version nor the heading."""
    more = f"{DATED}\n## 0.0.1 - 2020-01-01\n\n- old\n"
    assert notes([f"v{VERSION}"], more) == (0, "### Added\n\n- a\n", "")


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ([f"v{VERSION}1"], DATED, "expected the tag v"),
        ([VERSION], DATED, "expected the tag v"),
        ([f"v{VERSION}"], DATED.replace("2026-01-31", "unreleased"), "no dated section"),
        ([f"v{VERSION}"], DATED.replace(VERSION, "0.0.1"), "no dated section"),
        ([f"v{VERSION}"], DATED.partition("### Added")[0], "is empty"),
        ([], DATED, "expected a tag"),
    ],
)
def test_a_release_that_does_not_agree_with_itself_is_refused(notes, tag, changelog, message):
    """Tag, version, date and notes; also the version to cite."""
    code, out, err = notes(tag, changelog)
    assert (code, out) == (1, "") and message in err


def test_make_targets_are_documented():
    """CONTRIBUTING has each target, and pages and CI name none that does not exist."""
    assert {"run", "test", "check"} <= TARGETS
    assert targets(CONTRIBUTING) == TARGETS - {"run"}
    workflows = (".github/workflows/ci.yml", ".github/workflows/docs.yml")
    for name in ("README.md", ".ci/run", *workflows, "SECURITY.md"):
        assert targets((ROOT / name).read_text()) <= TARGETS


def described(package):
    """Return what the tree in CONTRIBUTING says of a package, up to the next one."""
    name = "adadelta_cli/" if package == PACKAGE else f"{package.name}/"
    end = "      kernels/" if package == PACKAGE else r"\n      \w|\n\n"
    return re.search(rf"^ +{name}.*?(?={end})", CONTRIBUTING, re.DOTALL | re.MULTILINE)[0]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_tree_in_contributing_is_the_tree(package):
    """It names each module of a package, and none that is not there."""
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b|__main__\.py", described(package))) == modules


def test_contributing_names_files_that_exist():
    """Each file in backticks exists, the written results and patterns such as NAME apart."""
    found = re.findall(rf"`([\w./-]*\w\.{SUFFIX})`", CONTRIBUTING)
    assert {"test_words.py", "registry.py"} <= {path.rpartition("/")[2] for path in found}
    for path in found:
        place = PACKAGE if "/" not in path and not (ROOT / path).exists() else ROOT
        if not (path.startswith("results/") or "NAME" in path):
            assert (PACKAGE / path).exists() or any(place.glob(f"**/{path}")), path


def test_contributing_names_what_the_sources_define():
    """Each function, class and table in backticks is defined, in the module that stands before."""
    names = set(re.findall(rf"`((?:\w+\.)*(?!{SUFFIX}`)\w+)`", SECTIONS)) - ELSEWHERE
    assert {"DEFAULT", "WideStep", "Sandbox.call", "user_kernel._bind_named"} <= names
    for name in names - {path.name for path in PACKAGES}:
        *before, last = name.split(".")
        paths = [*PACKAGE.rglob(f"{before[-1]}.py")] if before else []
        every = (*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"))
        text = "\n".join(path.read_text() for path in paths or every)
        assert re.search(rf"^ *(def |class )?{last}\b(\(|:| =|\[)", text, re.MULTILINE), name


@pytest.mark.parametrize(("extra", "names"), EXTRAS.items())
def test_the_versions_of_all_libraries_are_recorded(extra, names):
    """Those that this package requires, but for a few that no bit and no timing depends on."""
    recorded = {name.lower() for name in machine.LIBRARIES}
    assert set(names) - recorded - UNRECORDED == set(), extra


def test_the_counts_in_the_readme():
    """The README has the number of the default cases, and that of the mutants."""
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"(\d+) cases", readme)) == {str(len(DEFAULT))}
    assert set(re.findall(r"(\d+) mutants", readme)) == {str(len(MUTANTS))}
