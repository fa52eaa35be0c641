"""A WebSocket client that can do everything wrong: bytes in, frames out."""

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
DEADLINE_S = 10.0


class Answer(NamedTuple):
    """Of a handshake: the status, and everything up to the empty line."""

    status: int
    head: bytes


class Frame(NamedTuple):
    """A frame of the server."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int:
        """The code of a Close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """The bytes of one frame of a client."""
    size = len(payload)
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head += bytes((mask_bit | size,))
    elif size < 65_536:
        head += struct.pack("!BH", mask_bit | 126, size)
    else:
        head += struct.pack("!BQ", mask_bit | 127, size)
    if not masked:
        return head + payload
    mask = b"\x01\x02\x03\x04"
    masking = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ masking).to_bytes(size, "big")


def request(*headers: str, protocol: str | None = "meshim.1", path: str = "/") -> bytes:
    """The bytes of a handshake."""
    lines = [
        f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13", *headers,
    ]  # fmt: skip
    if protocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    return "\r\n".join((*lines, "", "")).encode()


class RawWebSocket:
    """One TCP connection to a WebSocket server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str, host: str | None = None) -> Self:
        """Connect without a handshake; from an address of this machine, if one is given."""
        where = urlsplit(url)
        own = (host, 0) if host else None
        return cls(*await asyncio.open_connection(where.hostname, where.port, local_addr=own))

    @classmethod
    async def open(cls, url: str, host: str | None = None) -> Self:
        """Connect, with a good handshake."""
        raw = await cls.connect(url, host)
        raw.send(request())
        answer = await raw.answer()
        assert answer.status == 101, answer
        assert ACCEPT in answer.head
        return raw

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def has_ended(self) -> bool:
        """Wait until the other end takes more bytes; True when it has cut the connection instead."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return True
        return False

    def message(self, payload: bytes) -> None:
        """Send one message."""
        self.send(frame(BINARY, payload))

    async def answer(self, within_s: float = DEADLINE_S) -> Answer:
        """The answer to the handshake."""
        async with asyncio.timeout(within_s):
            head = await self._reader.readuntil(b"\r\n\r\n")
        return Answer(int(head.split()[1]), head)

    async def receive(self, within_s: float = DEADLINE_S) -> Frame:
        """The next frame."""
        async with asyncio.timeout(within_s):
            first, second = await self._reader.readexactly(2)
            assert first & 0xF0 == 0x80, "whole, and no reserved bit"
            assert not second & 0x80, "a server does not mask"
            size = second
            if second == 126:
                size = int.from_bytes(await self._reader.readexactly(2), "big")
            elif second == 127:
                size = int.from_bytes(await self._reader.readexactly(8), "big")
            return Frame(first & 0xF, await self._reader.readexactly(size))

    async def ended(self) -> bytes:
        """Wait until the other end has closed; returns what came before."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._reader.read()
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
