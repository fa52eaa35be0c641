"""The programs in `scripts/` run from any folder and with any Python."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "scripts"
PROGRAMS = sorted(path for path in SCRIPTS.glob("*.py") if path.read_text().startswith("#!"))


def test_the_programs_are_found() -> None:
    assert {path.name for path in PROGRAMS} >= {"check_history.py", "replay.py"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a `python3` with the standard library alone, as on a fresh machine."""
    folder = tmp_path_factory.mktemp("bare-python")
    venv.create(folder, with_pip=False, symlinks=True)
    found = subprocess.run([folder / "bin" / "python3", "-c", "import click"], capture_output=True, check=False)
    assert found.returncode == 1, "this Python must not find the packages of the project"
    return folder / "bin"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_program_runs_with_a_python_that_has_no_packages(program: Path, bare_python: Path, tmp_path: Path) -> None:
    path = f"{bare_python}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().lstrip().startswith(f"usage: {program.name}")


def test_meshim_runs_from_any_folder_and_imports_no_module_there(tmp_path: Path) -> None:
    for name in ("click", "meshim", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not ours')\n")
    (tmp_path / "linked").symlink_to(ROOT / "bin" / "meshim")
    done = subprocess.run(["./linked", "--version"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout[:15]) == (0, "meshim, version"), done.stderr
