"""Sequences in pieces of a bounded size."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield slices of `items` with `size` each, the last with what remains; nothing for an empty sequence."""
    return (items[at : at + size] for at in range(0, len(items), size))
