"""What is installed works without the repository: configs, version, entry points."""

from __future__ import annotations

import email
import email.policy
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import HERE
from readme_renderer import markdown

CONFIGS = {"rosenbrock", "logistic_regression", "mlp"}


def run(*args, **kwargs):
    """Run a command; fail with its stderr."""
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, HERE.parent)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel):
    """Return the metadata of the wheel; its body is the description."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name), policy=email.policy.default)


@pytest.mark.slow
def test_the_description_works_apart_from_the_repository(metadata):
    """Each link and picture is absolute, and leads to what the repository has at the tag."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_content()
    links = re.findall(r"\]\(([^)]*)\)", text)
    repository = "https://github.com/adadelta-cli/adadelta/blob/v" + metadata["Version"] + "/"
    pictures = (
        "https://raw.githubusercontent.com/adadelta-cli/adadelta/v" + metadata["Version"] + "/"
    )
    assert links and all(link.startswith("https://") for link in links)
    own = [link for link in links if link.startswith((repository, pictures))]
    assert len(own) > 10
    for link in own:
        path = link.removeprefix(repository).removeprefix(pictures).partition("#")[0]
        assert (HERE.parent / path).exists(), link
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert shown and all(link.startswith(pictures) for link in shown)
    readme = (HERE.parent / "README.md").read_text()
    assert text.count("\n") == readme.count("\n"), "only links differ"


@pytest.mark.slow
def test_the_description_renders_as_on_pypi(metadata):
    """With the library that PyPI uses; pictures and tables are there."""
    page = markdown.render(metadata.get_content())
    assert page is not None
    assert page.count("<img") == metadata.get_content().count("![") and "<table>" in page


@pytest.mark.slow
def test_the_metadata_has_the_addresses(metadata):
    """And the licence, its file, and the Pythons."""
    addresses = dict(each.split(", ") for each in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= {*addresses}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_and_the_docs_need(tmp_path):
    """It builds the same wheel; no results, caches or environments are in it."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, HERE.parent)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {each.partition("/")[2] for each in archive.getnames()}
    needed = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "pyproject.toml"}
    needed |= {"configs/mlp.yaml", "docs/cli.md", "examples/numpy_kernel.py", "tests/conftest.py"}
    needed |= {"action.yml", "Dockerfile", ".dockerignore", ".ci/run", ".ci/release-notes"}
    assert needed <= names
    outside = re.compile(r"(^|/)(\.venv|\.git|results|__pycache__|\.\w+_cache)(/|$)")
    assert not [each for each in names if outside.search(each) and "sample" not in each]


@pytest.mark.slow
def test_the_wheel_holds_package_and_configs(wheel):
    """Every module, the CUDA source, the type marker, each config with its schema, and no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = HERE.parent / "adadelta_cli"
    for path in [*package.rglob("*.py"), *package.rglob("*.cu")]:
        assert path.relative_to(HERE.parent).as_posix() in names
    assert {f"adadelta_cli/configs/{name}.yaml" for name in CONFIGS} <= names
    assert "adadelta_cli/configs/schema.json" in names
    assert "adadelta_cli/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_configs_are_found_by_name_from_a_wheel(wheel, tmp_path):
    """Installed apart from the repository and run elsewhere, names still work."""
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target)}
    where = "import adadelta_cli; print(adadelta_cli.__file__)"
    assert str(target) in run(sys.executable, "-c", where, cwd=elsewhere, env=environment)
    run(
        sys.executable,
        "-m",
        "adadelta_cli",
        "run",
        "--backend",
        "numpy",
        "rosenbrock",
        cwd=elsewhere,
        env=environment,
    )
    assert (elsewhere / "results" / "run" / "rosenbrock" / "history.csv").exists()


@pytest.mark.slow
def test_configs_are_found_by_name_from_the_repository(tmp_path):
    """The editable install, from another directory."""
    args = ("-m", "adadelta_cli", "run", "--backend", "numpy", "rosenbrock", "--quiet")
    run(sys.executable, *args, cwd=tmp_path)
    assert (tmp_path / "results" / "run" / "rosenbrock" / "loss.png").exists()


def test_the_console_script():
    """`adadelta` and `python -m adadelta_cli` are one program."""
    script = Path(sys.executable).parent / "adadelta"
    if not script.exists():
        pytest.skip("this interpreter's environment has no adadelta installed (`make test` has)")
    assert run(script, "--version") == run(sys.executable, "-m", "adadelta_cli", "--version")


def test_help_is_light():
    """No heavy library is imported for a help text."""
    code = (
        "import sys\n"
        "from adadelta_cli.__main__ import main\n"
        "heavy = {'mxnet', 'numba', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'rich', 'scipy',\n"
        "         'pydantic', 'yaml'}\n"
        "for line in ('', '-h', '--help', 'run -h', 'verify --help', 'compare -h'):\n"
        "    sys.argv = ['adadelta', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "    assert not heavy & set(sys.modules), (line, heavy & set(sys.modules))\n"
    )
    assert run(sys.executable, "-c", code).count("Usage: ") == 6
