"""H4: a friend who stores without an end is told, and kept from it; other friends get through, and nothing is lost."""

import asyncio
from pathlib import Path

import msgspec

from meshim.client import Client, MessagesDelayed, OrderFlag
from meshim.client.options import DEFAULTS
from meshim.errors import Code
from meshim.topology import Limits
from scripts.harness.mesh import local_mesh
from tests.mesh.clients.test_talk import Meshim
from tests.mesh.harness.inspection import stored_rows
from tests.mesh.harness.library_client import client, next_event, receive, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, running, until

ROWS = 240
SHARE = ROWS // 4
IMPATIENT = msgspec.structs.replace(
    DEFAULTS, outbox=msgspec.structs.replace(DEFAULTS.outbox, resend_s=0.5, resend_max_s=1.0)
)


async def send_until_refused(sender: Client, peer: str) -> list[str]:
    """Send one message after the other until the mesh takes no more; return the texts, the refused one included."""
    delayed = asyncio.create_task(next_event(sender.events(), MessagesDelayed))
    await asyncio.sleep(0)  # the task reads events from here on
    texts: list[str] = []
    while not delayed.done():
        assert len(texts) < ROWS, "nobody stops it"
        texts.append(f"message {len(texts) + 1}")
        outgoing = await sender.send(peer, texts[-1])
        sent = asyncio.create_task(outgoing.wait_sent())
        await asyncio.wait((sent, delayed), return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
        sent.cancel()
    event = delayed.result()
    assert (event.peer, event.code) == (peer, Code.QUEUE_FULL)
    assert sender.delayed(outgoing) == event.sentence
    return texts


async def with_command(mesh: RealMesh, home: Path, name: str, peer: str, text: str) -> None:
    """`meshim send` on the state file of the greedy device says why it waits, and keeps the message."""
    state = str(mesh.folder / f"{name}-phone.db")
    command = ("send", name, peer, text, "--device", "phone", "--state", state, "--timeout", "5")
    code, output, errors = await Meshim(mesh.api, home).run(*command)
    assert (code, output) == (1, ""), errors
    assert "Too much waits for a device of the recipient" in errors
    assert "The message is kept" in errors


async def test_a_greedy_friend_is_told_others_get_through_and_everything_arrives_in_order(tmp_path: Path) -> None:
    topology = msgspec.structs.replace(local_mesh.topology(), limits=Limits(queue_rows=ROWS))
    with running(tmp_path, topology) as mesh:
        ann, ben, cat = await mesh.register_users("ann", "ben", "cat")
        async with client(mesh, ben) as bens:
            await asyncio.wait_for(bens.online(), DEADLINE_S)
            device = bens.device_id
        async with client(mesh, ann, options=IMPATIENT) as anns:
            texts = await send_until_refused(anns, ben)
            stored = len(texts) - 1
            assert SHARE <= stored < ROWS, "how far beyond its share depends on how soon the writer counts"
            await until(lambda: stored_rows(mesh, device)[0] == stored, "what was sent is stored")
            texts += [f"later {number}" for number in range(40)]
            for text in texts[-40:]:
                await anns.send(ben, text)
            async with client(mesh, cat) as cats:
                await send_and_wait(cats, ben, "from another friend")
            await until(lambda: mesh.counter_sum("queue_full") > 0, "no transfer counts what it refuses")
            assert anns._shell.core.unsettled > 40
        await with_command(mesh, tmp_path / "home", ann, ben, "by the command")
        texts.append("by the command")
        assert stored_rows(mesh, device)[0] == stored + 1, "one of cat, and nothing more of ann"
        async with client(mesh, ann, options=IMPATIENT) as anns, client(mesh, ben) as bens:
            received = await receive(bens, len(texts) + 1)
            assert [message.text for message in received if message.sender == ann] == texts
            assert [message.text for message in received if message.sender == cat] == ["from another friend"]
            assert {message.order for message in received} == {OrderFlag.IN_ORDER}
            await asyncio.wait_for(anns.settled(), DEADLINE_S)
