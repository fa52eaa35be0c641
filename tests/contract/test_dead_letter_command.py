"""`meshim deadletter` beside a writer: bad records block no others, are listed, and can be retried or dropped."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.protocol.routing import partition_of
from meshim.stores.ports import Device, User
from meshim.topology import Durability
from meshim.wire.envelope import WIRE_VERSION, Kind, decode_envelope, encode_envelope
from meshim.wire.offline_log import Record, encode_record
from tests.contract.sql.backends import entry
from tests.contract.writer.process import PARTITIONS, Mesh, topology_of, until
from tests.threads import wait_idle

Person = tuple[User, Device]

GARBAGE = b"\xc1 not a record"
HINT = "see `meshim deadletter list`"


@pytest.fixture
async def mesh(valkey_url: str, nats_url: str, sqlite_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield await Mesh(topology_of(valkey_url, nats_url, sqlite_url, namespace), tmp_path, stack).open()


def of_the_future(recipient: Person, seq: int) -> bytes:
    user, device = recipient
    return msgspec.msgpack.encode(Record(WIRE_VERSION + 1, (entry(user, seq, (device,)),)))


def of_a_kind_that_is_never_stored(recipient: Person, seq: int) -> bytes:
    user, device = recipient
    whole = entry(user, seq, (device,))
    typing = msgspec.structs.replace(decode_envelope(whole.envelope), kind=Kind.TYPING)
    return encode_record((msgspec.structs.replace(whole, envelope=encode_envelope(typing)),))


async def shown(mesh: Mesh) -> list[dict[str, Any]]:
    code, said = await mesh.deadletter("list", "--json")
    assert code == 0, said
    letters: list[dict[str, Any]] = json.loads(said)["letters"]
    return letters


async def test_poisoned_records_block_no_others_and_are_listed_with_reasons(mesh: Mesh) -> None:
    [bob] = await mesh.people(1)
    user, device = bob
    await mesh.start()
    for poison in (GARBAGE, of_the_future(bob, 90), of_a_kind_that_is_never_stored(bob, 91)):
        await mesh.publish_raw(user, poison)
    await mesh.publish(bob)
    await until(lambda: mesh.all_stored([bob]))
    await until(mesh.log_is_empty)
    garbage, future, typing = await shown(mesh)
    partition = partition_of(user.user_id, PARTITIONS)
    assert [(each["number"], each["partition"], each["position"]) for each in (garbage, future, typing)] == [
        (1, partition, 1),
        (2, partition, 2),
        (3, partition, 3),
    ]
    assert garbage["reason"].startswith("The record does not decode: ")
    assert (garbage["bytes"], garbage["entries"], garbage["unreadable_entries"]) == (len(GARBAGE), [], None)
    assert future["reason"] == f"The record has version {WIRE_VERSION + 1}, this writer reads {WIRE_VERSION}."
    assert "kind 128 is never stored" in typing["reason"]
    sender = decode_envelope(entry(user, 1).envelope)
    assert typing["entries"] == [
        {
            "sender": sender.user, "sender_device": sender.device, "recipient": user.user_id, "seq": 91,
            "for_user": user.user_id, "for_devices": [device.device_id],
        }
    ]  # fmt: skip
    _, table = await mesh.deadletter("list")
    assert "The record does not decode" in table
    assert f"message 91, for user {user.user_id}, devices {device.device_id}" in table


async def test_after_a_fix_a_retry_delivers_and_a_second_retry_changes_nothing(mesh: Mesh) -> None:
    """As after an upgrade: a record that an old writer dead-lettered for its version is written by the new one."""
    [bob] = await mesh.people(1)
    user, device = bob
    partition = partition_of(user.user_id, PARTITIONS)
    await mesh.start()
    good = encode_record((entry(user, 1, (device,)),))
    for _ in range(2):  # twice, as after a retry that was killed before it removed the letter
        await mesh.log.dead_letter(partition, 5, "The record has version 1, this writer reads 0.", good)
    code, said = await mesh.deadletter("retry", "1")
    assert (code, said.splitlines()[0]) == (0, f"Letter 1 is in partition {partition} again, at position 1.")
    code, said = await mesh.deadletter("retry", "--all")
    assert (code, said.splitlines()[0]) == (0, f"Letter 2 is in partition {partition} again, at position 2.")
    await until(mesh.log_is_empty)
    assert await mesh.stored(bob) == [1]
    assert await shown(mesh) == []


async def test_a_record_that_is_still_bad_gets_a_new_number(mesh: Mesh) -> None:
    [bob] = await mesh.people(1)
    await mesh.start()
    await mesh.publish_raw(bob[0], GARBAGE)
    await until(mesh.log_is_empty)
    code, said = await mesh.deadletter("retry", "--all")
    assert code == 0
    assert HINT in said
    await until(mesh.log_is_empty)
    [letter] = await shown(mesh)
    assert (letter["number"], letter["position"]) == (2, 2)


async def test_dropping_asks_first(mesh: Mesh) -> None:
    await mesh.start()
    for _ in range(3):
        await mesh.log.dead_letter(0, 1, "why", GARBAGE)
    code, said = await mesh.deadletter("drop", "2", answer="n\n")
    assert (code, said) == (0, "Drop dead letter 2 for good? [y/N]: Nothing is dropped.\n")
    assert len(await shown(mesh)) == 3
    code, said = await mesh.deadletter("drop", "2", answer="y\n")
    assert (code, said) == (0, "Drop dead letter 2 for good? [y/N]: Letter 2 is dropped.\n")
    assert [letter["number"] for letter in await shown(mesh)] == [1, 3]
    code, said = await mesh.deadletter("drop", "--all", "--yes")
    assert (code, said) == (0, "Letter 1 is dropped.\nLetter 3 is dropped.\n")
    assert await shown(mesh) == []


async def test_ctrl_c_at_the_question_drops_nothing(mesh: Mesh) -> None:
    await mesh.start()
    await mesh.log.dead_letter(0, 1, "why", GARBAGE)
    process = await mesh.deadletter_process("drop", "1")
    try:
        async with asyncio.timeout(20.0):
            assert process.stdout is not None
            await process.stdout.readuntil(b"[y/N]: ")
            await asyncio.to_thread(
                wait_idle, process.pid
            )  # Python looks for signals before it reads, and then no more
            process.send_signal(signal.SIGINT)
            assert (await process.stdout.read(), await process.wait()) == (b"", 130)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert len(await shown(mesh)) == 1


async def test_errors_are_one_sentence(mesh: Mesh) -> None:
    for what in (("list",), ("retry", "--all"), ("drop", "--all")):
        assert await mesh.deadletter(*what) == (0, "There are no dead letters.\n"), "nor a stream, nor a writer yet"
    await mesh.start()
    await mesh.log.dead_letter(0, 1, "why", GARBAGE)
    await mesh.log.dead_letter(PARTITIONS, 1, "why", GARBAGE)
    unknown = (2, f"meshim: There is no dead letter 7: {HINT}.\n")
    assert await mesh.deadletter("retry", "1", "7") == unknown
    assert await mesh.deadletter("drop", "1", "7", "--yes") == unknown
    assert len(await shown(mesh)) == 2, "nothing was done to the other"
    code, said = await mesh.deadletter("retry", "2")
    assert (code, said.count("\n")) == (2, 1)
    assert f"the topology has only {PARTITIONS}" in said
    for nothing in (("retry",), ("drop", "--yes"), ("retry", "1", "--all")):
        code, said = await mesh.deadletter(*nothing)
        assert (code, said) == (
            2,
            "meshim: Say which letters: either their numbers in `meshim deadletter list`, or --all.\n",
        )


async def test_a_letter_stays_when_the_durability_gate_refuses(mesh: Mesh) -> None:
    for partition in range(PARTITIONS):
        await mesh.log.ensure(partition, 1)
    await mesh.log.dead_letter(0, 1, "why", GARBAGE)
    mesh.topology = msgspec.structs.replace(mesh.topology, durability=Durability(unknown="refuse"))
    mesh.write_topology()
    code, said = await mesh.deadletter("retry", "--all")
    assert (code, said.count("\n")) == (1, 1)
    assert "`durability.nats_monitor`" in said
    assert [letter["number"] for letter in await shown(mesh)] == [1]
    assert await mesh.log_is_empty()


async def test_nats_away_is_one_sentence(sqlite_url: str, namespace: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        nowhere = topology_of("redis://127.0.0.1:1", "nats://127.0.0.1:1", sqlite_url, namespace)
        mesh = Mesh(nowhere, tmp_path, stack)
        mesh.write_topology()
        code, said = await mesh.deadletter("list")
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith("meshim: NATS at 127.0.0.1:1 does not answer: ")
