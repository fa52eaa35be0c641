"""A mesh and its clients under load, for `power_loss.py` to record.

    python -m scripts.harness.power_loss.workload FOLDER SECONDS SEED [MUTATION]

Two users send at full speed to four others, of whom two are always offline and two connect and disconnect.  Notes about
the messages go to FOLDER/notes, a line each:

    device NAME USER DEVICE EPOCH       one for each device, at first
    queued ID SENDER RECIPIENT SEQ      `send` has returned
    sent ID                             the sender has the outcome `sent`

At the end all processes are killed, this one included.  MUTATION names the sync that `mutations.py` leaves out.
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
from meshim.client.session import Credentials
from scripts.harness.clients.devices import log_in_device
from scripts.harness.mesh import local_mesh
from scripts.harness.power_loss import mutations

PASSWORD = "correct horse battery staple"  # noqa: S105  (of a mesh that lives for seconds)
SENDERS = ("ann", "ben")
AWAY = ("cleo", "dan")
RECONNECTING = ("eve", "finn")
UNSETTLED_MAX = 12
"""Unsettled messages of one sender: less than the window of a client, so that none waits for it."""
BODY_MAX = 3_000
"""Characters of a body, at most."""
START_S = 60


def main(folder: Path, seconds: float, seed: int, mutation: str | None) -> None:
    """Run the load for some seconds, then kill the mesh and this process."""
    # With a sync left out, a mesh with `refuse` would store nothing.
    topology = local_mesh.topology(connectors=1, transfers=1, weak="warn" if mutation else "refuse")
    signal.alarm(START_S + math.ceil(2 * seconds))  # ends this process if anything hangs
    program = [sys.executable, "-m", "meshim"]
    if mutation is not None:
        mutations.apply(mutation)  # the clients run in this process
        program = mutations.program(mutation)
    with local_mesh.running(folder, topology, program) as api:
        asyncio.run(_Load(folder, api, Random(seed)).run(seconds))
        state: dict[str, Any] = json.loads((folder / "data" / "run" / "state.json").read_bytes())
        os.kill(state["pid"], signal.SIGKILL)  # and with it all its children (die_with_parent)
        os._exit(0)


class _Load:
    def __init__(self, folder: Path, api: str, random: Random) -> None:
        self._states = folder / "states"
        self._states.mkdir(exist_ok=True)
        self._api = api
        self._random = random
        self._notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._outcome_tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        await self._seed_users()
        work = [*(self._send(name) for name in SENDERS), *(self._reconnect(name) for name in RECONNECTING)]
        done, _ = await asyncio.wait([asyncio.ensure_future(each) for each in work], timeout=seconds)
        for task in done:
            task.result()  # these tasks end only with an error
        # The others are not cancelled: their clients would disconnect cleanly.

    async def _seed_users(self) -> None:
        """Register the users with their friendships and devices."""
        names = (*SENDERS, *AWAY, *RECONNECTING)
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
                credentials = Credentials(name, PASSWORD, "default")
                identity = await log_in_device(api, credentials, self._state(name))
            self._note("device", name, identity.user, identity.device, identity.epoch)

    async def _send(self, name: str) -> None:
        free = asyncio.Semaphore(UNSETTLED_MAX)
        async with self._client(name) as client:
            for number in range(1, sys.maxsize):
                await free.acquire()
                to = self._random.choice((*AWAY, *RECONNECTING))
                outgoing = await client.send(to, f"{number} {'.' * self._random.randint(0, BODY_MAX)}")
                self._note("queued", outgoing.id, name, to, outgoing.seq)
                task = asyncio.create_task(self._note_sent(outgoing, free))
                self._outcome_tasks.add(task)
                task.add_done_callback(self._outcome_tasks.discard)

    async def _note_sent(self, outgoing: Outgoing, free: asyncio.Semaphore) -> None:
        await outgoing.wait_sent()
        self._note("sent", outgoing.id)
        free.release()

    def _note(self, *words: object) -> None:
        os.write(self._notes, f"{' '.join(map(str, words))}\n".encode())

    async def _reconnect(self, name: str) -> None:
        while True:
            async with self._client(name) as client:
                await _for(_read(client), self._random.uniform(0.5, 1.5))
            await asyncio.sleep(self._random.uniform(0.1, 1.0))

    def _client(self, name: str) -> Client:
        return Client(self._api, name, PASSWORD, state=self._state(name))

    def _state(self, name: str) -> Path:
        return self._states / f"{name}.db"


async def _read(client: Client) -> None:
    async for message in client.messages():
        await message.mark_read()


async def _for(work: Awaitable[None], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        pass


if __name__ == "__main__":
    _, _folder, _seconds, _seed, *_mutation = sys.argv
    main(Path(_folder), float(_seconds), int(_seed), _mutation[0] if _mutation else None)
