"""A replay of log files with its history and the verdict on it."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from meshim.errors import UsageError
from scripts.harness.history.format import HistoryWriter
from scripts.harness.history.verdict import verdict_on
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.options import raise_open_files
from scripts.harness.replay.irclog import Action, count_addressed, plan
from scripts.harness.replay.run import ReplayRun

FILES_PER_PLACE = 16
"""File descriptors of a nick that is online: about ten, and some more."""


class Settings(msgspec.Struct, frozen=True):
    """The logs to replay, and the options of the replay."""

    logs: Sequence[Path]
    speedup: float
    """Seconds of the log in one second."""
    seed: int
    places: int
    """Nicks online at a time; fewer where the limit of open files is too low."""
    api: str | None
    """URL of the REST service of a running mesh; None starts a mesh for the replay."""
    history: Path | None


def replay(settings: Settings) -> dict[str, Any]:
    """Replay the logs; return the verdict of the judge with the figures of the run.

    Raises UsageError when the logs have no message, MeshimError and OSError when the replay cannot be done, and errors
    of clients as an ExceptionGroup.
    """
    logs = [path.read_bytes() for path in settings.logs]
    steps = plan(logs)
    expected = sum(map(count_addressed, logs))
    assert expected == sum(step.action is Action.SEND for step in steps), "the plan and the plain count disagree"
    if expected == 0:
        raise UsageError("These logs have no message that is addressed to anybody: are they IRC logs?")
    places = max(1, raise_open_files(settings.places * FILES_PER_PLACE) // FILES_PER_PLACE)
    folder = Path(tempfile.mkdtemp(prefix="meshim-replay-"))
    history = settings.history or folder / "history.jsonl"
    facts = {"seed": settings.seed, "speedup": settings.speedup}
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            writer = stack.enter_context(
                HistoryWriter(history, time.monotonic, "replay", **facts, expected_sent=expected)
            )
            api = settings.api or stack.enter_context(local_mesh.running(folder, local_mesh.topology()))
            states = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
            figures = ReplayRun(api, writer, Path(states), settings.seed, places).run(steps, settings.speedup)
        verdict = verdict_on(history)
    except BaseException:
        shutil.rmtree(folder)
        raise
    seconds = round(time.monotonic() - began, 1)
    if verdict["ok"]:  # otherwise the files of the mesh help to find the reason
        shutil.rmtree(folder / "data", ignore_errors=True)
    return {**verdict, "seconds": seconds, **figures, **facts, "history": str(history)}
