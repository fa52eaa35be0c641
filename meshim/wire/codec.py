"""The codec of every frame, record and notification: typed msgpack, whose only error is `msgspec.DecodeError`."""

from collections.abc import Callable
from typing import Any

import msgspec

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes this type and raises only `msgspec.DecodeError`."""
    decode = msgspec.msgpack.Decoder(type_).decode

    def checked(data: bytes) -> Any:
        try:
            return decode(data)
        except (UnicodeDecodeError, RecursionError) as error:
            # msgspec does not convert these: text that is not UTF-8, and arrays that are nested too deeply.
            raise msgspec.DecodeError(str(error)) from error

    return checked
