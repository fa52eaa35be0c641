"""The port `Accounts`: invites, in memory, on SQLite and on MariaDB."""

import asyncio

import pytest

from meshim.errors import NoSuchInvite, StoreConflict
from meshim.stores.ports import User
from tests.contract.sql.backends import NOW, Backend, Ports, processes

ONE, OTHER = bytes(32), bytes([255]) * 32


async def test_an_invite_registers_one_user(ports: Ports) -> None:
    await ports.accounts.add_invites([ONE], NOW + 60, NOW)
    assert [await ports.accounts.invited(each, NOW) for each in (ONE, OTHER)] == [True, False]
    with pytest.raises(NoSuchInvite):
        await ports.accounts.register_invited("alice", "hash", OTHER, NOW)
    alice = await ports.accounts.register_invited("alice", "hash", ONE, NOW)
    assert await ports.accounts.user("alice") == (alice, "hash")
    assert not await ports.accounts.invited(ONE, NOW)
    with pytest.raises(NoSuchInvite):
        await ports.accounts.register_invited("bob", "hash", ONE, NOW)
    assert await ports.accounts.user("bob") is None


async def test_a_taken_name_does_not_use_an_invite_up(ports: Ports) -> None:
    await ports.accounts.register("alice", "hash")
    await ports.accounts.add_invites([ONE], NOW + 60, NOW)
    with pytest.raises(StoreConflict, match="alice is taken"):
        await ports.accounts.register_invited("alice", "hash", ONE, NOW)
    assert (await ports.accounts.register_invited("bob", "hash", ONE, NOW)).name == "bob"


async def test_an_invite_is_over_after_its_time(ports: Ports) -> None:
    await ports.accounts.add_invites([ONE], NOW + 60, NOW)
    assert not await ports.accounts.invited(ONE, NOW + 60)
    with pytest.raises(NoSuchInvite):
        await ports.accounts.register_invited("alice", "hash", ONE, NOW + 60)
    await ports.accounts.add_invites([OTHER], NOW + 120, NOW + 60)
    assert [await ports.accounts.invited(each, NOW) for each in (ONE, OTHER)] == [False, True], "the first is deleted"


async def test_of_two_users_at_once_one_gets_the_invite(backend: Backend) -> None:
    ports = backend.process()
    await ports.accounts.add_invites([ONE], NOW + 60, NOW)
    registered = await asyncio.gather(
        *(
            process.accounts.register_invited(f"user{number}", "hash", ONE, NOW)
            for number, process in enumerate(await processes(backend, 4))
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(each, User) for each in registered) == 1
    assert sum(isinstance(each, NoSuchInvite) for each in registered) == 3
