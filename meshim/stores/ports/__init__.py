"""The ports: what meshim asks of outside state.  Adapters for Redis, JetStream and SQL, and one in memory, meet them.

Every method is a coroutine, raises `BackendUnavailable` when the backend does not answer,
and takes and returns whole batches where it is on the way of a message.  Acknowledged
means kept; a call that raised may or may not have happened, so every write can be repeated.
"""

from meshim.stores.ports.accounts import Accounts, Device, Relation, RelationKey, User
from meshim.stores.ports.dead_letters import DeadLetter, DeadLetters
from meshim.stores.ports.leases import Lease, Leases
from meshim.stores.ports.notifications import Notifications
from meshim.stores.ports.offline_log import LogMessage, OfflineLog
from meshim.stores.ports.partitions import Partitions, Written
from meshim.stores.ports.presence import Binding, Presence, UserPresence
from meshim.stores.ports.queues import Page, Queues, Row
from meshim.stores.ports.session_cache import Account, CachedLogin, Login, SessionCache

__all__ = [
    "Account",
    "Accounts",
    "Binding",
    "CachedLogin",
    "DeadLetter",
    "DeadLetters",
    "Device",
    "Lease",
    "Leases",
    "LogMessage",
    "Login",
    "Notifications",
    "OfflineLog",
    "Page",
    "Partitions",
    "Presence",
    "Queues",
    "Relation",
    "RelationKey",
    "Row",
    "SessionCache",
    "User",
    "UserPresence",
    "Written",
]
