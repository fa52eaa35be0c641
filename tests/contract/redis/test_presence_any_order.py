"""Presence against a dictionary: devices connect, move and leave, and every write may arrive late.

There are two models.  One is of the store: the exact result of each call.  The other is the truth, which no store
knows: where each device really is connected.  They may differ (R5: a late `online` or `offline`; R9: a wipe, old data),
but once every connector has written its sessions again, each device has the binding of its real connection.
"""

import asyncio
import copy
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from meshim.stores.memory.redis import MemoryPresence, MemoryRedis
from meshim.stores.ports import Binding, Presence
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from tests.contract.redis.backends import LOG

T = TypeVar("T")

CONNECTORS = (2**62 + 1, 2**62 + 2, 2**62 + 3)
"""Incarnations that would be equal as doubles."""
OWNERS = {11: 1, 12: 1, 21: 2, 22: 2}
"""The user of each device."""
USERS = (1, 2)
DEVICE = st.sampled_from(list(OWNERS))
LIST = st.sets(st.sampled_from([*OWNERS, 13, 23]), max_size=3)
"""The device list that a connector has cached: devices may be missing from it, or be deleted."""
WHICH = st.integers(0, 30)

_examples = itertools.count(1)


class Server(Protocol):
    """The server behind the port."""

    def presence(self) -> Presence: ...

    async def wipe(self) -> None:
        """Restart without data."""

    async def save(self) -> Any:
        """Return all data."""

    async def restore(self, saved: Any) -> None:
        """Restart with exactly this data."""


class MemoryServer:
    def __init__(self) -> None:
        self._now = 1_700_000_000.0
        self._redis = MemoryRedis(lambda: self._now)
        self._namespace = f"example{next(_examples)}"

    def presence(self) -> Presence:
        return MemoryPresence(self._redis, self._namespace)

    async def wipe(self) -> None:
        self._now += 0.001  # a restart takes longer than the numbers given out are ahead
        self._redis.start(wiped=True)

    async def save(self) -> Any:
        return copy.deepcopy(self._redis.presence), self._redis.last_session

    async def restore(self, saved: Any) -> None:
        await self.wipe()
        self._redis.presence, self._redis.last_session = copy.deepcopy(saved[0]), saved[1]


class RedisServer:
    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._namespace = f"example{next(_examples)}"

    def presence(self) -> Presence:
        return RedisPresence(self._client, self._namespace)

    async def _keys(self) -> list[bytes]:
        keys: list[bytes] = await self._client.execute("KEYS", f"{self._namespace}:*")
        return keys

    async def wipe(self) -> None:
        if keys := await self._keys():
            await self._client.execute("DEL", *keys)

    async def save(self) -> Any:
        return [(key, await self._client.execute("DUMP", key)) for key in await self._keys()]

    async def restore(self, saved: Any) -> None:
        await self.wipe()
        for key, value in saved:
            await self._client.execute("RESTORE", key, 0, value)


