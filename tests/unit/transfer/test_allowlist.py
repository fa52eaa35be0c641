"""A transfer admits the keys that living connectors have for mesh links, each as its incarnation; and no key that
clients see."""

from collections.abc import Sequence

from meshim.errors import BackendUnavailable
from meshim.stores.ports import Lease
from meshim.transfer.allowlist import ConnectorAllowlist

SHARED = "s" * 40


def lease(name: str, mesh_key: str, incarnation: int = 1) -> Lease:
    return Lease("connector", name, incarnation, endpoint="tcp://chat.example:5000", key=SHARED, mesh_key=mesh_key)


class Leases:
    """The leases in Redis; None while Redis is away."""

    def __init__(self, *living: Lease) -> None:
        self.found: Sequence[Lease] | None = living

    async def living(self, role: str) -> list[Lease]:
        assert role == "connector"
        if self.found is None:
            raise BackendUnavailable("Redis is away.")
        return list(self.found)


async def test_each_incarnation_is_admitted_by_its_own_key() -> None:
    leases = Leases(lease("c1", "1" * 40, 2**62), lease("c2", "2" * 40, 22))
    allowlist = ConnectorAllowlist(leases)  # type: ignore[arg-type]  # it only reads living leases
    assert await allowlist.admit(b"1" * 40) == str(2**62)
    assert await allowlist.admit(b"2" * 40) == "22"
    allowlist.living("connector", [lease("c1", "3" * 40, 33)])
    leases.found = [lease("c1", "3" * 40, 33)]
    assert await allowlist.admit(b"3" * 40) == "33"
    assert await allowlist.admit(b"1" * 40) == "", "an incarnation that has ended"


async def test_the_key_that_clients_see_admits_to_no_transfer() -> None:
    allowlist = ConnectorAllowlist(Leases(lease("c1", "1" * 40)))  # type: ignore[arg-type]  # see above
    assert await allowlist.admit(SHARED.encode()) == ""
    assert await allowlist.admit(b"") == ""


async def test_a_lease_without_a_key_admits_none() -> None:
    allowlist = ConnectorAllowlist(Leases(lease("c1", "")))  # type: ignore[arg-type]  # see above
    assert await allowlist.admit(b"") == ""


async def test_while_redis_is_away_a_key_that_is_not_known_is_undecided() -> None:
    leases = Leases(lease("c1", "1" * 40))
    allowlist = ConnectorAllowlist(leases)  # type: ignore[arg-type]  # see above
    assert await allowlist.admit(b"1" * 40) == "1"
    leases.found = None
    assert await allowlist.admit(b"1" * 40) == "1"
    assert await allowlist.admit(b"2" * 40) is None
