"""A section for `docs/performance.md`: meshim beside other servers, from the results of the peers' harness."""

import json
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

_HEAD = """## Beside other servers

The same work for each server, one after the other on one machine, every server fresh for each measurement, the load
from one process; medians. A message counts when its sender holds the receipt of the recipient. µs are CPU of all
processes of the server for each message. None of the others encrypts here, and none syncs to disk before it
acknowledges; two of them (zmq-proxy, nats) know no users or keep nothing. Offline: 20,000 messages stored for 100
offline users, then collected by all of them at once. Idle: 2,000 connections.

| | online/s | µs each | at 1,000/s: median / 99 % ms | µs each | stored/s (µs) | collected/s (µs) | KiB | connects/s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def table(results: Path) -> str:
    """Return the section, with the medians of every server in the harness's `results.jsonl`."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in results.read_text().splitlines():
        each = json.loads(line)
        if "error" not in each:
            seen.setdefault((each["peer"], each["work"]), []).append(each)

    def figure(peer: str, work: str, name: str, form: str) -> str:
        values = [each[name] for each in seen.get((peer, work), []) if each.get(name) is not None]
        return format(median(values), form) if values else "-"

    rows = []
    for peer in dict.fromkeys(peer for peer, _ in seen):
        cell = partial(figure, peer)
        rows.append(
            f"| {peer} | {cell('w1_closed', 'rate', ',.0f')} | {cell('w1_closed', 'srv_us', ',.1f')} "
            f"| {cell('w1_open', 'p50_ms', '.2f')} / {cell('w1_open', 'p99_ms', '.2f')} "
            f"| {cell('w1_open', 'srv_us', ',.0f')} "
            f"| {cell('w2_store', 'rate', ',.0f')} ({cell('w2_store', 'srv_us', ',.0f')}) "
            f"| {cell('w2_drain', 'rate', ',.0f')} ({cell('w2_drain', 'srv_us', ',.0f')}) "
            f"| {cell('w3_idle', 'kib_per_conn', '.1f')} | {cell('w3_idle', 'rate', ',.0f')} |"
        )
    return _HEAD + "\n".join(rows) + "\n"
