"""Who a device is, and the envelopes that it makes."""

from typing import NamedTuple

from meshim.wire.envelope import WIRE_VERSION, Destination, Envelope, Kind, Stream


class Identity(NamedTuple):
    """The ids of this device, from its login, and the epoch of its state file."""

    user: int
    device: int
    epoch: int

    def stream(self, to: Destination) -> Stream:
        """Return the name of the stream of this device to a destination."""
        return Stream(self.user, self.device, self.epoch, to)

    def envelope(
        self, to: Destination, seq: int, base: int, kind: Kind, *, id: bytes, sent_at: int, key: int = 0,
        body: bytes = b"",
    ) -> Envelope:  # fmt: skip
        """Return an envelope from this device; `id` are 16 random bytes, `key` is 0 for a body that is not sealed."""
        return Envelope(
            version=WIRE_VERSION,
            id=id,
            user=self.user,
            device=self.device,
            epoch=self.epoch,
            to=to,
            seq=seq,
            base=base,
            kind=kind,
            key=key,
            sent_at=sent_at,
            body=body,
        )
