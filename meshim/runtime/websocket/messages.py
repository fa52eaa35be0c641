"""What both ends of a WebSocket connection do with the frames of RFC 6455."""

import logging
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol
from websockets.typing import Subprotocol

SUBPROTOCOL: Final = Subprotocol("meshim.1")
FRAGMENTS_MAX: Final = 1_024
"""Of one message: a fragment may be empty, so a message without end has no size."""
REASON_BYTES_MAX: Final = 123
"""Of the reason of a Close frame (RFC 6455, 5.5: 125, less the code)."""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
UNSUPPORTED_DATA: Final = 1003
MESSAGE_TOO_BIG: Final = 1009

QUIET: Final = logging.getLogger("meshim.websocket")
"""The library logs each connection; counters say as much."""
QUIET.disabled = True

_BINARY: Final = Opcode.BINARY
_CONTINUATION: Final = Opcode.CONT
_TEXT: Final = Opcode.TEXT


class Messages:
    """Puts the messages of one connection together."""

    __slots__ = ("_fragments", "_message", "failed")

    def __init__(self) -> None:
        self.failed = False
        """`take` has failed the connection: what came after that frame is not taken."""
        self._message: bytearray | None = None
        self._fragments = 0

    def take(self, websocket: Protocol, frame: Frame) -> bytes | None:
        """Return the message that this frame completes.  Fails the connection for text, and for too many fragments."""
        opcode = frame.opcode
        if opcode is _BINARY and frame.fin:
            return bytes(frame.data)
        if opcode is _BINARY or opcode is _CONTINUATION:
            return self._take_fragment(websocket, frame)
        if opcode is _TEXT:
            self._fail(websocket, UNSUPPORTED_DATA, "only binary messages are taken")
        return None

    def _take_fragment(self, websocket: Protocol, frame: Frame) -> bytes | None:
        if self._message is None:
            self._message = bytearray()
            self._fragments = 0
        self._fragments += 1
        if self._fragments > FRAGMENTS_MAX:
            self._fail(websocket, MESSAGE_TOO_BIG, f"a message has at most {FRAGMENTS_MAX} fragments")
            return None
        self._message += frame.data
        if not frame.fin:
            return None
        message, self._message = bytes(self._message), None
        return message

    def _fail(self, websocket: Protocol, code: int, sentence: str) -> None:
        self.failed = True
        websocket.fail(code, sentence)


def reason_of(sentence: str) -> str:
    """Return a sentence, cut to what a Close frame holds."""
    return sentence.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
