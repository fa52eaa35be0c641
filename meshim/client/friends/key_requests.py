"""Requests for content keys that received messages need and this device lacks.

One request is under way for each friend, in the background.  Its answer holds for all messages of that friend that are
in the inbox by then, whatever versions they name: REST has a key before any device can seal with it, so a key that REST
lacks cannot come later for a message that is here.  After a message that named a key that does not exist, REST is asked
about that friend once a minute at most: to invent versions costs the mesh next to nothing.

While REST is away requests are repeated.  They never give up: a message given without its text would be lost.
"""

import asyncio
import secrets
from collections.abc import Callable

from meshim.client.friends.contacts import Contacts
from meshim.errors import ApiError, BackendUnavailable

SPACING_S = 60.0
"""Between two requests about a friend after one that did not find the key."""
RETRY_MIN_S = 0.2
RETRY_MAX_S = 5.0
"""Between two requests while REST is unavailable; the wait doubles, or is as long as REST says."""
_CONCURRENT_MAX = 4

_random = secrets.SystemRandom()


class KeyRequests:
    """The requests of one inbox."""

    def __init__(self, contacts: Contacts, latest: Callable[[], int], ended: Callable[[int], None]) -> None:
        """`latest()` is the number of the newest message in the inbox; `ended(peer)` is called after a request."""
        self._contacts = contacts
        self._latest = latest
        self._ended = ended
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wanted: dict[int, set[int]] = {}
        """Peer to the versions that its messages name: one for each of its streams at most."""
        self._answered: dict[int, int] = {}
        """Peer to the newest message that was in the inbox when REST was asked."""
        self._not_before: dict[int, float] = {}
        self._free = asyncio.Semaphore(_CONCURRENT_MAX)
        self._failure: BaseException | None = None

    def is_missing(self, peer: int, number: int) -> bool:
        """Whether REST was asked with this message in the inbox: a key that is unknown now does not exist."""
        return number <= self._answered.get(peer, 0)

    def request(self, peer: int, version: int) -> None:
        """Ask REST for the keys shared with a user, as soon as that may be; one request is enough for all versions."""
        self._wanted.setdefault(peer, set()).add(version)
        if peer not in self._tasks:
            task = self._tasks[peer] = asyncio.create_task(self._ask(peer))
            task.add_done_callback(lambda task: self._done(peer, task))

    def check(self) -> None:
        """Raise the error of a request that no repetition can mend, once: the login was refused, say."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End the requests."""
        for task in self._tasks.values():
            task.cancel()

    async def _ask(self, peer: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._not_before.get(peer, 0.0) - loop.time())
        retry_s = RETRY_MIN_S
        while True:
            told_s = 0.0
            try:
                async with self._free:
                    latest = self._latest()
                    await self._contacts.fetch_keys(peer)
                    break
            except BackendUnavailable:
                pass
            except ApiError as error:
                if not error.temporary:
                    raise
                told_s = error.retry_after_s or 0.0
            await asyncio.sleep(max(told_s, retry_s) * _random.uniform(1.0, 1.5))
            retry_s = min(2 * retry_s, RETRY_MAX_S)
        self._answered[peer] = latest
        if any(self._contacts.key(peer, version) is None for version in self._wanted[peer]):
            self._not_before[peer] = loop.time() + SPACING_S

    def _done(self, peer: int, task: "asyncio.Task[None]") -> None:
        del self._tasks[peer], self._wanted[peer]
        if task.cancelled():
            return
        self._failure = task.exception() or self._failure
        self._ended(peer)
