"""Routing: which partition stores for a user, and which transfer handles a conversation.

A partition has a fixed share of the users.  A conversation goes to the living transfer with the highest score for it
(rendezvous hashing), so that a transfer that comes or goes moves its own share only.
"""

from collections.abc import Iterable

_MASK = (1 << 64) - 1


def partition_of(user: int, partitions: int) -> int:
    """Return the partition of the log for messages to a user, from 0.

    User ids ascend, so the remainder spreads them evenly.
    """
    return user % partitions


def conversation_of(one: int, other: int) -> int:
    """Return a 64-bit number for the conversation of two users, the same in both directions."""
    low, high = (one, other) if one < other else (other, one)
    return mix(low ^ mix(high))


def pick(conversation: int, transfers: Iterable[int]) -> int | None:
    """Return the incarnation with the highest score, or None when there is no transfer."""
    best, best_score = None, -1
    for transfer in transfers:
        score = mix(conversation ^ transfer)
        if score > best_score:
            best, best_score = transfer, score
    return best


def mix(value: int) -> int:
    """Return `value` through the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which mixes all bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
