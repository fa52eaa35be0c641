"""Keeps this process's lease alive, and watches those of the others.

To the mesh a process lives exactly as long as its lease.  It is renewed every `lease_renew_s`; while
renewals fail, `valid_until` says how long it surely lasts: Redis counts from when it got the command, we
count from before we sent it, so that our end comes first (R11).

What the mesh believes of us may be gone although the lease is not: a renewal failed (so may have other
writes), the lease had to be taken again, or Redis is another run of itself, perhaps with old data (R9).
`on_disturbed` then says: register everything anew.

Give it a connection to Redis of its own: a renewal must not queue behind a storm of greetings.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from meshim.errors import BackendUnavailable, Fenced, UsageError
from meshim.runtime.log import Log
from meshim.stores.ports import Lease, Leases
from meshim.topology import Timers

_ACQUIRE_TTLS = 2.0
"""How many lives of a lease another incarnation is waited for; a crash leaves at most one behind."""


class LeaseStatistics(msgspec.Struct):
    """Counters of one keeper since its start, named as `meshim status` shows them."""

    lease_losses: int = 0
    """Times the lease was not certain any more."""
    lease_failed_renewals: int = 0
    """Renewals that Redis did not answer in time."""


class LeaseKeeper:
    """One lease of ours, and the living leases of some roles.

    `on_living(role, leases)` is called with all of a role, at first and when they have changed; `on_lost()`
    when our lease is no longer surely ours; `on_disturbed()` when it is, after anything in between (see above).
    None of them may wait.
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
        on_disturbed: Callable[[], None] | None = None,
    ) -> None:
        self.mine = mine
        self.statistics = LeaseStatistics()
        self._leases = leases
        self._renew_s = timers.lease_renew_s
        self._ttl_s = timers.lease_ttl_s
        self._log = log
        self._on_living = on_living or (lambda role, leases: None)
        self._on_lost = on_lost or (lambda: None)
        self._on_disturbed = on_disturbed or (lambda: None)
        self._loop = asyncio.get_running_loop()
        self._released = False
        self._one_at_a_time = asyncio.Lock()
        self._valid_until = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._refused_from: float | None = None
        self._disturbed_by: str | None = None
        self._run_id: str | None = None
        self._watched: dict[str, dict[str, Lease] | None] = dict.fromkeys(watch)
        self._others_return_by = 0.0

    @property
    def valid_until(self) -> float:
        """Until when (clock of the loop) nobody can hold us for dead, unless Redis lost the lease; 0.0 without one."""
        return self._valid_until

    @property
    def held(self) -> bool:
        """False when we may be held for dead."""
        return self._loop.time() < self._valid_until

    def counted(self) -> dict[str, int]:
        """For `meshim status`."""
        return msgspec.structs.asdict(self.statistics)

    async def acquire(self) -> None:
        """Take the lease for the first time, once that of an incarnation that crashed has ended.

        Raises UsageError when another process of this name goes on renewing it, and BackendUnavailable.
        """
        give_up_at = self._loop.time() + _ACQUIRE_TTLS * self._ttl_s
        while not await self._take():
            if self._loop.time() >= give_up_at:
                raise UsageError(
                    f"another {self.mine.role} called {self.mine.name} is running: "
                    "stop it, or give this one another name in the topology"
                )
            await asyncio.sleep(self._renew_s / 4)
        self._run_id = await self._leases.run_id()

    async def run(self) -> None:
        """Renew and watch until cancelled, or the lease was given back.  Call it after `acquire`.

        Raises Fenced when another process of this name has taken the lease and goes on renewing it.
        """
        while not self._released:
            started = self._loop.time()
            async with self._one_at_a_time:
                await self._round()
            await asyncio.sleep(max(0.0, started + self._renew_s - self._loop.time()))

    async def release(self) -> None:
        """Give the lease back for good, so that nobody waits for its end; nothing is told any more."""
        self._released = True
        async with self._one_at_a_time:  # or a renewal under way would take it again
            self._valid_until = 0.0
            if self._expiry is not None:
                self._expiry.cancel()
            try:
                await self._leases.release(self.mine)
            except BackendUnavailable as error:  # it ends by itself
                self._log.warning("lease not released", reason=error.sentence)

    async def _round(self) -> None:
        if self._released:
            return
        try:
            async with asyncio.timeout(self._renew_s):
                # In this order: if Redis has lost everything, one of the two behind tells
                # before anybody is believed to be gone.
                living = {role: await self._leases.living(role) for role in self._watched}
                await self._extend_or_take()
                run_id = await self._leases.run_id()
        except (BackendUnavailable, TimeoutError) as error:
            self.statistics.lease_failed_renewals += 1
            self._disturb("renewal failed", str(error) or "redis is too slow")
            return
        if run_id != self._run_id:
            self._run_id = run_id
            self._disturb("redis restarted", run_id)
            self._expect_others()
        for role, leases in living.items():
            self._note_living(role, leases)
        if self.held and self._disturbed_by is not None:
            self._log.info("lease held again", after=self._disturbed_by)
            self._disturbed_by = None
            self._on_disturbed()

    async def _extend_or_take(self) -> None:
        asked_at = self._loop.time()
        if await self._leases.extend(self.mine, self._ttl_s):
            self._hold(asked_at)
            return
        self._disturb("lease ended", "stopped for too long, or redis lost it")
        self._expect_others()
        self._lose()
        if await self._take():
            self._refused_from = None
        elif self._refused_from is None:
            self._refused_from = asked_at
        elif asked_at - self._refused_from > _ACQUIRE_TTLS * self._ttl_s:
            raise Fenced(f"another {self.mine.role} called {self.mine.name} took over: this one ends")

    async def _take(self) -> bool:
        asked_at = self._loop.time()
        taken = await self._leases.acquire(self.mine, self._ttl_s)
        if taken:
            self._hold(asked_at)
        return taken

    def _hold(self, asked_at: float) -> None:
        self._valid_until = asked_at + self._ttl_s
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(self._valid_until, self._lose)

    def _lose(self) -> None:
        if self._expiry is None:  # told already
            return
        self._expiry.cancel()
        self._expiry = None
        self._valid_until = 0.0
        self.statistics.lease_losses += 1
        self._disturb("lease lost", "not renewed in time")
        self._on_lost()

    def _disturb(self, event: str, reason: str) -> None:
        if self._disturbed_by is None:
            self._disturbed_by = event
            self._log.warning(event, reason=reason)

    def _note_living(self, role: str, leases: list[Lease]) -> None:
        known = self._watched[role]
        found = {lease.name: lease for lease in leases}
        if known is not None and self._loop.time() < self._others_return_by:
            found = known | found
        if found != known:
            self._watched[role] = found
            self._on_living(role, [found[name] for name in sorted(found)])

    def _expect_others(self) -> None:
        """Redis may have lost all leases with ours: who lived a moment ago has this long to take his again."""
        self._others_return_by = self._loop.time() + self._ttl_s
