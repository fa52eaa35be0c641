"""The one codec: msgpack, typed, and with one way to fail."""

from collections.abc import Callable
from typing import Any

import msgspec

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


def decoder(what: Any) -> Callable[[bytes], Any]:
    """A function that decodes this type and raises nothing but `msgspec.DecodeError`."""
    decode = msgspec.msgpack.Decoder(what).decode

    def checked(data: bytes) -> Any:
        try:
            return decode(data)
        except (UnicodeDecodeError, RecursionError) as error:
            # msgspec lets these through for text that is not UTF-8 and for arrays nested without end.
            raise msgspec.DecodeError(str(error)) from error

    return checked
