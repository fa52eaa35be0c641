"""Only sessions with a deadline are ticked: there are thousands of sessions, and ten ticks a second."""

import pytest

from meshim.connector import events as e
from meshim.connector.core import ConnectorCore
from meshim.connector.offline_sync import OfflineSyncOptions
from meshim.connector.session import Session
from meshim.protocol.link import LinkOptions
from meshim.wire.link import Close, Data, Ping, Pong
from meshim.wire.outcome import CopyOutcome
from tests.unit.connector.world import A1, ALICE, B1, RELATION_S, SWEEP_S, Connector, account, live_copy, options


@pytest.fixture
def ticked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices whose sessions were ticked."""
    devices: list[int] = []
    tick_session = ConnectorCore._tick_session

    def counting(core: ConnectorCore, session: Session, now: float) -> None:
        devices.append(session.login.device)
        tick_session(core, session, now)

    monkeypatch.setattr(ConnectorCore, "_tick_session", counting)
    return devices


def test_an_idle_session_is_not_ticked(ticked: list[int]) -> None:
    connector = Connector()
    connector.online(A1)
    connector.pass_time(0.2)
    ticked.clear()
    connector.pass_time(9.5)
    assert ticked == []


def test_an_idle_session_is_ticked_once_for_each_ping(ticked: list[int]) -> None:
    connector = Connector(relation_ttl_s=1_000.0, sync=OfflineSyncOptions(1.0, 1_000.0))
    alice = connector.online(A1)
    connector.pass_time(0.2)
    ticked.clear()
    for _ in range(4):
        connector.pass_time(10.0)
        assert alice.came(Ping)
        alice.send(Pong(alice.link))
    connector.pass_time(5.0)
    assert ticked == [A1] * 4


def test_a_session_that_received_a_frame_is_ticked_once(ticked: list[int]) -> None:
    connector = Connector()
    alice, _ = connector.online(A1), connector.online(B1)
    connector.pass_time(0.2)
    ticked.clear()
    alice.ping()
    connector.pass_time(1.0)
    assert ticked == [A1]


def test_coalesced_outcomes_leave_without_a_tick(ticked: list[int]) -> None:
    """Coalesced outcomes leave after 3 ms, hundreds of times a second: sessions are not ticked for them."""
    window = options().transfers.window
    connector = Connector(transfers=LinkOptions(window, heartbeat_s=0.5, silence_s=1.5, coalesce_s=0.003))
    transfer = connector.transfer()
    bob = connector.online(B1)
    connector.pass_time(1.0)
    ticked.clear()
    outcomes: list[int] = []
    for seq in (1, 2, 3):
        transfer.give(live_copy(B1, seq))
        bob.acknowledge(seq)
        connector.pass_time(0.004)
        outcomes += [item.first for item in transfer.take() if isinstance(item, CopyOutcome)]
    assert outcomes == [1, 2, 3]
    assert len(ticked) <= 1, "three outcomes left, and one tick may have come between"


def test_deadlines_of_a_session_are_kept() -> None:
    connector = Connector()
    connector.transfer()
    bob = connector.online(B1)
    connector.pass_time(1.0)
    for transfer in connector.transfers.values():
        transfer.give(live_copy(B1))
    assert len(bob.came(Data)) == 1
    connector.pass_time(2.4)
    assert not bob.came(Close)
    bob.acknowledge(1)
    connector.take(e.CheckQueues)
    for _ in range(4):
        bob.ping()
        connector.pass_time(SWEEP_S / 3)
    assert connector.take(e.CheckQueues), "the sweep"
    for transfer in connector.transfers.values():
        transfer.give(live_copy(B1, 2))
    connector.pass_time(2.6)
    assert bob.came(Close), "it was not acknowledged in time"


def test_a_binding_is_renewed_however_often_relations_are_read() -> None:
    """Presence forgets a binding that was not written for an hour."""
    connector = Connector()
    alice = connector.online(A1)
    connector.take(e.RenewBindings)
    written = 0
    for _ in range(20):
        alice.ping()
        connector.pass_time(RELATION_S / 3)
        connector.receive(e.AccountsRead([account(ALICE, devices=(A1,))]))
        written += len(connector.take(e.RenewBindings))
    assert written >= 3
