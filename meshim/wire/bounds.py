"""What numbers and lists may hold on the wire.  A frame beyond these bounds does not decode.

They keep what a peer sends inside the columns it will be written to and the memory that is meant
for it; limits that an operator may choose are in the topology and are checked by the cores.
"""

from typing import Annotated

from msgspec import Meta

LIST_MAX = 1_024
"""Elements of a list that grows with devices or with the window, so also the largest window."""
ITEMS_MAX = 65_536
"""Items of a frame or of a log record."""
SEQ_MAX = 1 << 62
"""The number after it must still fit into 63 bits."""
MS_MAX = 253_402_300_799_999
"""The end of the year 9999: calendars of most languages end there."""

U64 = Annotated[int, Meta(ge=0)]
"""64 bits: msgpack has no larger numbers."""
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""What a signed 64-bit column takes."""
Id = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
"""Of a user, a device or a group."""
AnyId = U63
"""An id, or 0 for none or all of them, as the field says."""
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
FrameNumber = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=MS_MAX)]
"""Since 1970 UTC."""
U31 = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
"""What a signed 32-bit column takes."""
U8 = Annotated[int, Meta(ge=0, le=255)]
"""A number from an open list: kinds, ways, types of destinations."""
WindowSize = Annotated[int, Meta(ge=1, le=LIST_MAX)]
MessageId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Token = Annotated[bytes, Meta(max_length=64)]
"""Longer than any, so that one of the wrong length is a wrong token and not a malformed frame."""
Name = Annotated[str, Meta(max_length=128)]
Sentence = Annotated[str, Meta(max_length=1_024)]
"""For people, in English."""
Copies = Annotated[tuple[tuple[Id, AnyId], ...], Meta(max_length=LIST_MAX)]
"""Each (user, device), or (user, 0) for all devices of the user."""
Positions = Annotated[tuple[tuple[Id, AnyId, U63], ...], Meta(max_length=LIST_MAX)]
"""Each (user, device, position): where a copy was stored in the log partition of its user; device 0 for all of them."""
