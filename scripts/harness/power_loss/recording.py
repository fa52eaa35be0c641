"""Records the load of `workload.py` with strace."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from meshim.errors import MeshimError, UsageError
from scripts.harness.power_loss import strace


def record(folder: Path, seconds: float, seed: int, mutation: str | None) -> None:
    """Run the load under strace; `folder` then holds its files, its notes and the trace.

    Raises UsageError without strace, and MeshimError with the last line of the load when it fails.
    """
    if shutil.which(strace.RECORD[0]) is None:
        raise UsageError("strace is missing: install it, as with `apt install strace`.")
    load = [sys.executable, "-P", "-m", "scripts.harness.power_loss.workload", str(folder), str(seconds), str(seed)]
    command = [*strace.RECORD, str(folder / "trace"), *load, *([mutation] if mutation else [])]
    # A process group of its own, so that everything that strace follows can be killed together.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        lines = errors.strip().splitlines() or [f"it ended with code {process.returncode}"]
        raise MeshimError(f"The load failed: {lines[-1]}")


def check_recording(folder: Path) -> None:
    """Raise UsageError unless `folder` holds a recording."""
    for name in ("notes", "trace"):
        if not (folder / name).exists():
            raise UsageError(
                f"{folder} holds no recording (there is no `{name}`): name the folder that --keep printed."
            )
