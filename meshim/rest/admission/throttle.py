"""Counts attempts together with all REST processes; while Redis is away, each process counts for itself.

Which buckets an attempt counts in is a rule without I/O: `login_buckets`, `registration_buckets`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from meshim.errors import BackendUnavailable
from meshim.rest.backends import Clock
from meshim.rest.statistics import Statistics
from meshim.runtime.log import Log
from meshim.stores.memory.throttle import MemoryThrottle, Windows
from meshim.stores.ports import Bucket, Outcome, Throttle
from meshim.topology import Topology

_MINUTE_S = 60.0


def login_buckets(name: str, network: str, proof: str | None, topology: Topology) -> list[Bucket]:
    """Return the buckets of a login; `proof` is that of a device that has logged in before, None without a valid one.

    A known device has a bucket of its own: guesses without its proof cannot keep it out (OWASP, device cookies).
    Others share three: that of the account and the address, that of the account, and that of the address, which also
    bounds one password that is tried for many accounts.
    """
    limits, timers = topology.limits, topology.timers
    if proof is not None:
        return [Bucket(f"device:{name}:{proof}", limits.login_failures, timers.login_window_s, forgives=True)]
    account_s = timers.account_login_window_s
    return [
        Bucket(f"login:{name}:{network}", limits.login_failures, timers.login_window_s, forgives=True),
        Bucket(f"account:{name}", limits.login_failures_per_account, account_s),
        Bucket(f"address:{network}", limits.login_failures_per_address, timers.login_window_s),
    ]


def registration_buckets(network: str, topology: Topology) -> list[Bucket]:
    """Return the buckets of a registration.  Where invites are needed, their number bounds those of all addresses."""
    limits, window_s = topology.limits, topology.timers.registration_window_s
    buckets = [Bucket(f"registration:{network}", limits.registrations_per_address, window_s)]
    if topology.registration == "open":
        buckets.append(Bucket("registrations", limits.registrations_per_minute, _MINUTE_S))
    return buckets


class Attempt:
    """One attempt.  It has not begun when `wait_s` is more than 0; `outcome` is how it ends."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.outcome = Outcome.GIVEN_UP


class SharedThrottle:
    """Begins and ends attempts."""

    def __init__(self, shared: Throttle, clock: Clock, log: Log, statistics: Statistics) -> None:
        self._shared = shared
        self._local = MemoryThrottle(Windows(clock))
        self._log = log
        self._statistics = statistics

    @asynccontextmanager
    async def attempt(self, buckets: Sequence[Bucket]) -> AsyncGenerator[Attempt]:
        """An attempt during the block, which sets its `outcome`."""
        throttle = self._shared
        try:
            attempt = Attempt(await throttle.begin(buckets))
        except BackendUnavailable as error:
            self._away(error)
            throttle = self._local
            attempt = Attempt(await throttle.begin(buckets))
        try:
            yield attempt
        finally:
            if attempt.wait_s <= 0:
                await self._end(throttle, buckets, attempt.outcome)

    async def _end(self, throttle: Throttle, buckets: Sequence[Bucket], outcome: Outcome) -> None:
        try:
            await throttle.end(buckets, outcome)
        except BackendUnavailable as error:  # what has begun there counts until its window ends
            self._away(error)
            await self._local.end(buckets, outcome)

    def _away(self, error: BackendUnavailable) -> None:
        self._statistics.throttled_locally += 1
        self._log.warning("attempts are counted by this process alone", reason=error)
