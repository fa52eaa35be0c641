"""Runs the script with the project's own Python: import it before any package outside the standard library.

If `.venv` is missing, `scripts/setup` creates it first.
"""

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_VENV = _ROOT / ".venv"
_PYTHON = str(_VENV / "bin" / "python")

if Path(sys.prefix) != _VENV:
    if not Path(_PYTHON).exists():
        subprocess.run([_ROOT / "scripts" / "setup", "embedded"], check=True, stdout=sys.stderr)
    os.execv(_PYTHON, [_PYTHON, *sys.argv])  # noqa: S606  (replaces this process)
