"""Time is looked at only for sessions for which something is due: there are thousands, and ten ticks a second."""

import pytest

from meshim.connector import events as e
from meshim.connector.core import ConnectorCore
from meshim.connector.session import Session
from meshim.protocol.link import LinkOptions
from meshim.wire.link import Data
from meshim.wire.outcome import Outcome
from tests.unit.connector_world import A1, ALICE, B1, RELATION_S, SWEEP_S, Connector, account, options, place


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices for which time was looked at."""
    devices: list[int] = []
    look = ConnectorCore._tick_session

    def counting(core: ConnectorCore, session: Session, now: float) -> None:
        devices.append(session.login.device)
        look(core, session, now)

    monkeypatch.setattr(ConnectorCore, "_tick_session", counting)
    return devices


def test_an_idle_session_is_not_looked_at(looks: list[int]) -> None:
    connector = Connector()
    connector.online(A1)
    connector.pass_time(0.2)
    looks.clear()
    connector.pass_time(10.0)
    assert looks == []


def test_a_session_to_which_something_happens_is_looked_at_once(looks: list[int]) -> None:
    connector = Connector()
    alice, _ = connector.online(A1), connector.online(B1)
    connector.pass_time(0.2)
    looks.clear()
    alice.ping()
    connector.pass_time(1.0)
    assert looks == [A1]


def test_what_waits_for_others_is_no_reason_to_look(looks: list[int]) -> None:
    """Outcomes that wait leave after 3 ms, hundreds of times a second: that is no tick."""
    window = options().transfers.window
    connector = Connector(transfers=LinkOptions(window, heartbeat_s=0.5, silence_s=1.5, coalesce_s=0.003))
    transfer = connector.transfer()
    bob = connector.online(B1)
    connector.pass_time(1.0)
    looks.clear()
    told: list[int] = []
    for seq in (1, 2, 3):
        transfer.give(place(B1, seq))
        bob.acknowledge(seq)
        connector.pass_time(0.004)
        told += [item.first for item in transfer.take() if isinstance(item, Outcome)]
    assert told == [1, 2, 3]
    assert len(looks) <= 1, "three outcomes left, and one tick may have come between"


def test_what_is_due_between_is_done_in_time() -> None:
    connector = Connector()
    connector.transfer()
    bob = connector.online(B1)
    connector.pass_time(1.0)
    for transfer in connector.transfers.values():
        transfer.give(place(B1))
    assert len(bob.came(Data)) == 1
    connector.pass_time(1.2)
    assert len(bob.came(Data)) == 2, "it was sent again"
    bob.acknowledge(1)
    connector.take(e.CheckQueues)
    for _ in range(4):
        bob.ping()
        connector.pass_time(SWEEP_S / 3)
    assert connector.take(e.CheckQueues), "the sweep"


def test_a_binding_is_written_again_however_often_relations_are_read() -> None:
    """Presence forgets who was not written for an hour."""
    connector = Connector()
    alice = connector.online(A1)
    connector.take(e.RenewBindings)
    written = 0
    for _ in range(20):
        alice.ping()
        connector.pass_time(RELATION_S / 3)
        connector.tell(e.AccountsRead([account(ALICE, devices=(A1,))]))
        written += len(connector.take(e.RenewBindings))
    assert written >= 3
