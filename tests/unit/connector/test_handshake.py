"""Greetings, sessions that replace others, and the ends of sessions and connections."""

import pytest

from meshim.connector import events as e
from meshim.errors import Code
from meshim.stores.ports import Binding
from meshim.wire.client import Change, Changed, Welcome, encode
from meshim.wire.link import Close, Data, Ping, Pong
from meshim.wire.mesh import Deliver
from meshim.wire.notification import AccountChanged, Kick
from tests.unit.connector.world import (
    A1,
    A2,
    ALICE,
    B1,
    BOB,
    CAROL,
    ELSEWHERE,
    HERE,
    LONGEST,
    RELATION_S,
    RETRY_S,
    SWEEP_S,
    Client,
    Connector,
    account,
    envelope,
    live_copy,
)


def codes(client: Client) -> list[int]:
    return [code for code, _ in client.closed]


def test_a_valid_token_is_bound_then_welcomed_then_synced() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    assert not alice.frames, "no welcome before presence has the binding"
    write = connector.take_one(e.WriteBindings)
    assert write.renewals == ((alice.binding, (A1,), alice.token_hash),)
    assert not connector.take(e.CheckQueues), "the queue is checked after the presence write"
    connector.receive(e.BindingsWritten([(alice.binding, None)]))
    (welcome,) = alice.came(Welcome)
    assert (welcome.link, welcome.session, welcome.user, welcome.device) == (alice.link, alice.session, ALICE, A1)
    assert (welcome.window, welcome.body_bytes, welcome.frame_bytes, welcome.heartbeat_ms) == (8, 1_000, 8_000, 10_000)
    assert connector.take_one(e.CheckQueues).devices == ((ALICE, A1, alice.session),)
    assert connector.take_one(e.RecordLastSeen).devices == (A1,)
    assert (connector.count.greeted, connector.count.sessions) == (1, 1)


def test_a_bad_token_is_refused_and_may_be_followed_by_a_valid_one() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    check = connector.take_one(e.CheckGreet)
    connector.receive(e.GreetRefused(check.peer, check.link, Code.BAD_TOKEN, "no"))
    assert alice.closed == [(Code.BAD_TOKEN, "no")]
    assert (connector.count.refused, connector.count.sessions) == (1, 0)
    alice.greet()
    alice.accepted()
    assert connector.count.sessions == 1


def test_another_version_is_refused() -> None:
    connector = Connector()
    alice = connector.connect(A1, version=2)
    assert codes(alice) == [Code.VERSION]
    assert not connector.asked


def test_a_full_connector_refuses_greetings() -> None:
    connector = Connector(sessions=2)
    connector.online(A1)
    connector.connect(A2)  # its token is being verified: counts too
    bob = connector.connect(B1)
    assert codes(bob) == [Code.BUSY]


def test_greetings_with_one_token_have_a_rate_and_those_of_others_have_their_own() -> None:
    connector = Connector(greetings_per_s=2.0)
    greeted = 0

    def greet(device: int) -> list[int]:
        nonlocal greeted
        greeted += 1
        client = connector.connect(device)
        for check in connector.take(e.CheckGreet):
            connector.receive(e.GreetRefused(check.peer, check.link, Code.REPLACED, "no"))
        return codes(client)

    assert [greet(A1) for _ in range(20)] == [[Code.REPLACED]] * 20, "those of ten seconds at once"
    assert [greet(A1) for _ in range(100)] == [[Code.BUSY]] * 100
    assert greet(B1) == [Code.REPLACED]
    assert (connector.count.refused, connector.count.greetings_limited) == (greeted, 100)
    limited = connector.connect(A1)
    assert limited.closed == [(Code.BUSY, "this token has greeted too often: wait 0.5 s")]
    assert not connector.asked, "neither Redis nor SQL"
    connector.pass_time(0.4)
    assert greet(A1) == [Code.REPLACED]
    assert greet(A1) == [Code.BUSY]


@pytest.mark.parametrize("when", ["checking", "binding", "live"])
def test_a_second_greeting_ends_the_connection(when: str) -> None:
    connector = Connector()
    alice = connector.online(A1) if when == "live" else connector.connect(A1)
    if when == "binding":
        alice.accepted()
    alice.greet()
    assert codes(alice) == [Code.NOT_GREETED]
    assert connector.count.malformed == 1
    if when == "checking":
        alice.accepted()
    connector.receive(e.BindingsWritten([(alice.binding, None)]))
    assert not alice.came(Welcome)
    assert connector.count.sessions == 0
    assert (alice.binding,) in [erase.bindings for erase in connector.take(e.EraseBindings)] or when == "checking"


