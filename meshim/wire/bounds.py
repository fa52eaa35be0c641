"""The bounds of numbers, texts and lists on the wire.  A frame beyond them does not decode.

They keep the values that a peer sends within the database columns and the memory that are meant for them.  Limits that
an operator may choose are in the topology, and the cores check them.

Every integer on the link of a client, and in JSON, is below 2^53: JavaScript and most readers of JSON have only doubles
for numbers, which hold integers up to there.  Numbers that stay inside the mesh may have 63 bits.
"""

from typing import Annotated

from msgspec import Meta

LIST_MAX = 1_024
"""Elements of a list that grows with the devices of a user or with the window; so it is also the largest window."""
ITEMS_MAX = 65_536
"""Items of a frame or of a record of the log."""
INTEGER_MAX = (1 << 53) - 1
"""The largest integer for which a double has no neighbour: `Number.MAX_SAFE_INTEGER` of JavaScript."""
SEQ_MAX = INTEGER_MAX - 1
"""The number after it is still below 2^53."""
MS_MAX = 253_402_300_799_999
"""The end of the year 9999, where the calendars of most languages end."""

U53 = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""It fits a signed 64-bit column.  Only inside the mesh: incarnations, and positions in the log."""
Id = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
"""The id of a user, a device or a group."""
AnyId = U53
"""An id, or 0 for none or for all of them, as the field says."""
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
FrameNumber = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
Milliseconds = Annotated[int, Meta(ge=0, le=MS_MAX)]
"""Since 1970-01-01 UTC."""
U31 = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
"""It fits a signed 32-bit column."""
U8 = Annotated[int, Meta(ge=0, le=255)]
"""A number from a list that newer versions extend: kinds, statuses, types of destinations."""
WindowSize = Annotated[int, Meta(ge=1, le=LIST_MAX)]
MessageId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Token = Annotated[bytes, Meta(max_length=64)]
"""More than the 32 bytes of a token, so that a token of the wrong length is BAD_TOKEN, not a malformed frame."""
Cookie = Annotated[bytes, Meta(max_length=1_024)]
"""What a connector has its client keep for a stream; opaque to the client."""
Name = Annotated[str, Meta(max_length=128)]
Sentence = Annotated[str, Meta(max_length=1_024)]
"""A sentence for people, in English."""
Copies = Annotated[tuple[tuple[Id, AnyId], ...], Meta(max_length=LIST_MAX)]
"""Each (user, device), or (user, 0) for all devices of the user."""
Positions = Annotated[tuple[tuple[Id, AnyId, U63], ...], Meta(max_length=LIST_MAX)]
"""Each (user, device, position): where a copy was stored in the partition of its user; device 0 for all devices."""
