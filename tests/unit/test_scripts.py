"""What stands in `scripts/` runs from anywhere, with whatever Python comes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROGRAMS = sorted(path for path in SCRIPTS.glob("*.py") if path.read_text().startswith("#!"))


def test_there_are_programs() -> None:
    assert {path.name for path in PROGRAMS} >= {"check_history.py", "replay.py"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_it_runs_outside_of_the_venv(program: Path, tmp_path: Path) -> None:
    path = f"{sys.base_prefix}/bin{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {program.name}")
