"""Presence against a dictionary: devices come, move and leave, and everything they do may arrive late.

Two models at once.  One is the store's: exactly what each call has to answer.  The other is the truth, which no store
knows: where each device really is.  They may differ (R5: a late hello, a late goodbye; R9: a wipe, old data), but once
every connector has registered its sessions again, presence bindings each device where it really is.
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
from tests.contract.redis_sides import LOG

T = TypeVar("T")

CONNECTORS = (2**62 + 1, 2**62 + 2, 2**62 + 3)
"""Incarnations that are one number as doubles."""
OWNERS = {11: 1, 12: 1, 21: 2, 22: 2}
"""The user of each device."""
USERS = (1, 2)
DEVICE = st.sampled_from(list(OWNERS))
LIST = st.sets(st.sampled_from([*OWNERS, 13, 23]), max_size=3)
"""What a connector takes for the devices of a user: some may be missing, some may be gone."""
WHICH = st.integers(0, 30)

_examples = itertools.count(1)


class Server(Protocol):
    """What holds presence, apart from the port."""

    def presence(self) -> Presence: ...

    async def wipe(self) -> None:
        """It comes back with nothing."""

    async def save(self) -> Any:
        """Everything it holds."""

    async def restore(self, saved: Any) -> None:
        """It comes back with what it held then, and nothing else."""


class MemoryServer:
    def __init__(self) -> None:
        self._now = 1_700_000_000.0
        self._redis = MemoryRedis(lambda: self._now)
        self._namespace = f"example{next(_examples)}"

    def presence(self) -> Presence:
        return MemoryPresence(self._redis, self._namespace)

    async def wipe(self) -> None:
        self._now += 0.001  # a restart takes longer than any numbers it had given out
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


class WhoIsWhere(RuleBasedStateMachine):
    def __init__(self, server: Server, runner: asyncio.Runner) -> None:
        super().__init__()
        self.server = server
        self.runner = runner
        self.presence = server.presence()
        self.here: dict[int, Binding] = {}
        """Where each connected device really is."""
        self.bindings: dict[int, Binding] = {}
        """By device, as the store has to have them."""
        self.devices: dict[int, set[int]] = {}
        """By user, of those with a binding."""
        self.were: list[Binding] = []
        """Every binding that was ever given out."""
        self.late: list[Binding] = []
        """Goodbyes that are still under way."""
        self.saved: tuple[Any, dict[int, Binding], dict[int, set[int]]] | None = None
        self.registered = True
        """Whether presence has to binding everybody where she is."""
        self.ghosts = False
        """Whether old data may have brought somebody back to whom nobody says goodbye any more."""

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

    # ---- devices come and go

    @rule(who=st.lists(st.tuples(DEVICE, st.sampled_from(CONNECTORS), LIST), min_size=1, max_size=3))
    def greet(self, who: list[tuple[int, int, set[int]]]) -> None:
        """One batch of greetings; where a device was before, it is not any more, whoever knows that."""
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
    @rule(which=WHICH, told=st.booleans())
    def leave(self, which: int, told: bool) -> None:
        """With `told` presence hears of it at once, otherwise later."""
        device, binding = list(self.here.items())[which % len(self.here)]
        del self.here[device]
        self.late.append(binding)
        if told:
            self.late_goodbye(len(self.late) - 1)

    @precondition(lambda self: self.late)
    @rule(which=WHICH)
    def late_goodbye(self, which: int) -> None:
        """R5."""
        binding = self.late.pop(which % len(self.late))
        self.run(self.presence.offline([binding]))
        self.erase(binding)

    @precondition(lambda self: self.were)
    @rule(which=WHICH, known=LIST)
    def late_hello(self, which: int, known: set[int]) -> None:
        """R5: of a session that may be over; its connector says goodbye once it learns that."""
        binding = self.were[-1 - which % len(self.were)]
        self.write([(binding, known | {binding.device})])
        if self.here.get(binding.device) != binding and binding not in self.late:
            self.late.append(binding)

    @rule(user=st.sampled_from(USERS), devices=LIST)
    def registry_changes(self, user: int, devices: set[int]) -> None:
        self.run(self.presence.set_devices(user, tuple(devices)))
        if user in self.devices:
            self.devices[user] = set(devices)

    # ---- the store comes and goes

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
        """What connectors do when presence may have forgotten them."""
        self.write([(binding, {binding.device}) for binding in self.here.values()])
        self.registered = True

    # ---- what has to hold

    @invariant()
    def presence_is_what_the_dictionary_says(self) -> None:
        found = self.run(self.presence.lookup([*USERS, 99]))
        assert {user: (each.devices, set(each.bindings)) for user, each in found.items()} == {
            user: (tuple(sorted(devices)), {binding for binding in self.bindings.values() if binding.user == user})
            for user, devices in self.devices.items()
        }

    @invariant()
    def who_is_here_is_found_here(self) -> None:
        if self.registered:
            for device, binding in self.here.items():
                assert self.bindings[device] == binding

    def teardown(self) -> None:
        """When all that was late has arrived and all have registered, nothing but the truth is left."""
        while self.late:
            self.late_goodbye(0)
        self.all_register_again()
        self.presence_is_what_the_dictionary_says()
        self.who_is_here_is_found_here()
        assert self.ghosts or self.bindings == self.here


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def check(server: Callable[[], Server], runner: asyncio.Runner, examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        lambda: WhoIsWhere(server(), runner),  # type: ignore[arg-type]  # annotated as a class, documented as a factory
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            database=None,
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
