"""A fake REST service in the process of the test: it answers what the test sets, or is unavailable."""

import json

import httpx
import msgspec

from meshim.client.rest import Api
from meshim.runtime.crypto import format_token
from meshim.wire import rest

PASSWORD = "correct horse"
PEER = rest.User(2, "bob")

_AFTER: dict[tuple[str, str], str | None] = {
    ("GET", ""): None,
    ("POST", ""): "requested",
    ("POST", "/accept"): "friends",
    ("POST", "/refuse"): "removed",
    ("DELETE", ""): "removed",
    ("POST", "/block"): "blocked",
    ("POST", "/unblock"): "removed",
}
"""The state of a relation after a request, by its method and the end of its path."""


class RestService:
    """One user, alice, with one device; only the token of the last login is valid."""

    def __init__(self) -> None:
        self.away = self.slow = self.busy = False
        self.taken_over = False
        """Whether another state file has the device."""
        self.user_id, self.device_id = 1, 10
        self.mesh = "this"
        self.connectors: tuple[rest.Connector, ...] = (rest.Connector("c1", "tcp://127.0.0.1:1", ""),)
        self.relations: tuple[rest.Relation, ...] = (rest.Relation(PEER, "friends", (rest.ContentKey(1, bytes(32)),)),)
        self.online: set[int] = set()
        """Ids of the users who are connected."""
        self.slow_down_s: float | None = None
        """Answer the next question about presence with 429 and this Retry-After."""
        self.retry_after: str | None = None
        """Answer each question about connectors with 503 and this Retry-After."""
        self.token_life_s = 3600.0
        self.logins: list[rest.LoginRequest] = []
        self.requests: list[str] = []
        self._now = 0.0

    def api(self) -> Api:
        return Api("http://localhost", transport=httpx.MockTransport(self._handle))

    @property
    def token(self) -> bytes:
        """The valid token."""
        return bytes([len(self.logins)] * 32)

    def revoke(self) -> None:
        """Revoke the token, as another login does."""
        self.logins.append(self.logins[-1])

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix(rest.PREFIX)
        self.requests.append(f"{path}?{request.url.query.decode()}".rstrip("?"))
        if self.away:
            raise httpx.ConnectError("refused")
        if self.slow:
            raise httpx.ReadTimeout("slow")
        if path == "/login":
            return self._log_in(msgspec.json.decode(request.content, type=rest.LoginRequest))
        if request.headers["authorization"] != f"Bearer {format_token(self.token)}":
            return self._problem(401, "bad_token", "Log in again.")
        if path == "/connectors" and self.retry_after is not None:
            refusal = self._problem(503, "busy", "Later.")
            told = (b"retry-after", self.retry_after.encode("latin-1"))
            refusal.headers = httpx.Headers([*refusal.headers.raw, told])
            return refusal
        if path == "/connectors":
            return _json(rest.Connectors(self.connectors))
        if path == "/relations":
            wanted = request.url.params.get("user_id")
            found = [each for each in self.relations if wanted in (None, str(each.peer.user_id))]
            return _json(rest.Relations(tuple(found)))
        if path == "/presence":
            return self._presence(request)
        for relation in self.relations:
            if path.startswith(f"/relations/{relation.peer.name}"):
                return self._relation(relation, request.method, path.removeprefix(f"/relations/{relation.peer.name}"))
        return self._problem(404, "no_such_user", "There is no such user.")

    def _relation(self, relation: rest.Relation, method: str, action: str) -> httpx.Response:
        after = _AFTER[method, action]
        if after is None:
            return _json(relation)
        self.set_relation(relation.peer.name, after)
        if method == "DELETE" or action == "/refuse":
            return httpx.Response(204)
        return _json(next(each for each in self.relations if each.peer == relation.peer))

    def set_relation(self, name: str, state: str) -> None:
        """Give the relation to this user another state."""
        self.relations = tuple(
            msgspec.structs.replace(each, state=state) if each.peer.name == name else each for each in self.relations
        )

    def _presence(self, request: httpx.Request) -> httpx.Response:
        if self.slow_down_s is not None:
            seconds, self.slow_down_s = self.slow_down_s, None
            refusal = self._problem(429, "slow_down", "Too many questions about presence.")
            refusal.headers["retry-after"] = f"{seconds:.0f}"
            return refusal
        wanted = request.url.params.get_list("user_id")
        assert len(wanted) <= 100
        friends = [each.peer for each in self.relations if each.state == "friends"]
        found = [peer for peer in friends if not wanted or str(peer.user_id) in wanted]
        return _json(rest.PresenceAnswer(tuple(rest.PeerPresence(peer, peer.user_id in self.online) for peer in found)))

    def _log_in(self, request: rest.LoginRequest) -> httpx.Response:
        if self.busy:
            return self._problem(503, "backend_unavailable", "Redis is away: try again later.")
        if request.password != PASSWORD:
            return self._problem(401, "bad_credentials", "The name or the password is wrong.")
        if self.taken_over and not request.takeover:
            return self._problem(409, "device_in_use", "Another state file has the device.")
        self.logins.append(request)
        return _json(
            rest.LoginAnswer(
                token=format_token(self.token),
                expires_at=self._now + self.token_life_s,
                user_id=self.user_id,
                name=request.name.lower(),
                device_id=self.device_id,
                epoch=request.epoch,
                connectors=self.connectors,
                relations=self.relations,
                mesh=self.mesh,
                proof=f"proof {len(self.logins)}",
            )
        )

    def at(self, now: float) -> "RestService":
        """Set the clock: seconds since 1970."""
        self._now = now
        return self

    def _problem(self, status: int, code: str, detail: str) -> httpx.Response:
        problem = {"type": "urn:x", "title": code, "status": status, "detail": detail, "code": code}
        return httpx.Response(status, content=json.dumps(problem), headers={"content-type": rest.PROBLEM_JSON})


def _json(answer: msgspec.Struct) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(answer))
