#!/usr/bin/env python3
"""Take the power from a whole mesh at many moments, and look for every message that was reported as sent.

A mesh and its clients run on this machine under load, and strace writes down what they do to their files
(`power_load.py`, `strace.py`).  From that a disk is rebuilt as a loss of power would leave it (`disk.py` has the
rules): what was not synced is gone, or there in part.  NATS, SQLite and the state files are opened on it again
(`aftermath.py`), and every message whose sender had seen `sent` at that moment must be there, for the device of its
recipient; so must every message of which `send` had returned, in the outbox of its sender.

While it runs it takes about 70 MB of disk for each second of load.

Exit code 0: nothing was lost.  1: something was.  2: it could not be done.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError, UsageError
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.options import count, end_politely, natural, number
from scripts.harness.power_loss import mutations, strace
from scripts.harness.power_loss.inspection import Notes, look

PARTS = ("data/nats/jetstream/", "data/meshim.db", "states/", "notes")
"""What is on the disk, below the folder of a run.  Everything else there is made anew at each start."""
SHARED_MEMORY = "-shm"
"""SQLite makes these files anew when nobody has the database open."""
CALLS_LATER_MOST = 200
EXAMPLES = 5


def main() -> int:
    options = _options()
    end_politely()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    folder: Path = options.recording or Path(tempfile.mkdtemp(prefix="meshim-power-"))
    keep = options.keep or options.recording
    began = time.monotonic()
    try:
        if options.recording:
            _check(folder)
        else:
            _record(folder, options.seconds, seed, options.weak)
        answer = Losses(folder, options.moments, seed).judge()
    except (MeshimError, strace.Unknown) as error:
        print(f"power_loss: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # whoever was killed may still be ending
    answer |= {"seed": seed, "weak": options.weak, "seconds": round(time.monotonic() - began, 1)}
    if keep:
        answer["folder"] = str(folder)
    _show(answer, as_json=options.json)
    return 0 if answer["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take the power from a mesh and look for every message that was sent.")
    parser.add_argument(
        "--seconds",
        type=number(1, 3_600, "a number of seconds, 1 to 3600"),
        default=20.0,
        metavar="N",
        help="how long the load lasts (20)",
    )
    parser.add_argument("--moments", type=count, default=40, metavar="N", help="how often the power goes (40)")
    parser.add_argument("--seed", type=natural, metavar="S", help="makes moments and what a disk keeps (random)")
    parser.add_argument("--weak", choices=mutations.WHATS, help="leave a sync out, to see that it is missed")
    parser.add_argument("--recording", type=Path, metavar="FOLDER", help="use what --keep has kept, and run no load")
    parser.add_argument("--keep", action="store_true", help="keep the recording and the files, and say where")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser.parse_args()


def _check(folder: Path) -> None:
    """Raise UsageError unless a recording is there."""
    for name in ("notes", "trace"):
        if not (folder / name).exists():
            raise UsageError(f"{folder} holds no recording (there is no `{name}`): name what --keep has told.")


def _record(folder: Path, seconds: float, seed: int, weak: str | None) -> None:
    """Run the load under strace; raises MeshimError with its last words when it fails."""
    if shutil.which(strace.RECORD[0]) is None:
        raise UsageError("strace is missing: install it, as with `apt install strace`.")
    load = [sys.executable, "-P", "-m", "scripts.harness.power_loss.workload", str(folder), str(seconds), str(seed)]
    command = [*strace.RECORD, str(folder / "trace"), *load, *([weak] if weak else [])]
    _tell(f"{seconds:g} s of load")
    # In a group of its own, to be ended with everything that strace follows.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        words = said.strip().splitlines() or [f"it ended with code {process.returncode}"]
        raise MeshimError(f"The load failed: {words[-1]}")


class Loss(NamedTuple):
    """What one loss of power did."""

    line: int
    at_risk: int
    """Bytes that were not synced."""
    places: Counter[str]
    """Where the messages that were sent are; `lost` is one of them."""
    unkept: int
    """Messages of which `send` had returned and that are in no outbox."""
    broken: str
    """What could not even be opened, and why."""

    @property
    def why(self) -> str:
        """What was wrong, in words; empty when nothing was."""
        lost = self.places["lost"]
        if self.broken or not (lost or self.unkept):
            return self.broken
        return f"at line {self.line} of the trace: {lost} sent messages are nowhere, {self.unkept} are in no outbox"


class Losses:
    """Takes the power from a recorded mesh."""

    def __init__(self, folder: Path, moments: int, seed: int) -> None:
        self._folder = folder.resolve()
        self._topology = local_mesh.topology()
        self._moments = moments
        self._seed = seed
        self._replay = strace.Replay(self._concerns)

    def judge(self) -> dict[str, Any]:
        losses = [self._look(number, line) for number, line in enumerate(self._stops())]
        self._compare()
        places: Counter[str] = sum((loss.places for loss in losses), Counter())
        unkept, broken = sum(loss.unkept for loss in losses), [loss.broken for loss in losses if loss.broken]
        return {
            "ok": not (places["lost"] or unkept or broken),
            "moments": len(losses),
            "sent": len(Notes((self._folder / "notes").read_text()).sent),
            "checked": sum(places.values()),
            "lost": places["lost"],
            "outbox_lost": unkept,
            "broken": len(broken),
            "found": {place: places[place] for place in ("device", "database", "log")},
            "at_risk_bytes_max": max((loss.at_risk for loss in losses), default=0),
            "examples": [loss.why for loss in losses if loss.why][:EXAMPLES],
        }

    def _stops(self) -> Iterator[int]:
        """Replay the recording, pausing at every moment at which the power goes; yields the line.

        Half of the moments are right behind a `sent`: that is when a sync that was left out is missed.
        """
        random = Random(self._seed)
        sent = (self._folder / "notes").read_text().count("sent ")
        if sent < self._moments:
            raise MeshimError(f"Only {sent} messages were sent: run it for longer.")
        behind = {
            number: random.choice((0, random.randint(1, CALLS_LATER_MOST)))
            for number in random.sample(range(1, sent + 1), self._moments)
        }
        a_sent = f'{strace.in_hex(str(self._folder / "notes"))}>, "{strace.in_hex("sent ")}'
        told = 0
        due: list[int] = []  # how many calls later
        for call in strace.calls(self._folder / "trace", self._folder):
            self._replay.take(call)
            due = [calls - 1 for calls in due]
            if a_sent in call.arguments:
                told += 1
                due += [behind[told]] if told in behind else []
            yield from (call.at for calls in due if calls == 0)
            due = [calls for calls in due if calls > 0]
        yield from (call.at for _ in due)  # the recording ends before their time

    def _look(self, number: int, line: int) -> Loss:
        disk = self._replay.disk
        notes = Notes(disk.shown(str(self._folder / "notes")).decode())
        risk = disk.unsynced_bytes()
        place = self._folder / "aftermath"
        _lay_out(place, self._folder, disk.after_power_loss(Random(f"{self._seed} {number}")))
        try:
            left = asyncio.run(look(place, self._topology))
        except (MeshimError, sqlite3.DatabaseError) as error:
            return Loss(line, risk, Counter(lost=len(notes.sent)), 0, f"at line {line}: {error}")
        finally:
            shutil.rmtree(place)
        places = Counter(left.place(sending) or "lost" for sending in notes.sent)
        unkept = sum(not left.is_kept(sending) for sending in notes.queued.values())
        _tell(f"{number + 1} of {self._moments} moments, {len(notes.sent)} messages sent, {places['lost']} lost")
        return Loss(line, risk, places, unkept, "")

    def _compare(self) -> None:
        """At the end, without a loss of power, the disk must show what is really there."""
        disk = self._replay.disk
        shown = {path: disk.shown(path) for path in disk.paths()}
        real = {
            str(path): path.read_bytes()
            for path in self._folder.rglob("*")
            if path.is_file() and self._concerns(str(path))
        }
        unauthorized = self._replay.interrupted
        wrong = [path for path in {*shown, *real} - unauthorized if shown.get(path) != real.get(path)]
        if wrong:
            raise strace.Unknown(
                f"The recording does not lead to what is there: {', '.join(sorted(wrong)[:EXAMPLES])}."
            )

    def _concerns(self, path: str) -> bool:
        below = path.removeprefix(f"{self._folder}/")
        return below != path and below.startswith(PARTS) and not below.endswith(SHARED_MEMORY)


def _lay_out(place: Path, root: Path, files: dict[str, bytes]) -> None:
    """Write files that were below `root` below `place`."""
    for path, content in files.items():
        file = place / Path(path).relative_to(root)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(content)


def _tell(what: str) -> None:
    print(f"power_loss: {what}", file=sys.stderr, flush=True)


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for name, value in answer.items():
        print(f"{name:>17} {value}")


if __name__ == "__main__":
    sys.exit(main())
