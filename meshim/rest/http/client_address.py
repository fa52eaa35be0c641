"""Which client a request comes from, where a proxy in front says so in `X-Forwarded-For`.  Pure.

Each proxy appends the address of its peer.  So the header is read from its end, and only as far as trusted proxies have
written it: the first address from the right that is no trusted proxy is the client.  What stands left of it was written
by the client itself.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

FORWARDING_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""A request with one of these has come through a proxy."""


class TrustedProxies:
    """The networks whose addresses are proxies of this mesh."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]

    def trusts(self, host: str) -> bool:
        """Whether this address is one of a proxy."""
        address = _parsed(host)
        return address is not None and any(address in network for network in self._networks)

    def client_of(self, peer: str, forwarded: Sequence[str]) -> str:
        """Return the address of the client of a request.

        `peer` is the other end of the connection, `forwarded` are the values of all headers X-Forwarded-For, in their
        order.  An entry that is no address ends the search: the proxy that passed it on counts as the client.
        """
        client = peer
        for entry in reversed([entry for value in forwarded for entry in value.split(",")]):
            if not self.trusts(client):
                break
            address = _parsed(_without_port(entry.strip()))
            if address is None:
                break
            client = str(address)
        return client


def _parsed(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # IPv4 on a socket of IPv6


def _without_port(entry: str) -> str:
    """The address in HOST, HOST:PORT, [IPv6] or [IPv6]:PORT, as some proxies write it."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, _ = entry.partition(":")
    return host if colon and entry.count(":") == 1 else entry
