"""The interfaces that the adapters for Redis, NATS and SQL implement (ports).

==================================  ========================================  =======================================
port                                adapters                                  contract tests (rooms of tests/contract/)
==================================  ========================================  =======================================
`Leases`                            `redis/leases.py`, `memory/redis.py`      `test_leases.py`, `test_lease_clock.py`
`Presence`                          `redis/presence.py`, `memory/redis.py`    `test_presence*.py`
`SessionCache`                      `redis/session_cache.py`,                 `test_session_cache.py`
                                    `memory/redis.py`
`Throttle`                          `redis/throttle.py`,                      `test_throttle.py`
                                    `memory/throttle.py`
`OfflineLog`                        `nats/offline_log.py`, `memory/nats.py`   `test_offline_log.py`
`DeadLetters`                       `nats/dead_letters.py`, `memory/nats.py`  `test_dead_letters.py`
`Notifications`                     `nats/notifications.py`,                  `test_notifications.py`
                                    `memory/nats.py`
`Accounts`                          `sql/accounts.py`, `memory/accounts.py`   `test_accounts.py`,
                                                                              `test_first_device.py`
`Queues`                            `sql/queues.py`, `memory/database.py`     `test_queues*.py`
`Partitions`                        `sql/partitions.py`,                      `test_partitions.py`,
                                    `memory/database.py`                      `test_refused_entries.py`
==================================  ========================================  =======================================

Rules for every method: it is a coroutine; it raises `BackendUnavailable` when the backend does not answer in time; on
the path of a message it takes and returns whole batches.  A write that returned is kept.  A write that raised may or
may not have happened, so every write can be repeated.  Times are seconds since 1970 (UTC), durations are seconds.

To add a method: declare it in the protocol with a docstring (the reference for all adapters), implement it in each
adapter of the table, and test it in the contract test, which runs the same functions over the memory adapter and over
real servers.  Roles get the port through the `Backends` of their role.  For a new column or table see `sql/schema.py`.
"""

from meshim.stores.ports.accounts import (
    KEY_VERSIONS_MAX,
    Accounts,
    Device,
    Relation,
    RelationKey,
    RelationLimits,
    Requested,
    User,
)
from meshim.stores.ports.dead_letters import DeadLetter, DeadLetters
from meshim.stores.ports.leases import Lease, Leases
from meshim.stores.ports.notifications import Notifications
from meshim.stores.ports.offline_log import LogMessage, OfflineLog
from meshim.stores.ports.partitions import Partitions, QueueKey, QueueUsage, Size, Written
from meshim.stores.ports.presence import Binding, FullQueue, Presence, UserPresence
from meshim.stores.ports.queues import Page, Queues, Row
from meshim.stores.ports.session_cache import Account, CachedLogin, Login, SessionCache
from meshim.stores.ports.throttle import Bucket, Outcome, Throttle

__all__ = [
    "KEY_VERSIONS_MAX",
    "Account",
    "Accounts",
    "Binding",
    "Bucket",
    "CachedLogin",
    "DeadLetter",
    "DeadLetters",
    "Device",
    "FullQueue",
    "Lease",
    "Leases",
    "LogMessage",
    "Login",
    "Notifications",
    "OfflineLog",
    "Outcome",
    "Page",
    "Partitions",
    "Presence",
    "QueueKey",
    "QueueUsage",
    "Queues",
    "Relation",
    "RelationKey",
    "RelationLimits",
    "Requested",
    "Row",
    "SessionCache",
    "Size",
    "Throttle",
    "User",
    "UserPresence",
    "Written",
]
