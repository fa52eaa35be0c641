"""The commands for messages: send, listen, chat.  Each connects as one device of its user, with its state file."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import rich_click as click

from meshim.cli.device import Device, device_options
from meshim.cli.relations import explain
from meshim.cli.terminal import printable
from meshim.errors import BackendUnavailable, MeshimError, Refused, UsageError

if TYPE_CHECKING:  # imports sockets and cryptography, which `--help` does not need
    from meshim.client import Client, Message, Outgoing

_SETTLE_TIMEOUT_S = 10.0
"""For unsettled messages at the end of a command; after it they stay in the state file."""
_POLL_S = 0.2
_NOTICE_AFTER_S = 1.0
"""A wait that takes longer is announced."""


# ---------------------------------------------------------------- send


@click.command()
@device_options
@click.argument("peer")
@click.argument("text")
@click.option(
    "--wait",
    type=click.Choice(("sent", "delivered", "read")),
    default="sent",
    show_default=True,
    help="Return when it is safe in the mesh, with PEER, or read.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Wait no longer than this; a message that is not sent by then is kept.  Without it there is no limit.",
)
def send(device: Device, peer: str, text: str, wait: str, timeout_s: float | None) -> None:
    """Send TEXT to PEER, as ME; - as TEXT reads it from standard input."""
    body = sys.stdin.read().rstrip("\n") if text == "-" else text
    if not body:
        raise UsageError("There is nothing to send: the text is empty.")

    async def work(client: "Client") -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await send_and_wait(client)
        except TimeoutError:
            raise BackendUnavailable(f"The message was not {wait} within {timeout_s:g} s.") from None

    async def send_and_wait(client: "Client") -> None:
        try:
            outgoing = await client.send(peer, body)
        except Refused as error:
            raise await explain(error, client, device.name, peer) from error
        reached = {"sent": outgoing.wait_sent, "delivered": outgoing.wait_delivered, "read": outgoing.wait_read}
        try:
            async with _print_delay(client, outgoing, "Waiting, which Ctrl-C ends: the message is kept.  "):
                await outgoing.wait_sent()
            with _print_after(
                _NOTICE_AFTER_S, f"It is safe in the mesh; waiting until it is {wait}, which Ctrl-C ends ..."
            ):
                await reached[wait]()
        except (MeshimError, asyncio.CancelledError) as error:
            if outgoing.state == "rejected" and isinstance(error, MeshimError):
                raise await explain(error, client, device.name, peer) from error
            if outgoing.state == "pending":
                print("The message is kept, and goes out when this device connects again.", file=sys.stderr)
            raise
        print(f"{outgoing.id} {outgoing.state}")

    device.run(work, kept="the message is kept")


# ---------------------------------------------------------------- listen


@click.command()
@device_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--no-read", is_flag=True, help="Do not tell senders that their messages were read.")
def listen(device: Device, as_json: bool, count: int | None, no_read: bool) -> None:
    """Print messages for ME as they come, stored ones first; Ctrl-C ends."""

    async def work(client: "Client") -> None:
        printed = 0
        async for message in client.messages():
            print(_json(message) if as_json else _line(message), flush=True)
            await (message.done() if no_read else message.mark_read())
            printed += 1
            if printed == count:
                await _wait_until_settled(client)
                return

    device.run(work, connected=f"Connected: messages for {device.name} are printed as they come.  Ctrl-C ends.")


def _json(message: "Message") -> str:
    return msgspec.json.encode(
        {
            "id": message.id,
            "sender": message.sender,
            "sender_device": message.sender_device,
            "recipient": message.recipient,
            "text": message.text,
            "sent_at": message.sent_at,
            "own": message.own,
            "stored": message.stored,
            "already_read": message.already_read,
            "place": message.order.name.lower(),
            "problem": message.problem,
        }
    ).decode()


def _line(message: "Message") -> str:
    users = f"{message.sender} to {message.recipient}" if message.own else message.sender
    text = f"[{message.problem}]" if message.problem else printable(message.text)
    return f"{_local(message.sent_at):%Y-%m-%d %H:%M:%S} {users}: {text}"


def _local(time: datetime) -> datetime:
    try:
        return time.astimezone()
    except (OverflowError, ValueError, OSError):  # it has no local form, as at the ends of the calendar
        return time


@contextmanager
def _print_after(after_s: float, sentence: str) -> Iterator[None]:
    """Print the sentence when the block takes longer than this."""
    timer = asyncio.get_running_loop().call_later(after_s, partial(print, sentence, file=sys.stderr))
    try:
        yield
    finally:
        timer.cancel()


@asynccontextmanager
async def _print_delay(client: "Client", outgoing: "Outgoing", prefix: str) -> AsyncIterator[None]:
    """Print once why the mesh does not take the message, if that is so during the block."""

    async def watch() -> None:
        while True:
            if reason := client.delayed(outgoing):
                print(f"{prefix}{reason}", file=sys.stderr)
                return
            await asyncio.sleep(_POLL_S)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


async def _wait_until_settled(client: "Client") -> None:
    """Wait until every message is settled, read receipts included, for at most 11 s."""
    for timeout_s, sentence in (
        (_NOTICE_AFTER_S, "Waiting until everything is safe in the mesh; Ctrl-C leaves it for the next time ..."),
        (_SETTLE_TIMEOUT_S, "Not everything is safe in the mesh yet: it is kept, and goes out when you come back."),
    ):
        try:
            async with asyncio.timeout(timeout_s):
                await client.settled()
                return
        except TimeoutError:
            print(sentence, file=sys.stderr)


# ---------------------------------------------------------------- chat


@click.command()
@device_options
@click.option("--to", "peer", required=True, metavar="PEER", help="Who gets what you type.")
def chat(device: Device, peer: str) -> None:
    """Talk with PEER, as ME: a line you type is a message; Ctrl-D ends.

    Your messages are numbered, and how far each has come is shown: `sent` when it is safe in the mesh,
    `delivered` when PEER has it, `read` when PEER has seen it.  Messages of others are shown too.
    """

    async def work(client: "Client") -> None:
        try:
            await client.check_friend(peer)
        except BackendUnavailable as error:
            print(error.sentence, file=sys.stderr)
        except Refused as error:
            raise await explain(error, client, device.name, peer) from error
        print(f"You are {device.name} and talk with {peer}.  Ctrl-D ends.", file=sys.stderr)
        printing = asyncio.create_task(_print_messages(client))
        sending = asyncio.create_task(_send_lines(client, device.name, peer))
        try:
            await asyncio.wait((printing, sending), return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, printing):
                if task.done():
                    task.result()
        finally:
            printing.cancel()
            sending.cancel()

    device.run(work, kept="what you type is kept")


async def _print_messages(client: "Client") -> None:
    """Print received messages, and mark each as read."""
    async for message in client.messages():
        if message.own:
            print(f"{message.sender} to {message.recipient}, elsewhere: {printable(message.text)}", flush=True)
        else:
            text = f"[{message.problem}]" if message.problem else printable(message.text)
            print(f"{message.sender}: {text}", flush=True)
        await message.mark_read()


async def _send_lines(client: "Client", me: str, peer: str) -> None:
    """Send each line of standard input; at its end wait until all messages are settled."""
    lines = _read_stdin()
    tasks: dict[asyncio.Task[None], Outgoing] = {}
    number = 0
    while (line := await lines.get()) is not None:
        if not line.strip():
            continue
        number += 1
        try:
            outgoing = await client.send(peer, line)
        except (Refused, UsageError, BackendUnavailable) as error:
            reason = await explain(error, client, me, peer)
            print(f"  #{number} not sent: {reason.sentence}", file=sys.stderr)
            continue
        task = asyncio.create_task(_print_states(number, outgoing, client, me, peer))
        tasks[task] = outgoing
        task.add_done_callback(tasks.pop)
    await _wait_until_settled(client)
    await asyncio.sleep(0)  # let the tasks print the last states
    if rejected := [task for task, outgoing in tasks.items() if outgoing.state == "rejected"]:
        await asyncio.wait(rejected)  # they ask the REST service why, which answers or times out


async def _print_states(number: int, outgoing: "Outgoing", client: "Client", me: str, peer: str) -> None:
    """Print each state that a message reaches."""
    try:
        for state, reached in (
            ("sent", outgoing.wait_sent),
            ("delivered", outgoing.wait_delivered),
            ("read", outgoing.wait_read),
        ):
            async with _print_delay(client, outgoing, f"  #{number} is kept: "):
                await reached()
            print(f"  #{number} {state}", flush=True)
    except MeshimError as error:
        if outgoing.state == "rejected":
            print(f"  #{number} not sent: {(await explain(error, client, me, peer)).sentence}", flush=True)
        elif outgoing.state == "pending":
            print(f"  #{number} is kept, and goes out when this device connects again.", file=sys.stderr)


def _read_stdin() -> "asyncio.Queue[str | None]":
    """Lines of standard input, then None.  A daemon thread reads them: the process can end while it waits for input."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\r\n"))
            loop.call_soon_threadsafe(lines.put_nowait, None)
        except RuntimeError:  # the event loop is closed: the command has ended
            return

    threading.Thread(target=read, daemon=True, name="stdin").start()
    return lines


commands: list[click.Command] = [send, listen, chat]