def test_frames_before_the_welcome_are_dropped_and_counted() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.submit(envelope())
    alice.accepted()
    alice.ping()
    assert not alice.frames
    assert connector.count.early == 2
    connector.receive(e.BindingsWritten([(alice.binding, None)]))
    assert alice.came(Welcome)
    alice.submit(envelope())  # number 2: the first was dropped
    assert alice.closed == [(Code.MALFORMED, "frame 2 came, 1 was expected")]


@pytest.mark.parametrize("when", ["checking", "binding"])
def test_a_client_that_gives_up_before_its_welcome_leaves_nothing(when: str) -> None:
    connector = Connector()
    alice = connector.connect(A1)
    if when == "binding":
        alice.accepted()
    alice.send(Close(alice.link, Code.SHUTTING_DOWN))
    if when == "checking":
        alice.accepted()
    assert connector.count.sessions == 0
    assert not alice.frames
    if when == "binding":
        connector.take(e.EraseBindings)
        # The erasure may have overtaken the write.
        connector.receive(e.BindingsWritten([(alice.binding, None)]))
        assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)


def test_verdicts_for_a_peer_that_is_gone_have_no_effect() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    check = connector.take_one(e.CheckGreet)
    connector.receive(e.ClientGone(alice.peer))
    connector.receive(e.GreetAccepted(check.peer, check.link, alice.token_hash, alice.login, account(ALICE), 5))
    connector.receive(e.GreetRefused(check.peer, check.link, Code.BAD_TOKEN, "no"))
    assert not alice.frames
    assert not connector.asked
    assert connector.count.refused == 0


def test_a_connection_has_one_greeting_under_way_however_often_it_takes_it_back() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    check = connector.take_one(e.CheckGreet)
    for spoil in (Close(alice.link, 0, ""), b"garbage") * 10:
        alice.send_bytes(spoil if isinstance(spoil, bytes) else encode(spoil))
        alice.greet()
    assert connector.take(e.CheckGreet) == []
    connector.receive(e.GreetAccepted(check.peer, check.link, alice.token_hash, alice.login, account(ALICE), 5))
    assert connector.count.sessions == 0, "it has taken that greeting back"
    alice.greet()
    connector.take_one(e.CheckGreet)


def test_a_verdict_on_an_earlier_greeting_of_a_peer_has_no_effect() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    check = connector.take_one(e.CheckGreet)
    alice.send_bytes(b"garbage")
    alice.link += 1
    alice.greet()
    connector.receive(e.GreetAccepted(check.peer, check.link, alice.token_hash, alice.login, account(ALICE), 5))
    assert connector.count.sessions == 0


# ---------------------------------------------------------------- one device, several connections


def test_a_session_whose_binding_a_later_one_holds_is_cut() -> None:
    """R5: a stopped connector's late write, after the new session's greet."""
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    connector.take(e.WriteBindings)
    connector.receive(e.BindingsWritten([(alice.binding, False)]))
    assert codes(alice) == [Code.REPLACED]
    assert connector.count.replaced == 1


def test_the_session_that_held_the_binding_elsewhere_is_kicked() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    connector.take(e.WriteBindings)
    before = Binding(ALICE, A1, ELSEWHERE, 42)
    connector.receive(e.BindingsWritten([(alice.binding, before)]))
    tell = connector.take_one(e.SendKick)
    assert (tell.incarnation, tell.kick.device, tell.kick.session, tell.kick.code) == (ELSEWHERE, A1, 42, Code.REPLACED)
    assert alice.came(Welcome)


@pytest.mark.parametrize("how", ["close", "gone"])
def test_the_session_that_lost_its_binding_elsewhere_is_kicked_though_the_later_one_left_early(how: str) -> None:
    """Else it would stay connected without a binding, and its messages would wait for the sweep."""
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    connector.take(e.WriteBindings)
    if how == "close":
        alice.send(Close(alice.link, Code.QUIT))
    else:
        connector.receive(e.ClientGone(alice.peer))
    connector.take(e.EraseBindings)
    connector.receive(e.BindingsWritten([(alice.binding, Binding(ALICE, A1, ELSEWHERE, 42))]))
    tell = connector.take_one(e.SendKick)
    assert (tell.incarnation, tell.kick.device, tell.kick.session, tell.kick.code) == (ELSEWHERE, A1, 42, Code.REPLACED)
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)


