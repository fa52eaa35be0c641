"""Answers `GET /v1/connectors`, also when thousands ask at once (adr/0046).

After all connectors were restarted on other ports, every client asks.  So an answer costs little: the list is read from
the leases at most every `REFRESH_S` and encoded once, and the tokens of all who wait are looked up together.  Those who
have gone meanwhile are not looked up.  Those who would wait too long are told when to come again.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from meshim.errors import BackendUnavailable
from meshim.protocol.admission import Admission
from meshim.rest.backends import Backends, Clock
from meshim.rest.core import bad_token, connector_entries, refusal
from meshim.rest.statistics import Statistics
from meshim.runtime.log import Log
from meshim.stores.ports import Login
from meshim.wire import rest

REFRESH_S = 0.2
"""The list is at most so old; leases last for seconds."""
QUEUE_S = 4.0
"""A question waits no longer than this, at the measured rate; clients wait longer (client/session.py)."""
RATE = 500.0
"""Answers a second, until that was measured."""
TOGETHER_MAX = 256
"""Tokens in one look-up."""

IS_GONE = "meshim.is_gone"
"""The key of an ASGI scope under which `http/server.py` says whether the connection of the request has ended."""

_encode = msgspec.json.Encoder().encode


class _Question(NamedTuple):
    token_hash: bytes
    is_gone: Callable[[], bool]
    answer: asyncio.Future[bytes]


class ConnectorDirectory:
    """The living connectors, for those who have a valid token."""

    def __init__(self, backends: Backends, clock: Clock, log: Log, statistics: Statistics) -> None:
        self._leases = backends.leases
        self._cache = backends.cache
        self._accounts = backends.accounts
        self._clock = clock
        self._log = log
        self._statistics = statistics
        self._admission = Admission(queue_s=QUEUE_S, rate=RATE)
        self._questions: deque[_Question] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._entries: tuple[rest.Connector, ...] = ()
        self._encoded = _encode(rest.Connectors(()))

    # ---------------------------------------------------------------- the list

    async def entries(self) -> tuple[rest.Connector, ...]:
        """Return the living connectors; while Redis is unavailable the last list, as clients try one after another."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= REFRESH_S:
                try:
                    living = await self._leases.living("connector")
                except BackendUnavailable as error:
                    self._log.warning("leases away", reason=error)
                else:
                    self._entries = connector_entries(living)
                    self._encoded = _encode(rest.Connectors(self._entries))
                self._read_at = now
        return self._entries

    # ---------------------------------------------------------------- questions

    async def answer(self, token_hash: bytes, is_gone: Callable[[], bool]) -> bytes:
        """Return the list in JSON.  `is_gone` says whether nobody waits for it any more; then no work is done for it.

        Raises ApiError for an invalid token, and when too many wait already; BackendUnavailable when the database is
        away and no cache knows the token.
        """
        loop = asyncio.get_running_loop()
        wait_s = self._admission.enter(loop.time())
        if wait_s:
            self._statistics.connectors_postponed += 1
            seconds = math.ceil(wait_s)
            raise refusal("busy", f"Too many ask for connectors at once: ask again in {seconds} s.", seconds)
        question = _Question(token_hash, is_gone, loop.create_future())
        self._questions.append(question)
        if self._answering is None:
            self._answering = loop.create_task(self._answer_all())
        return await question.answer

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._questions:
            together = self._take()
            try:
                await self._answer_together(together)
            except Exception as error:  # noqa: BLE001  # each of them raises it
                for question in together:
                    if not question.answer.done():
                        question.answer.set_exception(error)
            self._admission.answered(len(together), loop.time())
        self._answering = None

    def _take(self) -> list[_Question]:
        """The next questions to answer together, without those whose askers have gone."""
        together: list[_Question] = []
        while self._questions and len(together) < TOGETHER_MAX:
            question = self._questions.popleft()
            if question.answer.done() or question.is_gone():
                if not question.answer.done():
                    question.answer.set_result(b"")  # it goes nowhere
                self._statistics.connectors_abandoned += 1
                self._admission.leave(1)
            else:
                together.append(question)
        return together

    async def _answer_together(self, questions: Sequence[_Question]) -> None:
        if not questions:
            return
        await self.entries()
        now = self._clock()
        hashes = [question.token_hash for question in questions]
        logins, away = await self.logins(hashes, now)
        for question in questions:
            login = logins.get(question.token_hash)
            if question.answer.done():
                continue
            if login is not None and login.expires_at > now:
                question.answer.set_result(self._encoded)
            elif login is None and away is not None:
                question.answer.set_exception(BackendUnavailable(away.sentence))
            else:
                question.answer.set_exception(bad_token())

    async def logins(
        self, token_hashes: Sequence[bytes], now: float
    ) -> tuple[Mapping[bytes, Login], BackendUnavailable | None]:
        """Return the logins that are verified in the cache, else those in the database; and why it could not be asked.

        A login that has ended may be among them.
        """
        try:
            cached = await self._cache.logins(token_hashes)
        except BackendUnavailable as error:
            self._log.warning("token cache away", reason=error)
            cached = [None] * len(token_hashes)
        logins = {
            token_hash: each.login
            for token_hash, each in zip(token_hashes, cached, strict=True)
            if each is not None and each.verified
        }
        missing = [token_hash for token_hash in token_hashes if token_hash not in logins]
        if missing:
            try:
                logins |= await self._accounts.logins(missing, now)
            except BackendUnavailable as error:
                return logins, error
        return logins, None
