"""Which settings survive a power loss, and what the topology decides for the others."""

import io

import pytest

from meshim.runtime.log import Log
from meshim.stores.durability import (
    DurabilityPolicy,
    Setting,
    Verdict,
    innodb,
    jetstream,
    jetstream_unknown,
    redis,
    sqlite,
)
from meshim.topology import Durability

SAFE, WEAK, UNKNOWN = Verdict.SAFE, Verdict.WEAK, Verdict.UNKNOWN
INNODB = {
    "innodb_flush_log_at_trx_commit": "1",
    "log_bin": "1",
    "sync_binlog": "1",
    "innodb_doublewrite": "1",
    "read_only": "0",
}


def verdicts(settings: list[Setting]) -> dict[str, Verdict]:
    assert all(bool(setting.reason) == (setting.verdict is not SAFE) for setting in settings)
    return {setting.name: setting.verdict for setting in settings}


def test_jetstream() -> None:
    assert verdicts([jetstream(True, 120.0)]) == {"sync_interval": SAFE}
    weak = jetstream(False, 120.0)
    assert (weak.value, weak.verdict) == ("120s", WEAK)
    assert "every 120 s" in weak.reason
    assert verdicts([jetstream_unknown("it is away")]) == {"sync_interval": UNKNOWN}


@pytest.mark.parametrize(
    ("journal_mode", "synchronous", "journal_verdict", "synchronous_verdict"),
    [
        ("wal", 2, SAFE, SAFE),
        ("wal", 3, SAFE, SAFE),
        ("wal", 1, SAFE, WEAK),
        ("wal", 0, SAFE, WEAK),
        ("delete", 2, SAFE, SAFE),
        ("memory", 2, WEAK, SAFE),
        ("off", 2, WEAK, SAFE),
    ],
)
def test_sqlite(journal_mode: str, synchronous: int, journal_verdict: Verdict, synchronous_verdict: Verdict) -> None:
    found = verdicts(sqlite(journal_mode, synchronous))
    assert found == {"journal_mode": journal_verdict, "synchronous": synchronous_verdict}


@pytest.mark.parametrize(
    ("policy", "memory_max_bytes", "role", "policy_verdict", "role_verdict"),
    [
        ("noeviction", 0, "master", SAFE, SAFE),
        ("noeviction", 1 << 30, "master", SAFE, SAFE),
        ("allkeys-lru", 0, "master", SAFE, SAFE),
        ("allkeys-lru", 1 << 30, "master", WEAK, SAFE),
        ("volatile-ttl", 1 << 30, "master", WEAK, SAFE),
        ("noeviction", 0, "slave", SAFE, WEAK),
        ("noeviction", 0, "sentinel", SAFE, WEAK),
        (None, None, "master", UNKNOWN, SAFE),
        ("noeviction", 0, None, SAFE, UNKNOWN),
    ],
)
def test_redis(
    policy: str | None, memory_max_bytes: int | None, role: str | None, policy_verdict: Verdict, role_verdict: Verdict
) -> None:
    found = verdicts(redis(policy, memory_max_bytes, role))
    assert found == {"maxmemory_policy": policy_verdict, "role": role_verdict}


@pytest.mark.parametrize(
    ("changed", "name", "verdict"),
    [
        ({}, "sync_binlog", SAFE),
        ({"innodb_flush_log_at_trx_commit": "3"}, "innodb_flush_log_at_trx_commit", SAFE),
        ({"innodb_flush_log_at_trx_commit": "2"}, "innodb_flush_log_at_trx_commit", WEAK),
        ({"innodb_flush_log_at_trx_commit": "0"}, "innodb_flush_log_at_trx_commit", WEAK),
        ({"sync_binlog": "0"}, "sync_binlog", WEAK),
        ({"sync_binlog": "100"}, "sync_binlog", WEAK),
        ({"innodb_doublewrite": "OFF"}, "innodb_doublewrite", UNKNOWN),
        ({"innodb_doublewrite": "0"}, "innodb_doublewrite", UNKNOWN),
        ({"innodb_doublewrite": "DETECT_ONLY"}, "innodb_doublewrite", UNKNOWN),
        ({"innodb_doublewrite": "ON"}, "innodb_doublewrite", SAFE),
        ({"innodb_doublewrite": "DETECT_AND_RECOVER"}, "innodb_doublewrite", SAFE),
        ({"read_only": "1"}, "read_only", WEAK),
        ({"read_only": "ON"}, "read_only", WEAK),
        ({"read_only": "NO_LOCK_NO_ADMIN"}, "read_only", WEAK),
        ({"read_only": "OFF"}, "read_only", SAFE),
    ],
)
def test_innodb(changed: dict[str, str], name: str, verdict: Verdict) -> None:
    found = verdicts(innodb(INNODB | changed))
    assert found.pop(name) is verdict
    assert set(found.values()) == {SAFE}


@pytest.mark.parametrize("off", ["OFF", "0"])
def test_sync_binlog_does_not_matter_without_a_binary_log(off: str) -> None:
    found = verdicts(innodb(INNODB | {"log_bin": off, "sync_binlog": "0"}))
    assert found == {"innodb_flush_log_at_trx_commit": SAFE, "innodb_doublewrite": SAFE, "read_only": SAFE}


def test_missing_variables_are_unknown() -> None:
    found = verdicts(innodb({}))
    assert found == dict.fromkeys(tuple(INNODB.keys() - {"log_bin"}), UNKNOWN)


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        (Durability(), {WEAK}),
        (Durability(unknown="refuse"), {WEAK, UNKNOWN}),
        (Durability(weak="warn"), set()),
        (Durability(weak="warn", unknown="refuse"), {UNKNOWN}),
    ],
)
def test_the_topology_decides(policy: Durability, refused: set[Verdict]) -> None:
    samples = {SAFE: jetstream(True, 0), WEAK: jetstream(False, 9), UNKNOWN: jetstream_unknown("it is away")}
    for verdict, setting in samples.items():
        refusal = DurabilityPolicy(policy, Log("test", "t", io.StringIO())).violation([samples[SAFE], setting])
        assert (refusal is not None) == (verdict in refused)
        if refusal is not None:
            assert setting.reason in refusal
            assert f"durability.{verdict}: warn" in refusal


def test_unsafe_settings_are_logged_once_until_they_change() -> None:
    output = io.StringIO()
    trust = DurabilityPolicy(Durability(weak="warn"), Log("test", "t", output))
    for settings in ([jetstream(False, 9)], [jetstream(False, 9)], [jetstream(True, 9)], [jetstream(False, 9)]):
        assert trust.violation(settings) is None
    assert output.getvalue().count("setting-not-safe") == 2
