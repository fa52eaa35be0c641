"""Runs the judge, `scripts/check_history.py`, on a history, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from meshim.errors import MeshimError

_JUDGE = Path(__file__).resolve().parents[2] / "check_history.py"


def verdict_on(history: Path) -> dict[str, Any]:
    """Return the verdict on a history.  Raises MeshimError with the sentence of the judge when it gives none."""
    done = subprocess.run([sys.executable, _JUDGE, history, "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise MeshimError(f"The judge failed: {done.stderr.strip()}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict
