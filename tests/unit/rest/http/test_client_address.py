"""Which client a request comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.rest.http.client_address import TrustedProxies

PROXIES = TrustedProxies(["127.0.0.0/8", "::1/128", "10.1.0.0/16", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # a client that forges the header
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["192.0.2.66, 198.51.100.1"], "198.51.100.1"),  # the client had sent the first one
        ("127.0.0.1", ["192.0.2.66", "198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["192.0.2.66, 198.51.100.1, 10.1.2.3"], "198.51.100.1"),
        ("10.1.2.3", ["10.1.9.9"], "10.1.9.9"),
        ("::ffff:127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::1", ["2001:db8:2::7, 2001:db8:1::1"], "2001:db8:2::7"),
        ("127.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("127.0.0.1", ["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        ("127.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1, "], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1, _hidden, 10.1.2.3"], "10.1.2.3"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    assert PROXIES.client_of(peer, forwarded) == client


def test_without_trusted_proxies_the_header_is_ignored() -> None:
    assert TrustedProxies([]).client_of("127.0.0.1", ["198.51.100.1"]) == "127.0.0.1"


@given(st.lists(st.text(max_size=40)), st.ip_addresses().map(str))
def test_nothing_that_a_client_writes_changes_its_address(written: list[str], client: str) -> None:
    """A proxy appends the address of the client to whatever the client has sent."""
    proxies = TrustedProxies(["127.0.0.1/32"])
    if not proxies.trusts(client):
        found = proxies.client_of("127.0.0.1", [*written, client])
        assert found == proxies.client_of("127.0.0.1", [client])