def test_a_later_connection_of_the_device_here_replaces_the_earlier() -> None:
    connector = Connector()
    connector.transfer()
    first = connector.online(A1)
    second = connector.connect(A1)
    second.accepted()
    assert codes(first) == [Code.REPLACED]
    assert connector.take_one(e.EraseBindings).bindings == (first.binding,)
    connector.receive(e.BindingsWritten([(second.binding, first.binding)]))
    assert second.came(Welcome)
    assert not connector.take(e.SendKick), "no other connector is concerned"


def test_an_earlier_number_does_not_replace_a_later_session_here() -> None:
    connector = Connector()
    first = connector.online(A1)
    second = connector.connect(A1)
    second.accepted(session=first.session - 1)
    assert codes(second) == [Code.REPLACED]
    assert not first.closed
    assert connector.count.sessions == 1


def test_a_kick_is_for_sessions_up_to_its_number() -> None:
    connector = Connector()
    alice = connector.online(A1)
    kick = Kick(ALICE, A1, alice.session - 1, Code.LOGGED_OUT, "logged out")
    connector.receive(e.NotificationReceived(kick))
    connector.receive(e.NotificationReceived(Kick(BOB, B1, alice.session, Code.LOGGED_OUT, "somebody else")))
    assert not alice.closed
    connector.receive(e.NotificationReceived(Kick(ALICE, A1, alice.session, Code.LOGGED_OUT, "logged out")))
    assert alice.closed == [(Code.LOGGED_OUT, "logged out")]
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)
    assert connector.count.replaced == 0


def test_a_session_that_was_replaced_elsewhere_is_counted() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.NotificationReceived(Kick(ALICE, A1, alice.session, Code.REPLACED, "elsewhere")))
    assert codes(alice) == [Code.REPLACED]
    assert connector.count.replaced == 1


def test_a_kick_with_a_code_of_the_future_kicks_too() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.NotificationReceived(Kick(ALICE, A1, alice.session, 4711, "?")))
    assert alice.closed == [(4711, "?")]


# ---------------------------------------------------------------- presence


def test_without_presence_new_sessions_are_cut() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    connector.receive(e.BindingsWriteFailed([alice.binding]))
    assert codes(alice) == [Code.BUSY]
    assert connector.count.sessions == 0


def test_bindings_are_written_again_until_presence_answers() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.PresenceRecovered())
    assert list(connector.take_one(e.RenewBindings).renewals) == [alice.renewal]
    for _ in range(3):
        connector.receive(e.BindingsWriteFailed([alice.binding]))
        connector.pass_time(0.9 * RETRY_S)
        assert not connector.take(e.RenewBindings)
        connector.pass_time(0.2 * RETRY_S)
        assert list(connector.take_one(e.RenewBindings).renewals) == [alice.renewal]
    connector.receive(e.BindingsWritten([(alice.binding, None)]))
    assert connector.take_one(e.CheckQueues), "rows may have been stored meanwhile"
    assert not alice.closed


def test_a_binding_that_may_have_been_written_for_an_ended_session_is_erased() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.PresenceRecovered())
    alice.send(Close(alice.link, 0))
    connector.take(e.EraseBindings)
    connector.receive(e.BindingsWriteFailed([alice.binding]))
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)


def test_after_a_disturbance_all_bindings_are_written_and_queues_checked() -> None:
    """R9, also a session that is binding: its first write may have been lost too."""
    connector = Connector()
    alice, bob = connector.online(A1), connector.connect(B1)
    bob.accepted()
    connector.receive(e.PresenceRecovered())
    assert list(connector.take_one(e.RenewBindings).renewals) == [alice.renewal, bob.renewal]
    connector.receive(e.BindingsWritten([(alice.binding, None), (bob.binding, None)]))
    connector.receive(e.BindingsWritten([(bob.binding, None)]))
    assert len(bob.came(Welcome)) == 1
    ticked = [device for check in connector.take(e.CheckQueues) for device in check.devices]
    assert ticked == [(ALICE, A1, alice.session), (BOB, B1, bob.session)]


