"""Whether NATS answers: one round trip on a connection of its own."""

import nats.aio.client
import nats.errors

from meshim.errors import BackendUnavailable, innermost


async def probe(url: str, _timeout_s: float) -> None:
    """Return when NATS has answered; raise `BackendUnavailable` with the reason when it has not.

    The driver has no time limit that covers the whole attempt: the caller must set one.
    """

    async def quiet(error: Exception) -> None:
        """Keep nats-py from logging a traceback: `connect` raises the same error."""

    client = nats.aio.client.Client()
    try:
        await client.connect(url, allow_reconnect=False, reconnect_time_wait=0, error_cb=quiet)
        await client.flush()
    except (OSError, nats.errors.Error) as error:
        raise BackendUnavailable(innermost(error)) from error
    finally:
        await client.close()  # also after a failure, which leaves the socket open