class PresenceMachine(RuleBasedStateMachine):
    def __init__(self, server: Server, runner: asyncio.Runner) -> None:
        super().__init__()
        self.server = server
        self.runner = runner
        self.presence = server.presence()
        self.here: dict[int, Binding] = {}
        """The real binding of each connected device."""
        self.bindings: dict[int, Binding] = {}
        """By device, as the store must have them."""
        self.devices: dict[int, set[int]] = {}
        """By user, for users with a binding."""
        self.were: list[Binding] = []
        """Every binding that was ever written."""
        self.late: list[Binding] = []
        """Bindings whose `offline` is still under way."""
        self.saved: tuple[Any, dict[int, Binding], dict[int, set[int]]] | None = None
        self.registered = True
        """Whether the store must have the real binding of every device."""
        self.ghosts = False
        """Whether old data may have restored a binding that no connector will erase."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    # ---- the model of the store

    def answer(self, binding: Binding, devices: set[int]) -> Binding | bool | None:
        held = self.bindings.get(binding.device)
        if held is not None and held.session > binding.session:
            return False
        self.bindings[binding.device] = binding
        self.devices.setdefault(binding.user, set()).update(devices)
        return held if held != binding else None

    def erase(self, binding: Binding) -> None:
        if self.bindings.get(binding.device) == binding:
            del self.bindings[binding.device]
            if not any(other.user == binding.user for other in self.bindings.values()):
                del self.devices[binding.user]

    def write(self, bindings: list[tuple[Binding, set[int]]]) -> None:
        expected = [self.answer(binding, devices) for binding, devices in bindings]
        assert self.run(self.presence.online([(binding, tuple(devices)) for binding, devices in bindings])) == expected

    # ---- devices connect and leave

    @rule(who=st.lists(st.tuples(DEVICE, st.sampled_from(CONNECTORS), LIST), min_size=1, max_size=3))
    def greet(self, who: list[tuple[int, int, set[int]]]) -> None:
        """Connect a batch of devices; the earlier connection of a device ends, and its `offline` comes later."""
        numbers = self.run(self.presence.session_numbers(len(who)))
        assert numbers == sorted(set(numbers))
        assert not self.were or numbers[0] > max(binding.session for binding in self.were), "a number of the past"
        bindings = []
        for (device, incarnation, known), number in zip(who, numbers, strict=True):
            binding = Binding(OWNERS[device], device, incarnation, number)
            if (before := self.here.get(device)) is not None:
                self.late.append(before)
            self.here[device] = binding
            self.were.append(binding)
            bindings.append((binding, known | {device}))
        self.write(bindings)

    @precondition(lambda self: self.here)
    @rule(which=WHICH, at_once=st.booleans())
    def leave(self, which: int, at_once: bool) -> None:
        """Disconnect a device; with `at_once` its `offline` comes now, otherwise later."""
        device, binding = list(self.here.items())[which % len(self.here)]
        del self.here[device]
        self.late.append(binding)
        if at_once:
            self.late_offline(len(self.late) - 1)

    @precondition(lambda self: self.late)
    @rule(which=WHICH)
    def late_offline(self, which: int) -> None:
        """R5."""
        binding = self.late.pop(which % len(self.late))
        self.run(self.presence.offline([binding]))
        self.erase(binding)

    @precondition(lambda self: self.were)
    @rule(which=WHICH, known=LIST)
    def late_online(self, which: int, known: set[int]) -> None:
        """R5: of a session that may be over; its connector erases the binding once it learns that."""
        binding = self.were[-1 - which % len(self.were)]
        self.write([(binding, known | {binding.device})])
        if self.here.get(binding.device) != binding and binding not in self.late:
            self.late.append(binding)

    @rule(user=st.sampled_from(USERS), devices=LIST, removed=LIST)
    def registry_changes(self, user: int, devices: set[int], removed: set[int]) -> None:
        self.run(self.presence.update_devices(user, tuple(devices), tuple(removed)))
        if user in self.devices:
            self.devices[user] = (self.devices[user] | devices) - removed

    # ---- the store restarts

    @rule()
    def wipe(self) -> None:
        """R9."""
        self.run(self.server.wipe())
        self.bindings.clear()
        self.devices.clear()
        self.registered = False

    @rule()
    def save(self) -> None:
        self.saved = (self.run(self.server.save()), dict(self.bindings), copy.deepcopy(self.devices))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def old_data(self) -> None:
        """R9."""
        assert self.saved is not None
        held, self.bindings, self.devices = self.saved[0], dict(self.saved[1]), copy.deepcopy(self.saved[2])
        self.run(self.server.restore(held))
        self.registered = False
        self.ghosts = True

    @rule()
    def all_register_again(self) -> None:
        """Write all bindings again, as connectors do after Redis may have lost them."""
        self.write([(binding, {binding.device}) for binding in self.here.values()])
        self.registered = True

    # ---- invariants

    @invariant()
    def presence_equals_the_model(self) -> None:
        found = self.run(self.presence.lookup([*USERS, 99]))
        assert {user: (each.devices, set(each.bindings)) for user, each in found.items()} == {
            user: (tuple(sorted(devices)), {binding for binding in self.bindings.values() if binding.user == user})
            for user, devices in self.devices.items()
        }

    @invariant()
    def connected_devices_have_their_binding(self) -> None:
        if self.registered:
            for device, binding in self.here.items():
                assert self.bindings[device] == binding

    def teardown(self) -> None:
        """After every late write has arrived and every binding was written again, the store has the truth alone."""
        while self.late:
            self.late_offline(0)
        self.all_register_again()
        self.presence_equals_the_model()
        self.connected_devices_have_their_binding()
        assert self.ghosts or self.bindings == self.here


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def check(server: Callable[[], Server], runner: asyncio.Runner, examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        lambda: PresenceMachine(server(), runner),  # type: ignore[arg-type]  # annotated as a class, documented as a factory
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, *phases),
        ),
    )


def test_presence_in_memory(runner: asyncio.Runner) -> None:
    check(MemoryServer, runner, 120, Phase.shrink)


def test_presence_on_redis(valkey_url: str, runner: asyncio.Runner) -> None:
    client = RedisClient(valkey_url, LOG)
    try:
        check(lambda: RedisServer(client), runner, 60)
    finally:
        runner.run(client.close())
