"""Who handles what: fixed shares of users, and living transfers for conversations.

A conversation goes to the transfer with the highest score for it (rendezvous hashing), so
that one that comes or goes moves only its own share.
"""

from collections.abc import Iterable

_MASK = (1 << 64) - 1


def partition_of(user: int, partitions: int) -> int:
    """The partition of the log that keeps what is stored for a user, from 0.

    User ids ascend, so the remainder spreads them evenly.
    """
    return user % partitions


def conversation_of(one: int, other: int) -> int:
    """The same 64-bit number for both directions of a conversation."""
    low, high = (one, other) if one < other else (other, one)
    return mix(low ^ mix(high))


def pick(conversation: int, transfers: Iterable[int]) -> int | None:
    """The incarnation with the highest score, or None when there is no transfer."""
    best, best_score = None, -1
    for transfer in transfers:
        score = mix(conversation ^ transfer)
        if score > best_score:
            best, best_score = transfer, score
    return best


def mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
