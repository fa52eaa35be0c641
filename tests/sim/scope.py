"""A part of the judge: what may a hostile device reach?

Its messages reach friends alone; for anybody else nothing is stored, and every answer is the same, whether that user
is online, away, or does not exist.  No message is taken for one of another device.  A connector takes no more of its
frames in a second than an honest device could need.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshim.connector.core import ConnectorCore
from meshim.errors import Code
from meshim.protocol.token_bucket import UNNUMBERED_BURST, UNNUMBERED_RATE
from meshim.wire.client import Outcome
from meshim.wire.envelope import Envelope
from meshim.wire.outcome import OutcomeStatus

if TYPE_CHECKING:
    from tests.sim.judge import Judge

FRAMES_MOST = int(UNNUMBERED_BURST + UNNUMBERED_RATE) + 50
"""Frames of one connection in a second that carry no items; some acknowledge what came."""
_GREET, _DATA = 1, 3
"""The types of frames, the second byte of each."""


class Scope:
    """The hostile users of one run, each with its friends."""

    def __init__(self, judge: "Judge") -> None:
        self._judge = judge
        self._friends: dict[int, frozenset[int]] = {}
        self._tokens: set[bytes] = set()
        self._answers: dict[int, tuple[int, str]] = {}
        """The answer about strangers, by code: (status, sentence)."""
        self._taken: dict[tuple[int, bytes], tuple[int, int]] = {}
        """By connector and peer: the second, and the frames in it."""
        self.outcomes = 0
        """Answers about strangers that were compared."""

    def add(self, user: int, friends: Sequence[int], token: bytes) -> None:
        """This user is hostile."""
        self._friends[user] = frozenset(friends)
        self._tokens.add(token)

    def has(self, user: int) -> bool:
        """Whether a user is hostile: what it sends is owed to nobody."""
        return user in self._friends

    def friends(self, user: int) -> frozenset[int]:
        return self._friends[user]

    # ---- reports

    def stored(self, user: int, envelope: Envelope) -> None:
        """The log has an envelope for a user."""
        friends = self._friends.get(envelope.user)
        if friends is not None and user not in friends and user != envelope.user:
            self._judge.violated("private", f"a message of the hostile user {envelope.user} is stored for {user}")

    def arrived(self, user: int, device: int, envelope: Envelope) -> None:
        """A device has an envelope."""
        friends = self._friends.get(envelope.user)
        if friends is not None and user not in friends:
            self._judge.violated("private", f"a message of the hostile user {envelope.user} reached device {device}")

    def answered(self, user: int, outcome: Outcome) -> None:
        """A hostile user got an outcome."""
        to = outcome.to.id
        if to in self._friends[user] or to == user:
            return
        self.outcomes += 1
        answer = int(outcome.status), outcome.sentence
        refused = outcome.status in (OutcomeStatus.REJECTED, OutcomeStatus.BUSY)
        if not refused or outcome.code not in (Code.NOT_FRIENDS, Code.BUSY) or outcome.final or outcome.cookie:
            self._judge.violated("private", f"a stranger of user {to} got the outcome {outcome}")
        elif self._answers.setdefault(outcome.code, answer) != answer:
            self._judge.violated(
                "private", f"a stranger of user {to} got {answer}, others {self._answers[outcome.code]}"
            )

    def taken(self, core: ConnectorCore, batch: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """A connector has taken frames from clients."""
        for peer, data in batch:
            kind = data[1] if len(data) > 1 else 0
            key = core._incarnation, peer
            if kind == _GREET and any(token in data for token in self._tokens):
                self._taken.setdefault(key, (int(now), 0))
            if key not in self._taken or (kind == _DATA and core._sessions.has(peer)):
                continue
            if not core.has_greeted(peer):
                continue
            second, frames = self._taken[key]
            frames = frames + 1 if second == int(now) else 1
            self._taken[key] = int(now), frames
            if frames == FRAMES_MOST + 1:
                self._judge.violated(
                    "bounded", f"a connector took more than {FRAMES_MOST} frames of one device in a second"
                )
