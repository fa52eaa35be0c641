"""Strategies of Hypothesis for what a peer may send: any bytes, any msgpack, and frames with something changed."""

from collections.abc import Sequence

import msgspec
from hypothesis import strategies as st

DEEP = b"\x91" * 12_000
"""Arrays within arrays: deeper than a decoder can go."""
NOT_UTF_8 = b"\xa2\xff\xfe"
"""A text that is none."""

_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda each: st.lists(each, max_size=9) | st.dictionaries(st.text(max_size=12), each, max_size=4),
    max_leaves=16,
)
packed = _value.map(msgspec.msgpack.encode)
"""Valid msgpack of any shape."""
any_bytes = st.binary(max_size=100) | packed


def frames(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes, any msgpack, and the samples: whole, cut, with bytes changed, with fields replaced or added."""
    sample = st.sampled_from(samples)
    changed = st.builds(_with_byte, sample, st.integers(0), st.integers(0, 255))
    cut = st.builds(lambda data, at: data[: at % len(data)], sample, st.integers(0))
    other_field = st.builds(_with_field, sample, st.integers(0), packed | st.sampled_from([NOT_UTF_8, DEEP]))
    return any_bytes | sample | cut | changed | other_field


def _with_byte(data: bytes, at: int, byte: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes((byte,)) + data[at + 1 :]


def _with_field(data: bytes, at: int, value: bytes) -> bytes:
    """An array with these bytes in place of one of its elements, or behind the last one."""
    fields = [msgspec.msgpack.encode(field) for field in msgspec.msgpack.decode(data)]
    at %= len(fields) + 1
    fields[at : at + 1] = [value]
    head = bytes((0x90 | len(fields),)) if len(fields) < 16 else b"\xdc" + len(fields).to_bytes(2, "big")
    return head + b"".join(fields)
