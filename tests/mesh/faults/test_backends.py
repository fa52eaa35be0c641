"""The servers that fixtures and `meshim up` start are real and private; NATS keeps its data over a crash."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import nats
import nats.errors
import pytest
import redis
import sqlalchemy

from meshim.deploy.embedded import Nats, Valkey
from meshim.deploy.probe import probe
from meshim.errors import BackendUnavailable
from tests.servers import running


async def test_every_backend_answers(valkey_url: str, nats_url: str, mariadb_url: str, sqlite_url: str) -> None:
    for url in (valkey_url, nats_url, mariadb_url, sqlite_url):
        await probe(url)


def test_each_database_is_fresh(new_mariadb: Callable[[], str]) -> None:
    for _ in range(2):
        engine = sqlalchemy.create_engine(new_mariadb(), poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE seen (id INT)"))


async def test_a_client_without_credentials_is_refused(valkey_url: str, nats_url: str) -> None:
    for url, reason in ((valkey_url, "auth"), (nats_url, "Auth")):
        parts = urlsplit(url)
        anonymous = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with pytest.raises(BackendUnavailable, match=reason) as refused:
            await probe(anonymous)
        assert anonymous in refused.value.sentence


async def test_the_monitor_of_nats_answers_only_under_its_secret_path(tmp_path: Path) -> None:
    backend = Nats(tmp_path)
    with running(backend):
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{backend.monitor}/jsz")).status_code == 200
            without_path = urlsplit(backend.monitor)._replace(path="").geturl()
            for path in ("/", "/jsz", "/varz", "/connz", "/subsz"):
                assert (await client.get(without_path + path)).status_code == 404


def test_credentials_are_private(tmp_path: Path) -> None:
    for backend in (Valkey(tmp_path / "valkey"), Nats(tmp_path / "nats")):
        config = Path(backend.command()[-1])
        assert stat.S_IMODE(os.stat(config).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(config.parent).st_mode) == 0o700


def test_valkey_restarts_empty_on_the_same_port(tmp_path: Path) -> None:
    backend = Valkey(tmp_path)
    with running(backend) as first, redis.from_url(first.url) as client:
        client.set("lease", "old")
    with running(backend) as second:
        assert second.url == first.url
        with redis.from_url(second.url) as client:
            assert client.get("lease") is None


async def test_jetstream_keeps_an_acknowledged_message_over_kill_9(tmp_path: Path) -> None:
    backend = Nats(tmp_path)
    with running(backend) as first:
        client = await nats.connect(first.url)
        await client.jetstream().add_stream(name="log", subjects=["log"])
        acknowledged = await client.jetstream().publish("log", b"m1")
        await client.close()
        os.kill(first.pid, 9)
    with running(backend) as second:
        assert second.url == first.url
        client = await nats.connect(second.url)
        message = await client.jetstream().get_msg("log", acknowledged.seq)
        await client.close()
    assert message.data == b"m1"


async def test_an_unreachable_backend_is_one_sentence_without_its_password() -> None:
    with pytest.raises(BackendUnavailable) as failed:
        await probe("redis://:secret@127.0.0.1:1/0")
    assert "secret" not in failed.value.sentence
    assert "\n" not in failed.value.sentence
