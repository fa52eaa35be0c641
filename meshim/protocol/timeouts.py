"""The timeouts of clients.

They are the same in every mesh, since no frame announces them: `docs/protocol.md`, section 14.  A topology whose timers
are incompatible with them is refused (`meshim/topology/timers.py`).
"""

GREET_TIMEOUT_S = 5.0
"""How long a client waits for Welcome before it tries another connector."""
CLIENT_RESEND_S = 4.0
"""How long a client waits before it submits an unsettled message again for the first time."""
CLIENT_GIVE_UP_S = 4.0
"""How long a client with frames in flight waits for any acknowledgement before it gives up the link."""
CLIENT_ACK_DELAY_S = 0.05
"""How long a client delays an acknowledgement that is not urgent.  A connector resends a frame later than that: it
compares its timers with the clock only once in `TICK_S` (flush_queue.py)."""
GAP_RELEASE_S = 30.0
"""How long a gap holds messages back before it is given up: time for several resends."""
