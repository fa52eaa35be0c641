"""A whole mesh and its clients under load, for `power_loss.py` to record: `power_load.py FOLDER SECONDS SEED [WEAK]`.

Two people write as fast as they may to four, of whom two are away all the time and two come and go.  What is known of
it is written to FOLDER/notes, a line each:

    device NAME USER DEVICE EPOCH       of everybody, at first
    queued ID SENDER RECIPIENT SEQ      `send` has returned
    sent ID                             the sender was told so

At the end everything is killed, this process included.

WEAK names what `mutations.py` leaves out.
"""

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from random import Random
from typing import Any

from meshim.client import Client, Outgoing
from meshim.client.rest import Api
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from scripts.harness.mesh import local_mesh
from scripts.harness.power_loss import mutations

PASSWORD = "correct horse battery staple"  # noqa: S105  (of a mesh that lives for seconds)
SENDERS = ("ann", "ben")
AWAY = ("cleo", "dan")
COMING_AND_GOING = ("eve", "finn")
UNDER_WAY = 12
"""Messages of one sender that are not settled: less than the window of a client, so that none waits for it."""
BODY_MOST = 3_000
"""Characters."""
START_MOST_S = 60


def main(folder: Path, seconds: float, seed: int, weak: str | None) -> None:
    # With a sync left out a mesh would refuse to store anything.
    topology = local_mesh.topology(connectors=1, transfers=1, weak="warn" if weak else "refuse")
    signal.alarm(START_MOST_S + math.ceil(2 * seconds))  # whatever hangs, strace does not wait for ever
    program = [sys.executable, "-m", "meshim"]
    if weak is not None:
        mutations.weaken(weak)  # the clients are in this process
        program = mutations.program(weak)
    with local_mesh.running(folder, topology, program) as api:
        asyncio.run(_Load(folder, api, Random(seed)).run(seconds))
        state: dict[str, Any] = json.loads((folder / "data" / "run" / "state.json").read_bytes())
        os.kill(state["pid"], signal.SIGKILL)  # and with it all its children
        os._exit(0)


class _Load:
    def __init__(self, folder: Path, api: str, random: Random) -> None:
        self._states = folder / "states"
        self._api = api
        self._random = random
        self._notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._following: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        await self._enrol()
        work = [*(self._write(name) for name in SENDERS), *(self._come_and_go(name) for name in COMING_AND_GOING)]
        done, _ = await asyncio.wait([asyncio.ensure_future(each) for each in work], timeout=seconds)
        for task in done:
            task.result()  # they end only by an error
        # Not cancelled: that would leave politely.

    async def _enrol(self) -> None:
        """Accounts, friends, and a device for everybody that the mesh knows."""
        names = (*SENDERS, *AWAY, *COMING_AND_GOING)
        async with Api(self._api) as api:
            await api.import_users([(name, PASSWORD) for name in names])
            for sender in SENDERS:
                await api.login(sender, PASSWORD)
                for name in names[len(SENDERS) :]:
                    await api.request(name)
            for name in names[len(SENDERS) :]:
                await api.login(name, PASSWORD)
                for sender in SENDERS:
                    await api.request(sender)
        for name in names:
            async with Api(self._api) as api:
                state = StateFile(self._state(name))
                identity = await Session(api, state, Credentials(name, PASSWORD, "default")).open()
                state.close()
            self._note("device", name, identity.user, identity.device, identity.epoch)

    async def _write(self, name: str) -> None:
        free = asyncio.Semaphore(UNDER_WAY)
        async with self._client(name) as client:
            for number in range(1, sys.maxsize):
                await free.acquire()
                to = self._random.choice((*AWAY, *COMING_AND_GOING))
                outgoing = await client.send(to, f"{number} {'.' * self._random.randint(0, BODY_MOST)}")
                self._note("queued", outgoing.id, name, to, outgoing.seq)
                task = asyncio.create_task(self._follow(outgoing, free))
                self._following.add(task)
                task.add_done_callback(self._following.discard)

    async def _follow(self, outgoing: Outgoing, free: asyncio.Semaphore) -> None:
        await outgoing.wait_sent()
        self._note("sent", outgoing.id)
        free.release()

    def _note(self, *words: object) -> None:
        os.write(self._notes, f"{' '.join(map(str, words))}\n".encode())

    async def _come_and_go(self, name: str) -> None:
        while True:
            async with self._client(name) as client:
                await _for_some_time(_read(client), self._random.uniform(0.5, 1.5))
            await asyncio.sleep(self._random.uniform(0.1, 1.0))

    def _client(self, name: str) -> Client:
        return Client(self._api, name, PASSWORD, state=self._state(name))

    def _state(self, name: str) -> Path:
        return self._states / f"{name}.db"


async def _read(client: Client) -> None:
    async for message in client.messages():
        await message.mark_read()


async def _for_some_time(work: Awaitable[None], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        pass


if __name__ == "__main__":
    _, _folder, _seconds, _seed, *_weak = sys.argv
    main(Path(_folder), float(_seconds), int(_seed), _weak[0] if _weak else None)
