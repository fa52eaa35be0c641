"""The connection loop, in virtual time: which connector, how long the back-off, and when it gives up."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from meshim.client import connection as connection_module
from meshim.client import events as e
from meshim.client.connection import (
    BACKOFF_MAX_S,
    CONNECT_TIMEOUT_S,
    STABLE_S,
    TRIES_MAX,
    Connection,
    Transport,
)
from meshim.errors import ApiError, BackendUnavailable, Code, MeshimError, Refused
from meshim.wire.rest import Connector
from tests.virtual_time import run

C1, C2 = Connector("c1", "tcp://127.0.0.1:1", ""), Connector("c2", "tcp://127.0.0.1:2", "")


class Dealer:
    """A socket that the test controls."""

    def __init__(self, endpoint: str, on_connected: Callable[[], None], on_lost: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.connected = on_connected
        self.lost = on_lost
        self.at = asyncio.get_running_loop().time()
        self.closed = False
        self.is_full = False
        self.sent: list[bytes] = []

    def send(self, frame: bytes) -> bool:
        self.sent += [] if self.is_full else [frame]
        return not self.is_full

    def close(self, linger_ms: int = 0) -> None:
        self.closed = True


class Sockets:
    """In place of a Context."""

    def __init__(self) -> None:
        self.dealers: list[Dealer] = []
        self._made = asyncio.Event()

    def dealer(self, endpoint: str, **options: Any) -> Dealer:
        assert all(dealer.closed for dealer in self.dealers), "one connection at a time"
        assert options["heartbeat_s"] is None, "a heartbeat costs its connector as much as a message (adr/0027)"
        self.dealers.append(Dealer(endpoint, options["on_connected"], options["on_lost"]))
        self._made.set()
        return self.dealers[-1]

    async def next(self) -> Dealer:
        """The next attempt to connect."""
        self._made.clear()
        await self._made.wait()
        return self.dealers[-1]


class Driver:
    def __init__(self) -> None:
        self.events: list[e.Event] = []

    def receive(self, event: e.Event) -> None:
        self.events.append(event)


class World:
    """A connection with fake sockets, a fake driver and a fake session."""

    def __init__(self) -> None:
        self.sockets = Sockets()
        self.driver = Driver()
        self.known: Sequence[Connector] = (C1, C2)
        self.fetches: list[bool] = []
        self.tokens = [b"token 1", b"token 2", b"token 3"]
        self.refused: list[bytes] = []
        self.error: MeshimError | None = None
        self.connection = Connection(self.driver, self._connectors, self._token)
        self.task = asyncio.ensure_future(self.connection.run())

    async def _connectors(self, fresh: bool) -> Sequence[Connector]:
        self.fetches.append(fresh)
        if self.error is not None:
            raise self.error
        return self.known

    async def _token(self, refused: bytes | None) -> bytes:
        if refused == self.tokens[0]:
            self.refused.append(self.tokens.pop(0))
        return self.tokens[0]

    def failure(self) -> str | None:
        return self.connection.failure

    async def welcome(self) -> Dealer:
        """The next attempt succeeds."""
        dealer = await self.sockets.next()
        dealer.connected()
        self.connection.welcomed()
        return dealer

    async def refusal(self, code: Code | None) -> None:
        """The next attempt is refused with this code."""
        dealer = await self.sockets.next()
        dealer.connected()
        self.connection.ended(e.Disconnect(code, "no"))


@pytest.fixture
def in_world(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]:
    """Run a test in virtual time, without sockets and without jitter."""

    class NoJitter:
        def uniform(self, low: float, high: float) -> float:
            return (low + high) / 2

        def choice(self, connectors: Sequence[Connector]) -> Connector:
            return connectors[0]

    monkeypatch.setattr(connection_module, "_random", NoJitter())

    def run_test(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            sockets = Sockets()
            monkeypatch.setattr(connection_module, "borrow_context", lambda: sockets)
            world = World()
            world.sockets = sockets
            await test(world)
            world.task.cancel()
            await asyncio.wait([world.task])
            assert all(dealer.closed for dealer in sockets.dealers)

        run(main)

    return run_test


InWorld = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]


def test_a_lost_connection_is_followed_by_one_to_another_connector(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        first = await world.welcome()
        assert world.connection.online.is_set()
        first.lost()
        assert not world.connection.online.is_set()
        second = await world.welcome()
        assert (first.endpoint, second.endpoint) == (C1.endpoint, C2.endpoint)
        assert second.at - first.at < 0.1
        second.lost()
        assert (await world.sockets.next()).endpoint == C1.endpoint
        assert [type(event) for event in world.driver.events] == [e.Connected, e.ConnectionLost] * 2

    in_world(test)


def test_the_endpoint_is_set_only_while_welcomed(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        endpoints = [world.connection.endpoint]
        dealer = await world.sockets.next()
        for happens in (dealer.connected, world.connection.welcomed, dealer.lost):
            happens()
            endpoints.append(world.connection.endpoint)
        assert endpoints == [None, None, dealer.endpoint, None]

    in_world(test)


def test_the_only_connector_is_tried_again(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        world.known = (C1,)
        for _ in range(3):
            assert (await world.sockets.next()).endpoint == C1.endpoint
            world.sockets.dealers[-1].lost()

    in_world(test)


def test_behind_one_address_a_connector_that_is_shutting_down_costs_no_more_than_a_failed_attempt(
    in_world: InWorld,
) -> None:
    """A load balancer may lead to it again: it refuses the greeting, and the waits grow although they began anew."""

    async def test(world: World) -> None:
        world.known = (Connector("c1,c2", "tcp://chat.example:5000", ""),)
        times = []
        await world.welcome()
        for _ in range(6):
            times.append(asyncio.get_running_loop().time())
            world.connection.ended(e.Disconnect(Code.SHUTTING_DOWN, "leaving"))
            dealer = await world.sockets.next()
            assert dealer.endpoint == "tcp://chat.example:5000"
            dealer.connected()
        waits = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
        assert world.fetches == [False, False] + [True] * 5

    in_world(test)


def test_failed_attempts_back_off_and_fetch_the_list(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        times = []
        for _ in range(12):
            dealer = await world.sockets.next()
            times.append(dealer.at)
            dealer.lost()
        waits = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert waits[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
        assert waits[-3:] == pytest.approx([BACKOFF_MAX_S] * 3)
        assert world.fetches == [False, False] + [True, False] * 5

    in_world(test)


@pytest.mark.parametrize("count", [1, 3, TRIES_MAX + 3])
def test_those_that_are_known_are_tried_before_the_service_is_asked(in_world: InWorld, count: int) -> None:
    async def test(world: World) -> None:
        world.known = tuple(Connector(f"c{n}", f"tcp://127.0.0.1:{n}", "") for n in range(count))
        tried = min(count, TRIES_MAX)
        for asked in range(3):
            endpoints = set()
            for _ in range(tried):
                dealer = await world.sockets.next()
                endpoints.add(dealer.endpoint)
                dealer.lost()
            assert len(endpoints) == tried
            assert world.fetches.count(True) == asked

    in_world(test)


def test_a_new_list_is_tried_in_full_before_the_next_question(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        for _ in range(2):
            (await world.sockets.next()).lost()
        world.known = tuple(Connector(name, f"tcp://10.0.0.1:{name}", "") for name in "345")
        endpoints = set()
        for _ in range(3):
            dealer = await world.sockets.next()
            endpoints.add(dealer.endpoint)
            dealer.lost()
        assert endpoints == {each.endpoint for each in world.known}
        assert world.fetches.count(True) == 1

    in_world(test)


def test_no_connector_is_known_so_the_service_is_asked_again(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        world.known = ()
        await asyncio.sleep(10.0)
        assert world.fetches[:4] == [False, True, True, True]
        world.known = (C1,)
        await world.welcome()

    in_world(test)


def test_while_the_service_takes_long_the_known_ones_are_tried_and_its_answer_ends_the_pause(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        answered = asyncio.Event()
        asked = 0

        async def connectors(fresh: bool) -> Sequence[Connector]:
            nonlocal asked
            if fresh:
                asked += 1
                await answered.wait()
                return (Connector("c3", "tcp://127.0.0.1:3", ""),)
            return C1, C2

        world.connection._connectors = connectors
        for _ in range(12):
            dealer = await world.sockets.next()
            assert dealer.endpoint in (C1.endpoint, C2.endpoint)
            dealer.lost()
        assert asked == 1, "one question at a time"
        at = asyncio.get_running_loop().time()
        answered.set()
        dealer = await world.sockets.next()
        assert (dealer.endpoint, dealer.at) == ("tcp://127.0.0.1:3", at)
        dealer.lost()

    in_world(test)


def test_a_question_under_way_ends_with_the_connection(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        ended = asyncio.Event()

        async def connectors(fresh: bool) -> Sequence[Connector]:
            if fresh:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
            return (C1,)

        world.connection._connectors = connectors
        (await world.sockets.next()).lost()
        (await world.sockets.next()).lost()
        world.task.cancel()
        await asyncio.wait([world.task])
        assert ended.is_set()

    in_world(test)


def test_a_connector_that_says_how_long_to_wait_is_believed(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        dealer = await world.sockets.next()
        dealer.connected()
        world.connection.ended(e.Disconnect(Code.BUSY, "too many devices connect at once", 3.0))
        assert (await world.sockets.next()).at - dealer.at == pytest.approx(3.75)

    in_world(test)


def test_a_stable_connection_resets_the_back_off_and_keeps_the_list(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        for _ in range(5):
            (await world.sockets.next()).lost()
        good = await world.welcome()
        await asyncio.sleep(STABLE_S)
        at = asyncio.get_running_loop().time()
        good.lost()
        assert (await world.sockets.next()).at - at == pytest.approx(0.05)
        assert world.fetches[-1] is False

    in_world(test)


def test_shutting_down_resets_the_back_off_after_any_time(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        for _ in range(5):
            (await world.sockets.next()).lost()
        await world.welcome()
        at = asyncio.get_running_loop().time()
        world.connection.ended(e.Disconnect(Code.SHUTTING_DOWN, "this connector is leaving: connect to another"))
        assert (await world.sockets.next()).at - at == pytest.approx(0.05)
        assert world.fetches[-1] is False

    in_world(test)


def test_a_mesh_that_shuts_down_makes_attempts_back_off(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        for _ in range(20):
            await world.refusal(Code.SHUTTING_DOWN)
        assert asyncio.get_running_loop().time() > 10 * BACKOFF_MAX_S

    in_world(test)


def test_two_clients_that_replace_each_other_back_off(in_world: InWorld) -> None:
    """As two machines with copies of one state file: both have a valid token."""

    async def test(world: World) -> None:
        for _ in range(50):
            await world.welcome()
            world.connection.ended(e.Disconnect(Code.REPLACED, "another connection of this device took over"))
        assert asyncio.get_running_loop().time() > 40 * BACKOFF_MAX_S

    in_world(test)


def test_a_handshake_that_does_not_complete_times_out(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        stopped = await world.sockets.next()
        other = await world.sockets.next()
        assert other.endpoint != stopped.endpoint
        assert CONNECT_TIMEOUT_S <= other.at - stopped.at < CONNECT_TIMEOUT_S + 0.1
        other.connected()
        world.connection.welcomed()
        await asyncio.sleep(10 * CONNECT_TIMEOUT_S)
        assert not other.closed

    in_world(test)


def test_a_handshake_that_ends_in_the_moment_in_which_it_is_given_up_counts_for_nothing(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        loop, failures = asyncio.get_running_loop(), list[Any]()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        dealer = await world.sockets.next()
        loop.call_at(dealer.at + CONNECT_TIMEOUT_S, dealer.connected)
        assert (await world.sockets.next()).endpoint != dealer.endpoint
        assert world.driver.events == failures == []

    in_world(test)


def test_the_next_handshake_may_take_longer_until_one_succeeds(in_world: InWorld) -> None:
    """Where thousands connect at once, those that give up make work for nothing."""

    async def test(world: World) -> None:
        async def took_s() -> float:
            dealer = await world.sockets.next()
            while not dealer.closed:
                await asyncio.sleep(0.1)
            return asyncio.get_running_loop().time() - dealer.at

        assert [await took_s() for _ in range(4)] == pytest.approx([3.0, 6.0, 10.0, 10.0], abs=0.11)
        (await world.welcome()).lost()
        assert await took_s() == pytest.approx(3.0, abs=0.11)

    in_world(test)


def test_a_refused_token_is_replaced_by_a_login(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.refusal(Code.BAD_TOKEN)
        await world.refusal(Code.BAD_TOKEN)
        await world.welcome()
        assert world.refused == [b"token 1", b"token 2"]
        greeted = [event.token for event in world.driver.events if isinstance(event, e.Connected)]
        assert greeted == [b"token 1", b"token 2", b"token 3"]

    in_world(test)


def test_a_failed_login_is_tried_again_until_it_succeeds(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        logins = 0

        async def token(refused: bytes | None) -> bytes:
            nonlocal logins
            if refused is None:
                return b"old"
            logins += 1
            if logins < 4:
                raise BackendUnavailable("away") if logins % 2 else ApiError(503, "busy", "later")
            return b"new"

        world.connection._token = token
        await world.refusal(Code.BAD_TOKEN)
        await world.welcome()
        assert logins == 4
        assert len(world.sockets.dealers) == 2  # no attempt with the refused token

    in_world(test)


def test_replaced_and_then_bad_token_is_a_takeover(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.refusal(Code.REPLACED)
        await world.refusal(Code.BAD_TOKEN)
        await asyncio.wait([world.task])
        error = world.task.exception()
        assert isinstance(error, Refused)
        assert (error.code, error.sentence) == (Code.REPLACED, "This device was taken over with another state file.")

    in_world(test)


def test_replaced_and_then_welcomed_is_no_takeover(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        await world.refusal(Code.REPLACED)
        await world.welcome()
        world.connection.ended(e.Disconnect(Code.BAD_TOKEN, "expired"))
        await world.welcome()
        assert world.refused == [b"token 1"]

    in_world(test)


@pytest.mark.parametrize("code", [Code.VERSION, Code.LOGGED_OUT, Code.IMPERSONATION])
def test_final_codes_end_the_client(in_world: InWorld, code: Code) -> None:
    async def test(world: World) -> None:
        await world.refusal(code)
        await asyncio.wait([world.task])
        error = world.task.exception()
        assert isinstance(error, Refused)
        assert error.code is code

    in_world(test)


@pytest.mark.parametrize("code", [Code.BUSY, Code.SHUTTING_DOWN, Code.UNRESPONSIVE, Code.UNKNOWN_EPOCH, None])
def test_other_codes_are_followed_by_another_attempt(in_world: InWorld, code: Code | None) -> None:
    async def test(world: World) -> None:
        await world.refusal(code)
        await world.welcome()

    in_world(test)


@pytest.mark.parametrize(
    "error", [BackendUnavailable("away"), ApiError(503, "busy", "later"), ApiError(429, "slow_down", "later")]
)
def test_a_temporary_failure_of_the_service_is_tried_again(in_world: InWorld, error: MeshimError) -> None:
    async def test(world: World) -> None:
        world.error = error
        await asyncio.sleep(60.0)
        assert 10 < len(world.fetches) < 30
        world.error, world.known = None, ()
        await asyncio.sleep(60.0)
        assert world.sockets.dealers == []
        world.known = (C2,)
        await world.welcome()

    in_world(test)


def test_the_next_attempt_waits_as_long_as_rest_says(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        world.error = ApiError(503, "busy", "Later.", 30.0)
        await asyncio.sleep(100.0)
        assert len(world.fetches) == 3, "at 0, 37.5 and 75 s"

    in_world(test)


def test_the_reason_of_a_failed_attempt_is_kept_until_the_welcome(in_world: InWorld) -> None:
    """M1: an application could not say why there is no connection."""

    async def test(world: World) -> None:
        assert world.failure() is None
        world.error = BackendUnavailable("Cannot reach meshim at http://x: is it running?")
        await asyncio.sleep(1.0)
        assert world.failure() == "Cannot reach meshim at http://x: is it running?"
        world.error, world.known = None, ()
        await asyncio.sleep(5.0)
        assert world.failure() == "No connector is running."
        world.known = (C1,)
        await world.sockets.next()
        await asyncio.sleep(CONNECT_TIMEOUT_S + 0.01)
        assert world.failure() == f"The connector does not answer ({C1.endpoint})."
        (await world.sockets.next()).lost()
        await asyncio.sleep(0)
        assert world.failure() == f"The connector cannot be reached ({C1.endpoint})."
        await world.refusal(Code.BUSY)
        await asyncio.sleep(0)
        assert world.failure() == f"No ({C1.endpoint})."
        dealer = await world.welcome()
        assert world.failure() is None
        dealer.lost()
        await asyncio.sleep(0)
        assert world.failure() is None, "an attempt has not failed yet: that is a lost connection"

    in_world(test)


def test_a_login_that_is_refused_ends_the_client(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        world.error = ApiError(401, "bad_credentials", "The password is wrong.")
        await asyncio.wait([world.task])
        error = world.task.exception()
        assert isinstance(error, Refused)
        assert error.sentence == "The password is wrong."

    in_world(test)


async def test_clients_of_one_loop_share_a_context_that_the_last_one_closes() -> None:
    one, other = connection_module.borrow_context(), connection_module.borrow_context()
    assert one is other
    connection_module.return_context()
    assert connection_module.borrow_context() is one
    connection_module.return_context()
    connection_module.return_context()
    assert connection_module._contexts == {}


# ---------------------------------------------------------------- transports


ZMQ, PLAIN, TLS = "tcp://127.0.0.1:1", "ws://127.0.0.1:2", "wss://chat.example/c1"
ELSEWHERE = "ws://chat.example/c1"


@pytest.mark.parametrize(
    ("transport", "insecure", "connector", "expected"),
    [
        ("auto", False, Connector("c", ZMQ, "", PLAIN), ZMQ),
        ("auto", False, Connector("c", "", "", TLS), TLS),
        ("zeromq", False, Connector("c", ZMQ, "", PLAIN), ZMQ),
        ("zeromq", False, Connector("c", "", "", PLAIN), None),
        ("websocket", False, Connector("c", ZMQ, "", PLAIN), PLAIN),
        ("websocket", False, Connector("c", ZMQ, "", TLS), TLS),
        ("websocket", False, Connector("c", ZMQ, "", ""), None),
        ("websocket", False, Connector("c", ZMQ, "", ELSEWHERE), None),
        ("websocket", True, Connector("c", ZMQ, "", ELSEWHERE), ELSEWHERE),
    ],
)
def test_each_transport_takes_the_connectors_that_have_it(
    monkeypatch: pytest.MonkeyPatch, transport: Transport, insecure: bool, connector: Connector, expected: str | None
) -> None:
    async def main() -> None:
        sockets, urls = Sockets(), []

        class WebSocket:
            def __init__(self, url: str, **options: Any) -> None:
                urls.append(url)

            def close(self, linger_ms: int) -> None:
                pass

        monkeypatch.setattr(connection_module, "borrow_context", lambda: sockets)
        monkeypatch.setattr(connection_module, "WebSocketClient", WebSocket)
        nobody: Any = None
        driver: Any = Driver()
        connection = Connection(driver, nobody, nobody, transport, insecure=insecure)
        if expected is None:
            with pytest.raises(BackendUnavailable, match=f"with transport {transport}"):
                await connection._connect_once(b"token", (connector,))
        else:
            end = await connection._connect_once(b"token", (connector,))
            assert end.sentence == "the connector does not answer"
        assert urls + [dealer.endpoint for dealer in sockets.dealers] == ([expected] if expected else [])

    run(main)


def test_a_frame_that_finds_no_room_ends_the_connection_and_nothing_follows_it(in_world: Any) -> None:
    async def main(world: World) -> None:
        dealer = await world.welcome()
        world.connection.send(b"1")
        dealer.is_full = True
        world.connection.send(b"2")
        assert dealer.closed
        assert world.driver.events[-1] == e.ConnectionLost()
        again = await world.sockets.next()
        assert again is not dealer
        assert dealer.sent == [b"1"]

    in_world(main)


def test_no_connection_is_made_while_it_is_paused(in_world: InWorld) -> None:
    async def test(world: World) -> None:
        connection = world.connection
        await world.welcome()
        connection.ended(e.Disconnect(None, "The application has to read."))
        connection.pause("The application has to read.")
        await asyncio.sleep(100.0)
        assert (len(world.sockets.dealers), world.failure()) == (1, "The application has to read.")
        assert connection.paused
        connection.resume()
        await world.welcome()
        assert (connection.paused, world.failure()) == (False, None)

    in_world(test)
