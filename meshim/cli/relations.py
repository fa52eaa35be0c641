"""Says which command mends a refusal that comes of the relation to a peer."""

from typing import TYPE_CHECKING

from meshim.errors import ApiError, Code, MeshimError, Refused

if TYPE_CHECKING:  # imports sockets and cryptography, which `--help` does not need
    from meshim.client import Client


async def explain(error: MeshimError, client: "Client", me: str, peer: str) -> MeshimError:
    """Return the error of a message to `peer` with its reason, and the command that mends it where there is one.

    The mesh says only that the two are not friends.  The REST service knows why: this user may have blocked the peer.
    While it does not answer, the error stays as it is.
    """
    if isinstance(error, Refused) and error.code is Code.NOT_FRIENDS:
        try:
            await client.check_friend(peer)
        except Refused as known:
            error = known
        except MeshimError:  # the refusal matters more than that REST is away
            return error
    cause = error.__cause__
    if isinstance(cause, ApiError) and cause.code == "no_such_relation":
        sentence = f"{cause.sentence.rstrip('.')}: ask with `meshim friend add {me} {peer}`."
        return Refused(Code.NOT_FRIENDS, sentence)
    return error


def unblock_first(me: str, peer: str) -> str:
    """Return what to say when the REST service answers `blocked`."""
    return f"You have blocked {peer}: unblock first with `meshim friend unblock {me} {peer}`."
