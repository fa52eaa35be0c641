"""A ClientTransport without sockets, for tests of the connector's shell."""

from meshim.connector.transport import OnBatch, OnGone
from meshim.runtime.send_result import SendResult


class RecordingTransport:
    """Keeps what it is given; `answers` are its answers to `send`, by peer, OK otherwise."""

    def __init__(self, tag: int, on_batch: OnBatch, on_gone: OnGone) -> None:
        self.tag = tag
        self.endpoint = f"recording://{tag}"
        self.on_batch = on_batch
        self.on_gone = on_gone
        self.answers: dict[bytes, SendResult] = {}
        self.sent: list[tuple[bytes, bytes]] = []
        self.closed_peers: list[bytes] = []
        self.is_closed = False

    def peer(self, number: int) -> bytes:
        return bytes((self.tag, number))

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        self.sent.append((peer, frame))
        return self.answers.get(peer, SendResult.OK)

    def close_peer(self, peer: bytes, *, was_authenticated: bool = False) -> None:
        self.closed_peers.append(peer)

    def close(self, linger_ms: int = 0) -> None:
        self.is_closed = True
