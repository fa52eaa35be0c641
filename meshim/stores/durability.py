"""Whether the backends keep what they have acknowledged, by their settings: through a power loss, or at all.

=========  ==================================  =====================================================================
backend    setting                             safe
=========  ==================================  =====================================================================
NATS       `sync_interval`                     `always`; otherwise an acknowledged message is synced minutes later
SQLite     `synchronous`                       FULL or EXTRA; NORMAL syncs no commit in WAL mode
           `journal_mode`                      any on disk
InnoDB     `innodb_flush_log_at_trx_commit`    1, in MariaDB also 3
           `sync_binlog`                       1, where `log_bin` is on: a transaction missing from the binary log is
                                               rolled back after a crash
           `innodb_doublewrite`                on; without it only the storage can be safe, which cannot be read
           `read_only`                         off; a replica takes no writes
Redis      `maxmemory_policy`                  `noeviction`, or any other without `maxmemory`: one that evicts takes
                                               leases, bindings and logins away when its memory is full
           `role`                              `master`; a replica takes no writes, or loses them
=========  ==================================  =====================================================================

A setting that cannot be read is unknown, never safe.  Pure: `nats/durability.py`, `sql/durability.py` and
`redis/settings.py` read the settings.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from meshim.runtime.log import Log
from meshim.topology import Durability, OnWeak


class Verdict(StrEnum):
    """Whether the promises hold with this setting."""

    SAFE = "safe"
    WEAK = "weak"
    UNKNOWN = "unknown"


class Setting(msgspec.Struct, frozen=True):
    """One setting of a backend, as `meshim status` shows it."""

    backend: str
    """`redis`, `nats` or `sql`."""
    name: str
    value: str
    """As the backend reports it; empty when it was not read."""
    verdict: Verdict
    reason: str = ""
    """Empty when safe; otherwise a sentence that says what is wrong and what to do."""


class DurabilityPolicy:
    """Applies `durability.weak` and `durability.unknown` of the topology.

    Logs each setting that is not safe, once until the settings change.
    """

    def __init__(self, policy: Durability, log: Log) -> None:
        self._policy = policy
        self._log = log
        self._logged: Sequence[Setting] = ()

    def violation(self, settings: Sequence[Setting]) -> str | None:
        """Return the sentence why nothing may be stored with these settings; None when storing is allowed."""
        doubtful = [setting for setting in settings if setting.verdict is not Verdict.SAFE]
        if doubtful != self._logged:
            self._logged = doubtful
            for setting in doubtful:
                self._log.warning("setting not safe", verdict=setting.verdict, reason=setting.reason)
        refused = next((setting for setting in doubtful if self._on_weak(setting) == "refuse"), None)
        if refused is None:
            return None
        return f"{refused.reason} (To go on all the same set `durability.{refused.verdict}: warn` in the topology.)"

    def _on_weak(self, setting: Setting) -> OnWeak:
        return self._policy.weak if setting.verdict is Verdict.WEAK else self._policy.unknown


def jetstream(sync_always: bool, sync_interval_s: float) -> Setting:
    """Judge `sync_interval` of a NATS server."""
    if sync_always:
        return Setting("nats", "sync_interval", "always", Verdict.SAFE)
    reason = (
        f"NATS syncs what it has acknowledged only every {sync_interval_s:g} s: "
        "set `sync_interval: always` in the `jetstream` part of its configuration and restart it."
    )
    return Setting("nats", "sync_interval", f"{sync_interval_s:g}s", Verdict.WEAK, reason)


def jetstream_unknown(why: str) -> Setting:
    """Return the setting of a NATS server that cannot be read; `why` completes "It is not known how NATS syncs: "."""
    return Setting("nats", "sync_interval", "", Verdict.UNKNOWN, f"It is not known how NATS syncs: {why}.")


def redis(policy: str | None, memory_max_bytes: int | None, role: str | None) -> list[Setting]:
    """Judge the eviction and the role of a Redis server; None for what it does not tell."""
    if policy is None or memory_max_bytes is None:
        eviction = Setting(
            "redis", "maxmemory_policy", "", Verdict.UNKNOWN, "Redis does not tell its `maxmemory-policy`."
        )
    else:
        evicting = (
            f"Redis runs with `maxmemory-policy {policy}` and drops leases, presence and logins when its memory is "
            "full: set it to `noeviction`."
        )
        safe = policy == "noeviction" or memory_max_bytes == 0
        eviction = _judged("maxmemory_policy", policy, safe, evicting, "redis")
    if role is None:
        return [eviction, Setting("redis", "role", "", Verdict.UNKNOWN, "Redis does not tell whether it is a replica.")]
    replica = f"This Redis is a {role}, which keeps no writes of ours: name its primary in `backends.redis`."
    return [eviction, _judged("role", role, role == "master", replica, "redis")]


def sqlite(journal_mode: str, synchronous: int) -> list[Setting]:
    """Judge the two pragmas of a connection."""
    level = dict(enumerate(("OFF", "NORMAL", "FULL", "EXTRA"))).get(synchronous, str(synchronous))
    unsynced = f"SQLite runs with `synchronous={level}`, which does not sync what it commits: it has to be FULL."
    unwritten = f"SQLite runs with `journal_mode={journal_mode}`, which keeps its journal in memory: it has to be WAL."
    return [
        _judged("synchronous", level, level in ("FULL", "EXTRA"), unsynced),
        _judged("journal_mode", journal_mode, journal_mode.lower() not in ("off", "memory"), unwritten),
    ]


def innodb(variables: Mapping[str, str]) -> list[Setting]:
    """Judge the global variables of a MySQL or MariaDB server; missing ones are unknown."""
    found = [_flush(variables.get("innodb_flush_log_at_trx_commit"))]
    if not _is_off(variables.get("log_bin", "")):
        found.append(_sync_binlog(variables.get("sync_binlog")))
    found.append(_doublewrite(variables.get("innodb_doublewrite")))
    found.append(_read_only(variables.get("read_only")))
    return found


def _flush(value: str | None) -> Setting:
    name = "innodb_flush_log_at_trx_commit"
    if value is None:
        return _unreadable(name)
    reason = f"The database runs with `{name}={value}`: it syncs what it has committed a second later. Set it to 1."
    return _judged(name, value, value in ("1", "3"), reason)


def _sync_binlog(value: str | None) -> Setting:
    name = "sync_binlog"
    if value is None:
        return _unreadable(name)
    reason = (
        f"The database runs with `{name}={value}` and a binary log: after a crash it rolls back what that log "
        "has not synced. Set it to 1."
    )
    return _judged(name, value, value == "1", reason)


def _doublewrite(value: str | None) -> Setting:
    name = "innodb_doublewrite"
    if value is None:
        return _unreadable(name)
    if _is_off(value) or value.upper() == "DETECT_ONLY":
        reason = f"The database runs with `{name}={value}`: only storage that never tears a page is safe then."
        return Setting("sql", name, value, Verdict.UNKNOWN, reason)
    return Setting("sql", name, value, Verdict.SAFE)


def _read_only(value: str | None) -> Setting:
    name = "read_only"
    if value is None:
        return _unreadable(name)
    reason = f"The database runs with `{name}={value}`, as a replica does: name its primary in `backends.sql`."
    return _judged(name, value, _is_off(value), reason)


def _is_off(value: str) -> bool:
    return value.upper() in ("OFF", "0")


def _unreadable(name: str) -> Setting:
    return Setting("sql", name, "", Verdict.UNKNOWN, f"The database does not tell its `{name}`.")


def _judged(name: str, value: str, safe: bool, otherwise: str, backend: str = "sql") -> Setting:
    return Setting(backend, name, value, Verdict.SAFE if safe else Verdict.WEAK, "" if safe else otherwise)