def test_a_session_replaced_while_its_connector_was_stopped_is_cut() -> None:
    """R11: the lease ended, the device connected elsewhere."""
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.PresenceRecovered())
    connector.receive(e.BindingsWritten([(alice.binding, False)]))
    assert codes(alice) == [Code.REPLACED]


def test_a_session_that_was_replaced_elsewhere_without_a_kick_is_cut_at_its_renewal() -> None:
    """Else it would go on syncing, perhaps into a state file that was given up."""
    connector = Connector()
    bob = connector.online(B1)
    for _ in range(3):
        bob.ping()
        connector.pass_time(RELATION_S / 3)
    assert list(connector.take(e.RenewBindings)[-1].renewals) == [bob.renewal]
    connector.receive(e.BindingsWritten([(bob.binding, False)]))
    assert codes(bob) == [Code.REPLACED]


def test_a_session_whose_token_was_revoked_without_a_kick_is_cut_at_its_renewal() -> None:
    """R14 and R9: presence forgot the later session, so the connector that writes first has the binding for a
    moment."""
    connector = Connector()
    alice, bob = connector.online(A1), connector.online(B1)
    connector.receive(e.PresenceRecovered())
    connector.receive(e.TokensRevoked([alice.binding, Binding(BOB, B1, HERE, bob.session - 1)]))
    assert codes(alice) == [Code.REPLACED]
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)
    assert not bob.closed, "that was an earlier session of the device"


def test_while_presence_is_away_no_binding_is_renewed() -> None:
    """Else every session would be looked up every second, when the database has most to do."""
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.LeaseLost())
    connector.receive(e.BindingsWriteFailed([alice.binding]))
    connector.take(e.RenewBindings)
    connector.pass_time(3 * RETRY_S)
    assert not connector.take(e.RenewBindings)
    connector.receive(e.PresenceRecovered())
    assert list(connector.take_one(e.RenewBindings).renewals) == [alice.renewal]


def test_a_copy_for_a_device_that_is_not_connected_erases_its_binding() -> None:
    connector = Connector()
    transfer = connector.transfer()
    there = live_copy(B1)
    transfer.give(Deliver(BOB, ((B1, 42),), there.stamp, there.envelope))
    assert connector.take_one(e.EraseBindings).bindings == (Binding(BOB, B1, HERE, 42),)
    assert connector.count.not_connected == 1


# ---------------------------------------------------------------- accounts


def test_relations_are_read_again_within_their_time_also_when_nothing_happens() -> None:
    connector = Connector(relation_ttl_s=8.0)
    alice = connector.online(A1)
    connector.pass_time(8.0)
    assert connector.take_one(e.ReadAccounts).users == (ALICE,)
    connector.receive(e.AccountsRead([account(ALICE, (CAROL,))]))
    connector.transfer()
    alice.submit(envelope(to=CAROL))
    assert connector.count.rejected == 0


def test_a_change_of_an_account_is_read_once_however_many_devices_it_has() -> None:
    connector = Connector()
    connector.online(A1)
    connector.online(A2)
    connector.receive(e.NotificationReceived(AccountChanged((ALICE, CAROL), Change.DEVICES)))
    assert connector.take_one(e.ReadAccounts).users == (ALICE,)


def test_devices_are_told_of_a_request_at_once_and_of_a_friend_once_the_account_is_read() -> None:
    connector = Connector()
    alice, bob = connector.online(A1), connector.online(B1)
    connector.receive(e.NotificationReceived(AccountChanged((ALICE, CAROL), Change.RELATIONS)))
    assert alice.came(Changed) == [Changed(alice.link, Change.RELATIONS)]
    assert not connector.take(e.ReadAccounts), "a request changes no account"
    connector.pass_time(1.0)
    both = Change.RELATIONS | Change.KEYS
    connector.receive(e.NotificationReceived(AccountChanged((ALICE, CAROL), both)))
    assert len(alice.came(Changed)) == 1
    connector.receive(e.AccountsRead([account(ALICE, (BOB, CAROL))]))
    assert alice.came(Changed)[1:] == [Changed(alice.link, both)]
    assert not bob.came(Changed)


