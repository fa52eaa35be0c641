"""How long clients wait.

The same in every mesh, since a client decides it by itself and nobody tells it: `docs/protocol.md`, section 14.
What a topology may choose is checked against these.
"""

GREET_TIMEOUT_S = 5.0
"""For Welcome; then another connector is tried."""
CLIENT_RESEND_S = 4.0
"""Until a message that is not settled is submitted again, at first."""
CLIENT_GIVE_UP_S = 4.0
"""Without an acknowledgement of anything that is under way; then the link is given up."""
CLIENT_ACK_DELAY_S = 0.05
"""Until an acknowledgement that nobody waits for is sent alone: less than any connector takes to send a frame again,
since that looks at its clock less often (flush_queue.py)."""
GAP_RELEASE_S = 30.0
"""Until a gap that holds messages back is given up: several resends have had their chance."""
