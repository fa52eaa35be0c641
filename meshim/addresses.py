"""Network addresses."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host, as a URL names it, is this machine: `localhost` or an address of the loopback range.

    Any other name returns False, wherever it resolves to.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
