"""Passwords while threads or memory are short: refused as busy, and no bug."""

import threading

import pytest

from meshim.errors import ApiError
from meshim.rest.passwords import Passwords
from meshim.runtime import crypto


async def test_no_memory_for_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_password(password: str) -> str:
        raise MemoryError

    monkeypatch.setattr(crypto, "hash_password", hash_password)
    passwords = Passwords()
    with pytest.raises(ApiError, match="no memory to spare") as refused:
        await passwords.hash("secret")
    assert (refused.value.code, refused.value.status) == ("busy", 503)
    passwords.close()


async def test_no_thread_for_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(ApiError, match="no memory to spare"):
            await passwords.verify("secret", None)
    assert await passwords.verify("secret", None) is False
    passwords.close()


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
