"""Keeps the lease of this process alive, and watches the leases of others.

For the mesh a process is alive exactly as long as its lease.  The keeper renews the lease every `lease_renew_s`.  While
renewals fail, the lease is certain until `valid_until`: Redis counts its time to live from the arrival of the command,
the keeper from before it sent the command, so that the lease ends here first (R11).

Other data of this process in Redis may be gone although the lease is not: a renewal failed (so other writes may have
failed too), the lease had ended, or Redis is another run, perhaps with old data (R9).  `on_recovered` reports the end
of such an interruption: the process must write everything again.

Give the keeper connections to Redis of its own: a renewal must not queue behind a connection storm.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from meshim.errors import BackendUnavailable, Fenced, UsageError
from meshim.runtime.log import Log
from meshim.stores.ports import Lease, Leases
from meshim.topology import Timers

_ACQUIRE_TTLS = 2.0
"""Times to live that the keeper waits for the lease of another incarnation; a crashed process leaves at most one."""


class LeaseStatistics(msgspec.Struct):
    """Counters of one keeper since its start, named as `meshim status` shows them."""

    lease_losses: int = 0
    """Times the lease ended, or was not certain any more."""
    lease_failed_renewals: int = 0
    """Renewals that failed, or that Redis did not answer within `lease_renew_s`."""


class LeaseKeeper:
    """The lease of this process, and the living leases of the roles in `watch`.

    `on_living(role, leases)` is called with all leases of a role, at first and after each change; `on_lost()` when the
    own lease is no longer certain; `on_recovered()` when it is certain again after an interruption (see above).
    No callback may block.
    """

    def __init__(
        self,
        leases: Leases,
        mine: Lease,
        timers: Timers,
        log: Log,
        *,
        watch: Sequence[str] = (),
        on_living: Callable[[str, list[Lease]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_recovered: Callable[[], None] | None = None,
    ) -> None:
        self.mine = mine
        self.statistics = LeaseStatistics()
        self._leases = leases
        self._renew_s = timers.lease_renew_s
        self._ttl_s = timers.lease_ttl_s
        self._log = log
        self._on_living = on_living or (lambda role, leases: None)
        self._on_lost = on_lost or (lambda: None)
        self._on_recovered = on_recovered or (lambda: None)
        self._loop = asyncio.get_running_loop()
        self._released = False
        self._lock = asyncio.Lock()
        self._valid_until = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._taken_since: float | None = None
        self._interrupted_by: str | None = None
        self._run_id: str | None = None
        self._watched: dict[str, dict[str, Lease] | None] = dict.fromkeys(watch)
        self._grace_until = 0.0

    @property
    def valid_until(self) -> float:
        """The loop time until which the lease lasts, unless Redis has lost it; 0.0 without a lease."""
        return self._valid_until

    @property
    def held(self) -> bool:
        """False when other processes may find no lease of this one."""
        return self._loop.time() < self._valid_until

    def counters(self) -> dict[str, int]:
        """Return the counters, for `meshim status`."""
        return msgspec.structs.asdict(self.statistics)

    async def acquire(self) -> None:
        """Take the lease for the first time, after waiting for that of a crashed incarnation to end.

        Raises `UsageError` when another process keeps renewing the lease of this name for two times to live, and
        `BackendUnavailable`.
        """
        give_up_at = self._loop.time() + _ACQUIRE_TTLS * self._ttl_s
        while not await self._take():
            if self._loop.time() >= give_up_at:
                raise UsageError(
                    f"Another {self.mine.role} called {self.mine.name} is running: "
                    "stop it, or give this one another name in the topology."
                )
            await asyncio.sleep(self._renew_s / 4)
        self._run_id = await self._leases.run_id()

    async def run(self) -> None:
        """Renew and watch until cancelled or `release` is called.  Call it after `acquire`.

        Raises `Fenced` when another process of this name has taken the lease and keeps renewing it.
        """
        while not self._released:
            started = self._loop.time()
            async with self._lock:
                await self._round()
            await asyncio.sleep(max(0.0, started + self._renew_s - self._loop.time()))

    async def release(self) -> None:
        """End the lease for good, so that no process has to wait for its expiry; no callback is called any more."""
        self._released = True
        async with self._lock:  # a renewal under way would take the lease again
            self._valid_until = 0.0
            if self._expiry is not None:
                self._expiry.cancel()
            try:
                await self._leases.release(self.mine)
            except BackendUnavailable as error:  # the lease expires by itself
                self._log.warning("lease not released", reason=error.sentence)

    async def _round(self) -> None:
        if self._released:
            return
        try:
            async with asyncio.timeout(self._renew_s):
                # In this order: if Redis has lost all leases, one of the last two calls shows it before the missing
                # leases in `living` are taken for dead processes.
                living = {role: await self._leases.living(role) for role in self._watched}
                await self._extend_or_take()
                run_id = await self._leases.run_id()
        except (BackendUnavailable, TimeoutError) as error:
            self.statistics.lease_failed_renewals += 1
            self._interrupt("renewal failed", str(error) or "redis is too slow")
            return
        if run_id != self._run_id:
            self._run_id = run_id
            self._interrupt("redis restarted", run_id)
            self._grant_grace()
        for role, leases in living.items():
            self._update_living(role, leases)
        if self.held and self._interrupted_by is not None:
            self._log.info("lease held again", after=self._interrupted_by)
            self._interrupted_by = None
            self._on_recovered()

    async def _extend_or_take(self) -> None:
        sent_at = self._loop.time()
        if await self._leases.extend(self.mine, self._ttl_s):
            self._hold(sent_at)
            return
        self._interrupt("lease ended", "stopped for too long, or redis lost it")
        self._grant_grace()
        self._lose()
        if await self._take():
            self._taken_since = None
        elif self._taken_since is None:
            self._taken_since = sent_at
        elif sent_at - self._taken_since > _ACQUIRE_TTLS * self._ttl_s:
            raise Fenced(f"Another {self.mine.role} called {self.mine.name} took over: this one ends.")

    async def _take(self) -> bool:
        sent_at = self._loop.time()
        taken = await self._leases.acquire(self.mine, self._ttl_s)
        if taken:
            self._hold(sent_at)
        return taken

    def _hold(self, sent_at: float) -> None:
        self._valid_until = sent_at + self._ttl_s
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(self._valid_until, self._lose)

    def _lose(self) -> None:
        if self._expiry is None:  # reported already
            return
        self._expiry.cancel()
        self._expiry = None
        self._valid_until = 0.0
        self.statistics.lease_losses += 1
        self._interrupt("lease lost", "not renewed in time")
        self._on_lost()

    def _interrupt(self, event: str, reason: str) -> None:
        if self._interrupted_by is None:
            self._interrupted_by = event
            self._log.warning(event, reason=reason)

    def _update_living(self, role: str, leases: list[Lease]) -> None:
        known = self._watched[role]
        found = {lease.name: lease for lease in leases}
        if known is not None and self._loop.time() < self._grace_until:
            found = known | found
        if found != known:
            self._watched[role] = found
            self._on_living(role, [found[name] for name in sorted(found)])

    def _grant_grace(self) -> None:
        """Keep the known leases for one more time to live: Redis may have lost them, and their holders retake them."""
        self._grace_until = self._loop.time() + self._ttl_s
