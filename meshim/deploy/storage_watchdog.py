"""Restarts the embedded NATS when it has stopped storing and its disk has room again.

nats-server gives a stream up at the first write that fails, for good: only a restart makes it store again
(docs/adr/0048).  What it has acknowledged is on the disk, and what it has not the senders keep, so a restart loses
nothing.  On a full disk it would help nothing, and might not start: the watchdog waits for room.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from meshim.errors import BackendUnavailable, StorageFailed
from meshim.runtime.log import Log

CHECK_S = 5.0
"""Between two checks."""
ROOM_BYTES = 16 << 20
"""With less room on its disk a restart waits."""
_PAUSE_FIRST_S = 10.0
_PAUSE_MAX_S = 300.0


class RestartPolicy:
    """When a restart may help.  Pure: time is an argument.

    The first one at once, further ones after pauses that double from `_PAUSE_FIRST_S` to `_PAUSE_MAX_S`: the cause may
    be one that room does not take away, as a broken disk.  When storing has worked for such a pause, it is short again.
    """

    def __init__(self) -> None:
        self._pause_s = _PAUSE_FIRST_S
        self._not_before = 0.0

    def restarts(self, now: float, room: bool) -> bool:
        """Storing has failed; return whether to restart now, which counts as done."""
        if not room or now < self._not_before:
            return False
        self._not_before = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        return True

    def works(self, now: float) -> None:
        """Storing works."""
        if now >= self._not_before:
            self._pause_s = _PAUSE_FIRST_S


def free_bytes_of(folder: Path) -> int:
    """Return the room on the disk of a folder; 0 when it has no inode left, or does not say."""
    try:
        disk = os.statvfs(folder)
    except OSError:  # a broken disk: the policy would only try again and again
        return 0
    full_of_files = disk.f_files > 0 and disk.f_favail == 0  # some file systems do not count inodes
    return 0 if full_of_files else disk.f_bavail * disk.f_frsize


class StorageWatchdog:
    """Watches one server that stores."""

    def __init__(
        self,
        check: Callable[[], Awaitable[None]],
        restart: Callable[[], Awaitable[None]],
        folder: Path,
        log: Log,
        free_bytes: Callable[[Path], int] = free_bytes_of,
    ) -> None:
        """`check` raises `StorageFailed` when the server, whose data is in `folder`, has stopped storing."""
        self.restarts = 0
        """How often it was restarted."""
        self._check = check
        self._restart = restart
        self._folder = folder
        self._log = log
        self._free_bytes = free_bytes
        self._policy = RestartPolicy()
        self._failed = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.check(asyncio.get_running_loop().time())

    async def check(self, now: float) -> None:
        """Look once, and restart the server if that is due."""
        try:
            await self._check()
        except StorageFailed as error:
            await self._storage_failed(error, now)
        except BackendUnavailable:
            return  # it is starting or stopping, or too busy to answer: that says nothing about its disk
        else:
            self._policy.works(now)
            if self._failed:
                self._failed = False
                self._log.info("stores again", restarts=self.restarts)

    async def _storage_failed(self, error: StorageFailed, now: float) -> None:
        free_bytes = self._free_bytes(self._folder)
        if not self._failed:
            self._failed = True
            self._log.error("does not store", reason=error.sentence, free_bytes=free_bytes, needed_bytes=ROOM_BYTES)
        if self._policy.restarts(now, room=free_bytes >= ROOM_BYTES):
            self.restarts += 1
            self._log.warning("restarts because it does not store", free_bytes=free_bytes)
            await self._restart()
