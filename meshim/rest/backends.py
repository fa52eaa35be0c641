"""The ports that the REST service needs."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from meshim.stores.ports import Accounts, Leases, Notifications, Presence, SessionCache

Clock = Callable[[], float]
"""Seconds since 1970."""


class Backends(NamedTuple):
    """The ports of the service.

    `probes` has a call for each backend, by name; it raises BackendUnavailable when the backend does not answer.
    `storing` has one for those that store, which raises BackendUnavailable when it does not; it may cost a write.
    """

    accounts: Accounts
    leases: Leases
    presence: Presence
    cache: SessionCache
    notifications: Notifications
    probes: Mapping[str, Callable[[], Awaitable[object]]]
    storing: Mapping[str, Callable[[], Awaitable[object]]]