def test_a_change_whose_notification_was_lost_is_told_when_the_account_is_read() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.AccountsRead([account(ALICE, (ALICE, BOB))]))
    assert not alice.came(Changed)
    connector.receive(e.AccountsRead([account(ALICE, (CAROL,), devices=(A1, A2))]))
    assert alice.came(Changed) == [Changed(alice.link, Change.RELATIONS | Change.KEYS | Change.DEVICES)]


def test_many_changes_become_one_frame_a_second() -> None:
    connector = Connector()
    alice = connector.online(A1)
    for _ in range(100):
        connector.receive(e.NotificationReceived(AccountChanged((ALICE,), Change.RELATIONS)))
    assert len(alice.came(Changed)) == 1
    connector.pass_time(1.2)
    assert len(alice.came(Changed)) == 2
    connector.pass_time(5.0)
    assert len(alice.came(Changed)) == 2


def test_a_new_device_of_the_user_is_written_to_presence() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.receive(e.AccountsRead([account(ALICE, devices=(A1, A2))]))
    assert connector.take_one(e.RenewBindings).renewals == (alice.renewal._replace(devices=(A1, A2)),)
    connector.receive(e.AccountsRead([account(ALICE, devices=(A1,))]))
    assert not connector.take(e.RenewBindings)


def test_an_account_read_before_the_registration_of_the_device_is_completed() -> None:
    connector = Connector()
    alice = connector.connect(A2)
    alice.accepted(devices=(A1,))
    assert connector.take_one(e.WriteBindings).renewals == ((alice.binding, (A1, A2), alice.token_hash),)


def test_a_device_is_recorded_as_seen_at_both_ends_and_every_hour() -> None:
    """A device that was connected for `device_idle_s` is not idle."""
    connector = Connector()
    alice = connector.online(A1)
    for _ in range(361):
        alice.ping()
        connector.pass_time(10)
        connector.checked()
    assert connector.take_one(e.RecordLastSeen).devices == (A1,)
    alice.send(Close(alice.link, 0))
    assert connector.take_one(e.RecordLastSeen).devices == (A1,)


def test_a_client_that_quits_ends_its_session_at_once_and_counts_as_no_error() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.send(Close(alice.link, Code.QUIT))
    assert connector.count.sessions == 0
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)
    assert (connector.count.cut, connector.count.malformed, connector.count.replaced) == (0, 0, 0)
    assert connector.closed_peers == [alice.peer]


# ---------------------------------------------------------------- links


def test_a_frame_of_an_unknown_link_is_answered_with_reset() -> None:
    """R13: queued for an earlier incarnation."""
    connector = Connector()
    alice = connector.connect(A1)
    connector.take(e.CheckGreet)
    connector.receive(e.ClientGone(alice.peer))
    alice.send(Data(1234, 1, 0, ()))
    alice.send(Ping(1235))
    alice.send(Close(1236, 0))
    assert alice.resets == [1234, 1235]
    assert connector.count.unknown_links == 2


@pytest.mark.parametrize("frame", [b"garbage", b"\xc1", b"", b"\x90"])
def test_garbage_ends_a_session_and_is_answered_without_one(frame: bytes) -> None:
    connector = Connector()
    alice, stranger = connector.online(A1), connector.connect(B1)
    connector.take(e.CheckGreet)
    connector.receive(e.ClientGone(stranger.peer))
    for client in (alice, stranger):
        client.send_bytes(frame)
        assert codes(client) == [Code.MALFORMED]
    assert [client.came(Close)[0].link for client in (alice, stranger)] == [alice.link, 0]
    assert (connector.count.malformed, connector.count.cut, connector.count.sessions) == (2, 1, 0)


def test_a_frame_over_the_limit_is_refused_with_numbers() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.send_bytes(bytes(8_001))
    assert alice.closed == [(Code.TOO_LARGE, "the frame has 8001 bytes, 8000 are allowed")]


def test_later_frames_of_a_batch_do_not_reach_a_session_that_was_cut() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.send_bytes(b"garbage", b"\x92\x05\xcd" + alice.link.to_bytes(2, "big"))
    assert codes(alice) == [Code.MALFORMED]
    assert alice.resets == [alice.link]


