"""What modified clients do with a session: floods, forgeries, takeovers, names of other people, and never reading.

Each client attacks until it is cut, and comes back `PAUSE_S` later, for ever.  Frames are counted when the socket has
taken them.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from meshim.client.rest import Api
from meshim.errors import ApiError, BackendUnavailable
from meshim.runtime.crypto import parse_token
from meshim.wire.bounds import SEQ_MAX
from meshim.wire.client import Submit
from meshim.wire.codec import encode
from meshim.wire.envelope import Kind, decode_envelope, encode_envelope
from meshim.wire.link import Ack, Data, Ping, Pong
from scripts.harness.chaos.hostile.world import NO_ANSWER, HostileClient, World
from scripts.harness.clients.misbehaving import WINDOW, MisbehavingClient
from scripts.harness.mesh.users import MeshUser, text_envelope

PAUSE_S = 0.25
NOT_WELCOMED = (TimeoutError, ConnectionRefusedError)
WELCOME_S = 3.0
SESSION_S = 10.0
"""A session that nothing ends is ended by its client."""
STUCK_S = 2.0
"""So long a client waits for room in its socket, or in its window."""
SLOW_S = 0.05
"""Between frames to a victim, who has to read what comes of them."""
DEAF_MAX = 8
"""Connections that one client holds and does not read."""

Step = Callable[[HostileClient, MisbehavingClient, int], bool]
"""Sends frame `number` (from 1) of a session; returns False when there is no room now."""


# ---------------------------------------------------------------- within one session


def _pings(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    return link.send((Ping if number % 2 else Pong)(link.link))


def _acks(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    return link.send(Ack(link.link, 0))


def _duplicates(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    return link.submit([_envelope(client, client.accomplice, 1)], 1)


def _early_frames(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    return link.submit([_envelope(client, client.accomplice, number)], number + WINDOW)


def _base_updates(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    updates = [_envelope(client, client.accomplice, 32 * number + at, kind=Kind.BASE, body=b"") for at in range(32)]
    return _has_room(link) and link.submit(updates)


def _forged_envelopes(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    forged: list[dict[str, Any]] = [
        {"user": client.stranger}, {"user": client.victim}, {"device": client.laptop.device}, {"epoch": 1},
        {"version": 2}, {"id": b"short"}, {"seq": 0}, {"seq": SEQ_MAX + 1}, {"base": 2}, {"kind": 256},
        {"body": "text"},
    ]  # fmt: skip
    return link.submit([_envelope(client, client.victim, number, **secrets.choice(forged)), secrets.token_bytes(64)])


def _stranger_receipts(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    body = encode([1, number, client.phone.epoch, [1, client.stranger, 0], [[1, SEQ_MAX]]])
    return _has_room(link) and link.submit([_envelope(client, client.stranger, number, kind=Kind.RECEIPT, body=body)])


def _forged_receipts(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    of = [1, client.phone.user if number % 2 else client.stranger, 0]
    bodies = (secrets.token_bytes(64), encode([2, number, number, of, [[1, SEQ_MAX], [9, 2]] * 256]))
    receipts = [_envelope(client, client.victim, number, kind=Kind.RECEIPT, body=each) for each in bodies]
    return _has_room(link) and link.submit(receipts)


def _invented_cookies(client: HostileClient, link: MisbehavingClient, number: int) -> bool:
    if not _has_room(link):
        return False
    cookie = b"\x01" + secrets.token_bytes(16) + encode([[client.victim, 0, 1 << 62]])
    link.sent_number += 1
    submit = Submit(_envelope(client, client.victim, number), cookie)
    return link.send(Data(link.link, link.sent_number, link.received_number, (submit,)))


STEPS: dict[str, tuple[Step, float]] = {
    "pings": (_pings, 0.0),
    "acks": (_acks, 0.0),
    "duplicates": (_duplicates, 0.0),
    "early-frames": (_early_frames, 0.0),
    "base-updates": (_base_updates, 0.0),
    "forged-envelopes": (_forged_envelopes, 0.0),
    "stranger-receipts": (_stranger_receipts, 0.0),
    "forged-receipts": (_forged_receipts, SLOW_S),
    "invented-cookies": (_invented_cookies, SLOW_S),
}
"""By kind, and the seconds between two frames."""


def _has_room(link: MisbehavingClient) -> bool:
    return link.sent_number - link.acknowledged < WINDOW


def _envelope(client: HostileClient, to: int, seq: int, /, **forged: Any) -> bytes:
    """An envelope of the phone with other fields in their place, whether or not these decode."""
    made = decode_envelope(text_envelope(client.phone, to, max(1, seq), b"?"))
    return encode_envelope(msgspec.structs.replace(made, **forged))


async def repeat_step(world: World, client: HostileClient) -> None:
    """Greet, and take the step of this kind until the link ends."""
    step, pause_s = STEPS[client.kind]
    tally = world.tallies[client.kind]
    link = await world.connect(client, client.phone)
    try:
        if not await _welcomed(link):
            tally.ended(link, NO_ANSWER)
            return
        loop = asyncio.get_running_loop()
        number, began = 1, loop.time()
        progress = began
        while link.closed_by is None and loop.time() < min(began + SESSION_S, progress + STUCK_S):
            if step(client, link, number):
                number, progress = number + 1, loop.time()
                tally.frames += 1
                await asyncio.sleep(pause_s)
            else:
                await asyncio.sleep(0.01)
        tally.ended(link)
    finally:
        link.close()


async def _welcomed(link: MisbehavingClient) -> bool:
    try:
        async with asyncio.timeout(WELCOME_S):
            await link.welcome()
    except NOT_WELCOMED:
        return False
    return True


# ---------------------------------------------------------------- several sessions


async def take_over(world: World, client: HostileClient) -> None:
    """Two state files take one device from each other, and each greets, as the loser too."""
    tally = world.tallies[client.kind]
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Api(world.config.api))
        links = []
        for _ in range(2):
            epoch = secrets.randbits(53)
            with suppress(ApiError, BackendUnavailable):
                answer = await api.login(client.phone.name, world.config.password, "phone", epoch, takeover=True)
                owner = client.phone._replace(epoch=epoch, token=parse_token(answer.token))
                for user in (owner, owner):
                    link = await world.connect(client, user)
                    stack.callback(link.close)
                    await _welcomed(link)
                    tally.frames += 1
                    links.append(link)
        await asyncio.sleep(PAUSE_S)
        for link in links:
            tally.ended(link)


async def use_names(world: World, client: HostileClient) -> None:
    """Greet with tokens that are none or of another device or epoch, and guess the password of a stranger."""
    tally = world.tallies[client.kind]
    phone, other = client.phone, client.laptop
    false: list[MeshUser] = [
        phone._replace(token=secrets.token_bytes(32)), phone._replace(token=b""), phone._replace(epoch=1),
        other._replace(epoch=phone.epoch), phone._replace(token=secrets.token_bytes(64)),
    ]  # fmt: skip
    for user in false:
        link = await world.connect(client, user)
        try:
            await _welcomed(link)
            tally.frames += 1
            tally.ended(link, NO_ANSWER)
        finally:
            link.close()
    async with Api(world.config.api) as api:
        with suppress(ApiError, BackendUnavailable):
            await api.login(client.stranger_name, secrets.token_hex(8), "phone", 1, takeover=True)


async def never_read(world: World, client: HostileClient) -> None:
    """The phone greets again and again and never reads; the laptop writes, and each message is copied to the phone."""
    tally = world.tallies[client.kind]
    async with AsyncExitStack() as stack:
        laptop = await world.connect(client, client.laptop)
        stack.callback(laptop.close)
        if not await _welcomed(laptop):
            tally.ended(laptop, NO_ANSWER)
            return
        seq = 0
        for _ in range(DEAF_MAX):
            deaf = await world.connect(client, client.phone, deaf=True)
            stack.callback(deaf.close)
            deaf.send_greet()
            until = asyncio.get_running_loop().time() + 1.0
            while asyncio.get_running_loop().time() < until and laptop.closed_by is None:
                if _has_room(laptop):
                    seq += 1
                    laptop.submit([text_envelope(client.laptop, client.accomplice, seq, bytes(16_384))])
                    tally.frames += 1
                await asyncio.sleep(0.02)
        tally.ended(laptop, NO_ANSWER)


Attack = Callable[[World, HostileClient], Coroutine[Any, Any, None]]
SESSIONS: dict[str, Attack] = {
    **dict.fromkeys(STEPS, repeat_step),
    "takeovers": take_over,
    "false-names": use_names,
    "slow-readers": never_read,
}
