"""What is installed works without the repository: configs, version, entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import HERE

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