def test_frames_beyond_the_window_end_the_session() -> None:
    connector = Connector()
    alice = connector.online(A1)
    data = [encode(Data(alice.link, number, 0, ())) for number in range(1, 10)]
    alice.send_bytes(*data[:8])  # at once, before any acknowledgement
    assert not codes(alice)
    alice.number = 8
    alice.submit(envelope())
    assert not codes(alice), "what was received is acknowledged"
    connector = Connector()
    alice = connector.online(A1)
    data = [encode(Data(alice.link, number, 0, ())) for number in range(1, 10)]
    alice.send_bytes(*data)
    assert codes(alice) == [Code.WINDOW_EXCEEDED]


@pytest.mark.parametrize(
    ("asked_s", "granted_s"), [(0, 25), (10, 25), (25, 25), (90, 90), (150, 150), (2_000_000, 150)]
)
def test_a_client_is_granted_the_silence_that_it_asks_for_within_bounds(asked_s: int, granted_s: int) -> None:
    connector = Connector()
    alice = connector.connect(A1, silence_ms=1_000 * asked_s)
    alice.accepted()
    connector.receive(e.BindingsWritten([(alice.binding, None)]))
    (welcome,) = alice.came(Welcome)
    assert (welcome.silence_ms, welcome.heartbeat_ms, welcome.ack_ms) == (1_000 * granted_s, 10_000, 2_500)
    connector.checked()
    connector.pass_time(granted_s - 0.5)
    assert not alice.closed
    connector.pass_time(1.0)
    assert codes(alice) == [Code.UNRESPONSIVE]


def test_the_connector_pings_and_a_client_that_only_answers_stays_connected() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.frames.clear()
    for _ in range(10):
        connector.pass_time(10.1)
        assert alice.came(Ping)
        alice.frames.clear()
        alice.send(Pong(alice.link))
    assert not alice.closed


def test_acknowledging_what_was_never_sent_ends_the_session() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.acknowledge(3)
    assert codes(alice) == [Code.MALFORMED]


def test_a_ping_is_answered_and_silence_ends_the_session() -> None:
    connector = Connector()
    alice = connector.online(A1)
    connector.pass_time(20)
    connector.checked()
    alice.ping()
    assert alice.came(Pong)
    connector.pass_time(20)
    connector.checked()
    assert not alice.closed
    connector.pass_time(6)
    assert codes(alice) == [Code.UNRESPONSIVE]
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)


def test_queues_are_checked_in_a_sweep() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.ping()
    connector.pass_time(SWEEP_S * LONGEST / 2)
    alice.ping()
    connector.pass_time(SWEEP_S * LONGEST / 2)
    assert connector.take_one(e.CheckQueues).devices == ((ALICE, A1, alice.session),)


def test_a_connector_that_stops_sends_its_clients_to_others() -> None:
    connector = Connector()
    alice, bob = connector.online(A1), connector.connect(B1)
    connector.receive(e.StopRequested())
    assert codes(alice) == [Code.SHUTTING_DOWN]
    bob.accepted()
    assert codes(bob) == [Code.SHUTTING_DOWN]
    late = connector.connect(A2)
    assert codes(late) == [Code.SHUTTING_DOWN]
    assert connector.core.idle


# ---------------------------------------------------------------- closing connections


def test_the_connection_of_a_refused_greeting_is_closed() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    check = connector.take_one(e.CheckGreet)
    connector.receive(e.GreetRefused(check.peer, check.link, Code.BAD_TOKEN, "no"))
    assert connector.closed_peers == [alice.peer]


def test_the_connection_of_a_greeting_that_its_client_takes_back_is_closed() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.send(Close(alice.link, 0))
    assert connector.closed_peers == [alice.peer]


@pytest.mark.parametrize("end", ["close", "garbage", "silence", "replaced", "stop"])
def test_the_connection_of_a_session_that_ends_is_closed(end: str) -> None:
    connector = Connector()
    alice = connector.online(A1)
    if end == "close":
        alice.send(Close(alice.link, 0))
    elif end == "garbage":
        alice.send_bytes(b"garbage")
    elif end == "silence":
        connector.pass_time(30.0)
    elif end == "replaced":
        connector.connect(A1).accepted()
    else:
        connector.receive(e.StopRequested())
    assert connector.closed_peers == [alice.peer]


def test_the_connection_of_a_peer_that_speaks_before_it_greets_is_closed_for_garbage_alone() -> None:
    connector = Connector()
    connector.receive(e.ClientsSent([(b"one", encode(Ping(1))), (b"other", b"garbage")]))
    assert connector.closed_peers == [b"other"], "a frame of an unknown link is answered with Reset"
