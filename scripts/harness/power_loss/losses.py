"""Takes the power from a recorded mesh at many moments, and looks for every message that was reported as `sent`."""

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from meshim.errors import MeshimError
from scripts.harness.mesh import local_mesh
from scripts.harness.power_loss import strace
from scripts.harness.power_loss.inspection import Notes, inspect

PATHS = ("data/nats/jetstream/", "data/meshim.db", "states/", "notes")
"""The files on the modelled disk, below the folder of a run.  All others are made anew at each start."""
SHARED_MEMORY = "-shm"
"""Suffix of SQLite files that are made anew when no process has the database open."""
CALLS_LATER_MAX = 200
EXAMPLES = 5


class PowerLoss(NamedTuple):
    """The result of one loss of power."""

    line: int
    at_risk: int
    """Unsynced bytes."""
    places: Counter[str]
    """The number of sent messages by the place where they were found; `lost` is one of them."""
    outbox_lost: int
    """Messages of which `send` had returned, and that are in no outbox."""
    broken: str
    """Why the files could not be opened after the loss; empty if they could."""

    @property
    def why(self) -> str:
        """The violation in words; empty if there is none."""
        lost = self.places["lost"]
        if self.broken or not (lost or self.outbox_lost):
            return self.broken
        return (
            f"at line {self.line} of the trace: {lost} sent messages are nowhere, {self.outbox_lost} are in no outbox"
        )


class PowerLossTest:
    """Replays a recording and takes the power at `moments` moments, chosen by `seed`; `tell` gets the progress."""

    def __init__(self, folder: Path, moments: int, seed: int, tell: Callable[[str], None]) -> None:
        self._folder = folder.resolve()
        self._topology = local_mesh.topology()
        self._moments = moments
        self._seed = seed
        self._tell = tell
        self._replay = strace.Replay(self._concerns)

    def run(self) -> dict[str, Any]:
        """Return the answer, `ok` first.

        Raises MeshimError when the recording is too short, and UnsupportedCall when it cannot be replayed.
        """
        losses = [self._lose_power(number, line) for number, line in enumerate(self._stops())]
        self._compare()
        places: Counter[str] = sum((loss.places for loss in losses), Counter())
        outbox_lost, broken = sum(loss.outbox_lost for loss in losses), [loss.broken for loss in losses if loss.broken]
        return {
            "ok": not (places["lost"] or outbox_lost or broken),
            "moments": len(losses),
            "sent": len(Notes((self._folder / "notes").read_text()).sent),
            "checked": sum(places.values()),
            "lost": places["lost"],
            "outbox_lost": outbox_lost,
            "broken": len(broken),
            "found": {place: places[place] for place in ("device", "database", "log")},
            "at_risk_bytes_max": max((loss.at_risk for loss in losses), default=0),
            "examples": [loss.why for loss in losses if loss.why][:EXAMPLES],
        }

    def _stops(self) -> Iterator[int]:
        """Replay the recording up to each moment at which the power goes; yield its line.

        Half of the moments are right behind a `sent`, where a missing sync shows; the others up to 200 calls later.
        """
        random = Random(self._seed)
        sent = (self._folder / "notes").read_text().count("sent ")
        if sent < self._moments:
            raise MeshimError(f"Only {sent} messages were sent: run it for longer.")
        calls_after = {
            number: random.choice((0, random.randint(1, CALLS_LATER_MAX)))
            for number in random.sample(range(1, sent + 1), self._moments)
        }
        sent_note = f'{strace.in_hex(str(self._folder / "notes"))}>, "{strace.in_hex("sent ")}'
        notes = 0
        due: list[int] = []  # remaining calls until each moment
        for call in strace.calls(self._folder / "trace", self._folder):
            self._replay.apply(call)
            due = [calls - 1 for calls in due]
            if sent_note in call.arguments:
                notes += 1
                due += [calls_after[notes]] if notes in calls_after else []
            yield from (call.at for calls in due if calls == 0)
            due = [calls for calls in due if calls > 0]
        yield from (call.at for _ in due)  # the recording ends before these moments

    def _lose_power(self, number: int, line: int) -> PowerLoss:
        disk = self._replay.disk
        notes = Notes(disk.visible(str(self._folder / "notes")).decode())
        at_risk = disk.unsynced_bytes()
        place = self._folder / "after-power-loss"
        _write_files(place, self._folder, disk.after_power_loss(Random(f"{self._seed} {number}")))
        try:
            found = asyncio.run(inspect(place, self._topology))
        except (MeshimError, sqlite3.DatabaseError) as error:
            return PowerLoss(line, at_risk, Counter(lost=len(notes.sent)), 0, f"at line {line}: {error}")
        finally:
            shutil.rmtree(place)
        places = Counter(found.location(message) or "lost" for message in notes.sent)
        outbox_lost = sum(not found.is_in_outbox(message) for message in notes.queued.values())
        self._tell(f"{number + 1} of {self._moments} moments, {len(notes.sent)} messages sent, {places['lost']} lost")
        return PowerLoss(line, at_risk, places, outbox_lost, "")

    def _compare(self) -> None:
        """Check the replay: at the end, without a loss of power, the modelled disk must equal the real one."""
        disk = self._replay.disk
        visible = {path: disk.visible(path) for path in disk.paths()}
        real = {
            str(path): path.read_bytes()
            for path in self._folder.rglob("*")
            if path.is_file() and self._concerns(str(path))
        }
        unknown = self._replay.interrupted
        wrong = [path for path in {*visible, *real} - unknown if visible.get(path) != real.get(path)]
        if wrong:
            raise strace.UnsupportedCall(
                f"The recording does not lead to what is there: {', '.join(sorted(wrong)[:EXAMPLES])}."
            )

    def _concerns(self, path: str) -> bool:
        below = path.removeprefix(f"{self._folder}/")
        return below != path and below.startswith(PATHS) and not below.endswith(SHARED_MEMORY)


def _write_files(place: Path, root: Path, files: dict[str, bytes]) -> None:
    """Write the files, whose paths are below `root`, below `place`."""
    for path, content in files.items():
        file = place / Path(path).relative_to(root)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(content)
