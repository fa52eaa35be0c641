"""The file of the CURVE key pair that all connectors share behind a load balancer (adr/0037).

It is a certificate of CZMQ: ZPL (RFC 4) with `public-key` and `secret-key` in Z85.  CZMQ and pyzmq (`zmq.auth`) read it
too, and theirs are read here.
"""

import re
from pathlib import Path

import zmq

from meshim.errors import UsageError
from meshim.runtime import private_file
from meshim.runtime.sockets.options import KeyPair

_WHAT = "connector key"
_BYTES_MAX = 4_096
"""A file that `create` made has 300."""
_TEXT = """\
#   CURVE key pair of the connectors of a meshim mesh, made by `meshim key new`.
#   A process that has it can stand in for a connector: keep it as secret as a password.

curve
    public-key = "{public}"
    secret-key = "{secret}"
"""
_LINE = re.compile(r'^[ \t]*(public|secret)-key[ \t]*=[ \t]*"([^"\n]*)"[ \t\r]*$', re.MULTILINE)


def create(path: Path) -> bytes:
    """Make a file with a new key pair, of mode 0600; return its public key.

    Raises `UsageError` when the file exists already, or cannot be made.
    """
    keys = KeyPair.new()
    content = _TEXT.format(public=keys.public.decode(), secret=keys.secret.decode()).encode()
    if not private_file.create(path, content, _WHAT):
        raise UsageError(f"{path} exists already, and clients may know its key: choose another name.")
    return keys.public


def load(path: Path) -> KeyPair:
    """Return the key pair in the file.

    Raises `UsageError` when the file is missing or cannot be read, when users other than its owner may access it, and
    when it does not hold exactly one key pair.
    """
    try:
        content = private_file.read(path, _BYTES_MAX + 1, _WHAT)
    except FileNotFoundError:
        raise UsageError(
            f"The {_WHAT} {path} does not exist: make it with `meshim key new {path}`, once for all connectors."
        ) from None
    fields = _LINE.findall(content.decode(errors="replace"))
    if len(content) > _BYTES_MAX or sorted(name for name, _ in fields) != ["public", "secret"]:
        raise UsageError(
            f"The {_WHAT} {path} is not as `meshim key new` makes it, with one public and one secret key: "
            "copy it again from where it was made."
        )
    found = dict(fields)
    if _public_of(found["secret"]) != found["public"]:
        raise UsageError(
            f"The {_WHAT} {path} does not hold a CURVE key pair: its public key is not that of its secret key. "
            "Copy it again from where it was made."
        )
    return KeyPair(found["public"].encode(), found["secret"].encode())


def _public_of(secret: str) -> str | None:
    """The public key that belongs to a secret key; None when that is no key."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (ValueError, zmq.ZMQError):
        return None
