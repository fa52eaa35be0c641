"""Sealing, tokens, passwords, and the master key."""

import base64
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.errors import Code, PeerError, SealBroken, UsageError
from meshim.runtime import crypto
from meshim.runtime.crypto import MasterKey

KEY = bytes(range(32))


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_a_sealed_text_opens(plaintext: bytes, associated_data: bytes) -> None:
    sealed = crypto.seal(KEY, plaintext, associated_data)
    assert len(sealed) == len(plaintext) + 28
    assert crypto.open_sealed(KEY, sealed, associated_data) == plaintext


def test_a_flipped_bit_is_detected() -> None:
    sealed = crypto.seal(KEY, b"hi", b"from alice")
    for bit in range(len(sealed) * 8):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            crypto.open_sealed(KEY, bytes(altered), b"from alice")


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27])
def test_a_truncated_text_is_detected(length: int) -> None:
    with pytest.raises(SealBroken):
        crypto.open_sealed(KEY, crypto.seal(KEY, b"", b"")[:length], b"")


def test_another_key_or_other_associated_data_does_not_open_it() -> None:
    sealed = crypto.seal(KEY, b"hi", b"from alice")
    with pytest.raises(SealBroken):
        crypto.open_sealed(KEY, sealed, b"from mallory")
    with pytest.raises(SealBroken):
        crypto.open_sealed(crypto.new_content_key(), sealed, b"from alice")


def test_nonces_are_not_repeated() -> None:
    assert len({crypto.seal(KEY, b"", b"")[:12] for _ in range(1000)}) == 1000


def test_tokens_have_one_text_form() -> None:
    token = crypto.new_token()
    text = crypto.format_token(token)
    assert len(text) == 43
    assert "=" not in text
    assert crypto.parse_token(text) == token
    assert len(crypto.hash_token(token)) == 32


@pytest.mark.parametrize(
    "text", ["", "x", "x" * 42, "x" * 44, "=" * 43, "ü" * 43, "/" * 43, "A" * 42 + "B", "A" * 42 + "=", " " * 43]
)
def test_an_invalid_token_is_refused(text: str) -> None:
    with pytest.raises(PeerError) as refused:
        crypto.parse_token(text)
    assert refused.value.code is Code.BAD_TOKEN


def test_a_password_is_hashed_with_a_salt_and_normalized() -> None:
    stored = crypto.hash_password("pässword")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert crypto.verify_password("pässword", stored)
    assert crypto.verify_password("pa\u0308ssword", stored), "the decomposed form is the same password"
    assert not crypto.verify_password("password", stored)
    assert crypto.hash_password("pässword") != stored, "the hash has no salt"


def test_verifying_the_password_of_an_unknown_user_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []

    class Spy:
        @staticmethod
        def verify_phc_encoded(password: bytes, phc: str) -> None:
            verified.append(phc)

    monkeypatch.setattr(crypto, "Argon2id", Spy)
    assert not crypto.verify_password("x", None)
    (decoy,) = verified
    monkeypatch.undo()
    real = crypto.hash_password("x")
    assert decoy.split("$")[:4] == real.split("$")[:4], "the decoy has another algorithm, memory or number of passes"
    assert [len(part) for part in decoy.split("$")] == [len(part) for part in real.split("$")]
    assert not crypto.verify_password("x", None), "the decoy is not a well-formed hash"


def test_a_wrapped_content_key_opens_only_in_its_context() -> None:
    master = MasterKey(KEY)
    content = crypto.new_content_key()
    wrapped = master.wrap(content, crypto.relation_context(7, 3, 1))
    assert master.unwrap(wrapped, crypto.relation_context(3, 7, 1)) == content
    for context in [crypto.relation_context(3, 7, 2), crypto.relation_context(3, 8, 1)]:
        with pytest.raises(SealBroken, match="master key"):
            master.unwrap(wrapped, context)


def loaded(path: Path) -> MasterKey:
    key = MasterKey.load(path)
    assert key is not None
    return key


def test_a_master_key_is_made_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "data" / "master.key"
    assert MasterKey.load(path) is None
    assert MasterKey.create(path)
    made = loaded(path)
    assert not MasterKey.create(path), "the file is there"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 32
    assert [entry.name for entry in path.parent.iterdir()] == ["master.key"]
    wrapped = made.wrap(KEY, b"")
    assert loaded(path).unwrap(wrapped, b"") == KEY


def test_processes_that_start_together_get_the_same_master_key(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    keys: list[MasterKey] = []
    made: list[bool] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        made.append(MasterKey.create(path))
        keys.append(loaded(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrapped = keys[0].wrap(KEY, b"")
    assert [master.unwrap(wrapped, b"") for master in keys] == [KEY] * 8
    assert made.count(True) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_master_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(KEY)
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        MasterKey.load(path)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_master_key_of_the_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(os.urandom(size))
    path.chmod(0o600)
    with pytest.raises(UsageError, match="32 bytes"):
        MasterKey.load(path)


def test_a_master_key_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for act in (MasterKey.load, MasterKey.create):
        with pytest.raises(UsageError, match="cannot be"):
            act(tmp_path / "file" / "master.key")


def test_phc_parts_are_base64() -> None:
    *_, salt, digest = crypto.hash_password("x").split("$")
    assert len(base64.b64decode(salt + "==")) == 16
    assert len(base64.b64decode(digest + "=")) == 32
