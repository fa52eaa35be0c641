"""The bindings of a connector's sessions in presence: how they are written, renewed and erased.

::

    new session ──▶ written ──▶ token looked at again ──┬── verified     BindingsWritten
                       ▲                                ├── unverified   BindingsWritten, then renewed
                       │                                └── nothing      doubtful: the database decides, then
                       │                                                 BindingsWritten, or TokensRevoked before it
    renewal ──▶ token not revoked                        revoked: TokensRevoked, and nothing is written

A token is looked at again after the write, and before a renewal is written: authenticator.py says why.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from meshim.connector import events as e
from meshim.connector.authenticator import Authenticator, Held
from meshim.errors import BackendUnavailable
from meshim.runtime.batches import Batches
from meshim.runtime.service import Service
from meshim.stores.ports import Binding, Presence

WRITES = 256
"""Bindings in one batch, as doubtful ones."""
RENEWALS = 8_192
ERASURES = 1_024


class Bindings:
    """Performs WriteBindings, RenewBindings and EraseBindings, and answers with the events that those name."""

    def __init__(
        self,
        presence: Presence,
        authenticator: Authenticator,
        receive: Callable[[e.Event], None],
        service: Service,
        pause_s: float,
    ) -> None:
        """`receive` takes the events; `pause_s` is the pause between two writes."""
        self._presence = presence
        self._authenticator = authenticator
        self._receive = receive
        self._service = service
        self._writes: Batches[tuple[e.BindingRenewal, bool]] = Batches(self._write, WRITES, pause_s)
        """Each with whether it is the first of its session."""
        self._doubtful: Batches[tuple[e.BindingRenewal, Binding | bool | None]] = Batches(self._decide, WRITES)
        self._renewals: Batches[e.BindingRenewal] = Batches(self._renew, RENEWALS)
        self._erasures: Batches[Binding] = Batches(self._erase, ERASURES)
        self._batches = (self._writes, self._doubtful, self._renewals, self._erasures)

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """Return what has to run, each in a task, from the start to the end of the process."""
        return [batches.run() for batches in self._batches]

    async def join(self, within_s: float) -> None:
        """Wait until all is performed, and what follows from it: a write may add a renewal, and that one a write.

        What the core makes of the results is erased last.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not all(batches.idle for batches in self._batches):
            for batches in self._batches:
                if not await batches.join(deadline - loop.time()):
                    return

    # ---------------------------------------------------------------- actions

    def write(self, action: e.WriteBindings) -> None:
        for renewal in action.renewals:
            self._writes.add((renewal, True))

    def renew(self, action: e.RenewBindings) -> None:
        for renewal in action.renewals:
            self._renewals.add(renewal)

    def erase(self, action: e.EraseBindings) -> None:
        for binding in action.bindings:
            self._erasures.add(binding)

    # ---------------------------------------------------------------- batches

    async def _write(self, writes: Sequence[tuple[e.BindingRenewal, bool]]) -> None:
        try:
            results = await self._presence.online([(each.binding, each.devices) for each, _ in writes])
        except BackendUnavailable:
            self._receive(e.BindingsWriteFailed([each.binding for each, _ in writes]))
            return
        held = await self._authenticator.look_again([each.token_hash for each, is_new in writes if is_new])
        written = []
        for (renewal, is_new), result in zip(writes, results, strict=True):
            if is_new and held[renewal.token_hash] is Held.NOTHING:
                self._doubtful.add((renewal, result))
                continue
            written.append((renewal.binding, result))
            if is_new and held[renewal.token_hash] is Held.UNVERIFIED:
                self._renewals.add(renewal)
        if written:
            self._receive(e.BindingsWritten(written))

    async def _decide(self, writes: Sequence[tuple[e.BindingRenewal, Binding | bool | None]]) -> None:
        await self._unrevoked([renewal for renewal, _ in writes])
        self._receive(e.BindingsWritten([(renewal.binding, result) for renewal, result in writes]))

    async def _renew(self, renewals: Sequence[e.BindingRenewal]) -> None:
        for renewal in await self._unrevoked(renewals):
            self._writes.add((renewal, False))

    async def _unrevoked(self, renewals: Sequence[e.BindingRenewal]) -> list[e.BindingRenewal]:
        """Those whose token is not revoked; the core is told of the others."""
        unrevoked = await self._authenticator.unrevoked([renewal.token_hash for renewal in renewals])
        revoked = [renewal.binding for renewal in renewals if renewal.token_hash not in unrevoked]
        if revoked:
            self._receive(e.TokensRevoked(revoked))
        return [renewal for renewal in renewals if renewal.token_hash in unrevoked]

    async def _erase(self, bindings: Sequence[Binding]) -> None:
        try:
            await self._presence.offline(bindings)
        except BackendUnavailable:
            self._service.log.warning("bindings not erased", count=len(bindings))
