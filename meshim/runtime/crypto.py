"""Secrets: passwords, tokens, content keys, and the master key that wraps them at rest.

Everything sealed is `nonce || ciphertext || tag` of AES-256-GCM with a random 96-bit nonce.
Random nonces are safe for 2**32 messages under one key (NIST SP 800-38D, 8.3): far more than
one pair of users ever sends.  Passwords are hashed with Argon2id at the second choice of the
OWASP password storage cheat sheet (19 MiB, two passes, one lane) and kept as PHC strings, which
carry their parameters: they can be raised later without touching what is stored.
"""

import base64
import binascii
import hashlib
import secrets
import unicodedata
from pathlib import Path

from cryptography.exceptions import InvalidKey, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from meshim.errors import Code, PeerError, SealBroken, UsageError
from meshim.runtime import private_file

KEY_BYTES = 32
NONCE_BYTES = 12
TOKEN_BYTES = 32

_ARGON2_MEMORY_KIB = 19 * 1024
_ARGON2_PASSES = 2
_ARGON2_LANES = 1
_SALT_BYTES = 16
_HASH_BYTES = 32


# ---------------------------------------------------------------- content


def new_content_key() -> bytes:
    """Return a key for `seal`: 32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def seal(key: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Encrypt `plaintext` and authenticate `associated_data` with it; the result is 28 bytes longer."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated_data)


def open_sealed(key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    """Return the plaintext; raises `SealBroken` unless it was sealed with this key and these associated data."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data)
    except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
        raise SealBroken("The message does not open: it was altered, or sealed with another key.") from None


# ---------------------------------------------------------------- tokens


def new_token() -> bytes:
    """Return a token: 32 random bytes.  Greetings carry it raw, REST as `format_token`, stores as `hash_token`."""
    return secrets.token_bytes(TOKEN_BYTES)


def format_token(token: bytes) -> str:
    """Return the token as base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def parse_token(text: str) -> bytes:
    """Return the token that `format_token` wrote; raises `PeerError` (BAD_TOKEN) for any other text."""
    try:
        token = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        token = b""
    if len(token) != TOKEN_BYTES or format_token(token) != text:  # Python also takes other alphabets and stray bits
        raise PeerError(Code.BAD_TOKEN, "This is not a token: log in again.")
    return token


def hash_token(token: bytes) -> bytes:
    """Return the SHA-256 of a token, which stores keep.  A token is random: it needs neither salt nor stretching."""
    return hashlib.sha256(token).digest()


# ---------------------------------------------------------------- passwords


def hash_password(password: str) -> str:
    """Return the hash as a PHC string.  It takes about 27 ms and 19 MiB, without holding the GIL."""
    argon2 = Argon2id(
        salt=secrets.token_bytes(_SALT_BYTES),
        length=_HASH_BYTES,
        iterations=_ARGON2_PASSES,
        lanes=_ARGON2_LANES,
        memory_cost=_ARGON2_MEMORY_KIB,
    )
    return argon2.derive_phc_encoded(_password_bytes(password))


def verify_password(password: str, password_hash: str | None) -> bool:
    """Return whether the password is right.  For None (no such user) it takes as long and returns False."""
    try:
        Argon2id.verify_phc_encoded(_password_bytes(password), password_hash or _unknown_user_hash())
    except InvalidKey:
        return False
    return password_hash is not None


def _password_bytes(password: str) -> bytes:
    # The same password typed on another keyboard may be other code points (RFC 8265, 4.2: NFC).
    return unicodedata.normalize("NFC", password).encode()


def _unknown_user_hash() -> str:
    """Return a hash that no password has.  Checking it takes as long, so that time does not tell which names exist."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (_SALT_BYTES, _HASH_BYTES)
    )
    return f"$argon2id$v=19$m={_ARGON2_MEMORY_KIB},t={_ARGON2_PASSES},p={_ARGON2_LANES}${salt}${digest}"


# ---------------------------------------------------------------- the master key


def relation_context(user: int, peer: int, version: int) -> bytes:
    """Return the context that a content key is wrapped in: the pair, in either order, and the version of the key."""
    low, high = sorted((user, peer))
    return f"relation {low} {high} {version}".encode()


class MasterKey:
    """Wraps content keys at rest.  Its holder can read all stored messages if they have the database too."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._key = key

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Return the key sealed: it opens only in the same context."""
        return seal(self._key, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the key; raises `SealBroken` when another master key or another context wrapped it."""
        try:
            return open_sealed(self._key, wrapped, context)
        except SealBroken:
            raise SealBroken("A content key does not open: this is not the master key it was wrapped with.") from None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this key from others and reveal nothing else of it."""
        return hashlib.sha256(b"meshim master key " + self._key).hexdigest()[:16]

    @staticmethod
    def create(path: Path) -> bool:
        """Make the file of a new key; return False and change nothing when it exists.

        Raises `UsageError` when it cannot be made.
        """
        return private_file.create(path, secrets.token_bytes(KEY_BYTES), "master key")

    @classmethod
    def load(cls, path: Path) -> "MasterKey | None":
        """Return the key in the file, which has mode 0600; None when there is no file.

        Raises `UsageError` when other users may read the file, or it is not 32 bytes long.
        """
        try:
            key = private_file.read(path, KEY_BYTES + 1, "master key")
        except FileNotFoundError:
            return None
        if len(key) != KEY_BYTES:
            raise UsageError(f"The master key {path} must be {KEY_BYTES} bytes long: restore it from your backup.")
        return cls(key)
