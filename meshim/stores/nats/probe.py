"""Whether a NATS server answers: one round trip, on a connection of its own."""

import nats.aio.client
import nats.errors

from meshim.errors import BackendUnavailable, innermost


async def probe(url: str, _timeout_s: float) -> None:
    """Return when NATS has answered; raises BackendUnavailable with the reason why it has not.

    The driver has no limit of time that covers all of it: the caller has one.
    """

    async def quiet(error: Exception) -> None:
        """The failure comes out of `connect` too; by default it would also be logged with a traceback."""

    client = nats.aio.client.Client()
    try:
        await client.connect(url, allow_reconnect=False, reconnect_time_wait=0, error_cb=quiet)
        await client.flush()
    except (OSError, nats.errors.Error) as error:
        raise BackendUnavailable(innermost(error)) from error
    finally:
        await client.close()  # also after a refusal, which leaves its socket open
