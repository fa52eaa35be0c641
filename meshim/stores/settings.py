"""Reads from backends, as they run, the settings that a loss of power makes matter; `durability.py` judges them."""

import asyncio
import io
from typing import Any

import httpx
import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from meshim.errors import BackendUnavailable
from meshim.runtime.log import Log
from meshim.stores import durability, engine
from meshim.stores.durability import Setting, Verdict
from meshim.stores.nats_client import NatsClient
from meshim.topology import Backends

_MONITOR_TIMEOUT_S = 1.5
_VARIABLES = ("innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog", "innodb_doublewrite")


class _Config(msgspec.Struct):
    sync_always: bool = False
    sync_interval: int = 0
    """Nanoseconds."""


class _Cluster(msgspec.Struct):
    cluster_size: int = 1


class _Jsz(msgspec.Struct):
    """Answer of `/jsz` of nats-server 2.10 and later."""

    server_id: str = ""
    disabled: bool = False
    config: _Config | None = None
    meta_cluster: _Cluster | None = None


_jsz = msgspec.json.Decoder(_Jsz)


async def of_nats(server: str, monitor: str | None) -> list[Setting]:
    """Of the run of a server that calls itself `server` when one connects to it."""
    if monitor is None:
        return [durability.jetstream_unknown("set `durability.nats_monitor` in the topology to its monitoring URL")]
    try:
        async with httpx.AsyncClient(timeout=_MONITOR_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(f"{monitor.rstrip('/')}/jsz", params={"config": "true"})
        told = _jsz.decode(answer.raise_for_status().content)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        return [durability.jetstream_unknown(f"its monitoring did not answer ({type(error).__name__})")]
    if told.server_id != server:
        return [durability.jetstream_unknown("`durability.nats_monitor` is that of another server")]
    if told.meta_cluster is not None and told.meta_cluster.cluster_size > 1:
        return [durability.jetstream_unknown("it is one of several servers, each with a configuration of its own")]
    if told.disabled or told.config is None:
        return [durability.jetstream_unknown("it runs without JetStream")]
    return [durability.jetstream(told.config.sync_always, told.config.sync_interval / 1e9)]


def of_sql(connection: Connection) -> list[Setting]:
    """Of a connection as meshim makes them; takes one round trip."""
    if connection.dialect.name == "sqlite":
        journal_mode: Any = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        synchronous: Any = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        return durability.sqlite(str(journal_mode), int(synchronous))
    try:  # SHOW VARIABLES would take ten times as long
        values = connection.exec_driver_sql(f"SELECT {', '.join(f'@@global.{name}' for name in _VARIABLES)}").one()
    except DBAPIError as error:
        if not engine.is_unknown_variable(error):
            raise
        return durability.innodb({})
    return durability.innodb(dict(zip(_VARIABLES, map(str, values), strict=True)))


async def of_backends(backends: Backends, monitor: str | None) -> list[Setting]:
    """Of both, over connections made for the purpose; one that does not answer is unknown."""
    nats, sql = await asyncio.gather(_of_nats_at(backends.nats, monitor), asyncio.to_thread(_of_sql_at, backends.sql))
    return [*nats, *sql]


async def _of_nats_at(url: str, monitor: str | None) -> list[Setting]:
    try:
        client = await NatsClient.connect(url, Log("settings", "nats", io.StringIO()), timeout_s=_MONITOR_TIMEOUT_S)
    except BackendUnavailable:
        return [durability.jetstream_unknown("it does not answer")]
    try:
        return await of_nats(client.server, monitor)
    finally:
        await client.close()


def _of_sql_at(url: str) -> list[Setting]:
    database = engine.create(url, 1)
    try:
        with database.execution_options(**{engine.SNAPSHOT: True}).begin() as connection:
            return of_sql(connection)
    except SQLAlchemyError as error:
        why = f"It is not known how the database syncs: {engine.reason(error)}."
        return [Setting("sql", "", "", Verdict.UNKNOWN, why)]
    finally:
        database.dispose()
