"""All faults of a file at once, and the warnings about files that work."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim import topology
from meshim.errors import TopologyError
from meshim.topology import (
    Backends,
    ConnectorListener,
    Listener,
    RestListener,
    Security,
    Topology,
    WebSocketListener,
    structure,
)

ROOT = Path(__file__).parents[3]
DEFAULT = topology.default()


def written(folder: Path, mesh: Topology, mode: int = 0o600) -> Path:
    file = folder / "mesh.yaml"
    file.write_text(topology.dump(mesh), encoding="utf-8")
    file.chmod(mode)
    return file


def paths(findings: list[topology.Finding]) -> list[str]:
    assert all(finding.sentence == f"{finding.text} - at `{finding.path}`." for finding in findings)
    return [finding.path for finding in findings]


# ---------------------------------------------------------------- faults


def test_every_wrong_field_is_named(tmp_path: Path) -> None:
    content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(DEFAULT))
    del content["writers"]
    content["connectors"][1] |= {"nmae": "c2", "bind": 7}
    content["timers"] |= {"sweep_s": 0, "lease_ttl_s": "long"}
    content["security"]["origins"] = ["https://chat.test", 5]
    content["backends"] = None
    file = tmp_path / "mesh.yaml"
    file.write_bytes(msgspec.yaml.encode(content))
    found = topology.inspect(file)
    assert found.topology is None
    assert sorted(paths(found.faults)) == [
        "$",
        "$.backends",
        "$.connectors[1]",
        "$.connectors[1].bind",
        "$.security.origins[1]",
        "$.timers.lease_ttl_s",
        "$.timers.sweep_s",
    ]
    with pytest.raises(TopologyError, match=r"\(and 6 more: `meshim topology check` lists all faults\)\.$"):
        topology.load(file)


def test_every_relation_that_does_not_hold_is_named(tmp_path: Path) -> None:
    mesh = msgspec.structs.replace(
        DEFAULT,
        connectors=(ConnectorListener("c1", "tcp://0.0.0.0:0"), ConnectorListener("c1", "udp://h:1")),
        backends=Backends(redis="http://h"),
        timers=msgspec.structs.replace(DEFAULT.timers, lease_renew_s=2.0, client_heartbeat_s=20.0),
        limits=msgspec.structs.replace(DEFAULT.limits, log_bytes=1 << 20),
    )
    found = topology.inspect(written(tmp_path, mesh))
    assert paths(found.faults) == [
        "$.connectors[1].name",
        "$.connectors[1].bind",
        "$.connectors[0]",
        "$.backends.redis",
        "$.timers.lease_renew_s",
        "$.timers.client_heartbeat_s",
        "$.limits.log_bytes",
    ]
    assert found.warnings == [], "they are about a file that works"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(st.data())
def test_there_are_faults_exactly_where_it_does_not_convert(data: st.DataObject) -> None:
    content: Any = msgspec.json.decode(msgspec.json.encode(DEFAULT))
    for _ in range(data.draw(st.integers(0, 3))):
        part = content
        while isinstance(part, dict | list) and part:  # somewhere in the tree
            key = data.draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
            if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
                part[key] = data.draw(anything)
                break
            part = part[key]
    try:
        msgspec.convert(content, Topology)
    except msgspec.ValidationError as error:
        faults = structure.faults(content)
        reason, _, path = str(error).partition(" - at `")
        assert (path.rstrip("`") or "$", reason) in {(fault.path, fault.text) for fault in faults}
    else:
        assert structure.faults(content) == []


@given(anything)
def test_any_content_is_faulty(content: object) -> None:
    assert structure.faults(content)


# ---------------------------------------------------------------- warnings


def warnings(tmp_path: Path, mesh: Topology, mode: int = 0o600) -> dict[str, str]:
    """Path to text."""
    found = topology.inspect(written(tmp_path, mesh, mode))
    assert found.faults == []
    assert len(paths(found.warnings)) == len(set(paths(found.warnings)))
    return {warning.path: warning.text for warning in found.warnings}


def test_the_default_has_no_warnings(tmp_path: Path) -> None:
    assert topology.inspect(ROOT / "topology.yaml").warnings == []
    assert warnings(tmp_path, DEFAULT, 0o644) == {}


def test_the_placeholders_of_the_shipped_file_are_warned_about() -> None:
    found = topology.inspect(ROOT / "topology.mysql.yaml")
    assert found.faults == []
    text = {warning.path: warning.text for warning in found.warnings}["$.backends.sql"]
    assert "'change-me'" in text or "every user of this host can read it" in text
    assert any("'change-me' is that of the example" in warning.text for warning in found.warnings)


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("chat.example.org", True),
        ("example.com", True),
        ("chat.example", True),
        ("chat.example.org.de", False),
        ("myexample.org", False),
        ("198.51.100.7", False),
    ],
)
def test_hosts_of_examples_are_warned_about(tmp_path: Path, host: str, warned: bool) -> None:
    mesh = msgspec.structs.replace(
        DEFAULT,
        connectors=(
            ConnectorListener(
                "c1", "tcp://0.0.0.0:7100", f"tcp://{host}:7100", WebSocketListener("ws://[::]:0", f"wss://{host}/c1")
            ),
        ),
        transfers=(Listener("t1", "tcp://0.0.0.0:7200", f"tcp://{host}:7200"),),
        backends=Backends(f"redis://{host}:6379", f"nats://{host}:4222", f"mysql+pymysql://m:secret@{host}/m"),
        security=Security(origins=(f"https://{host}", "*")),
    )
    expected = {
        "$.backends.redis",
        "$.backends.nats",
        "$.backends.sql",
        "$.connectors[0].advertise",
        "$.connectors[0].websocket.advertise",
        "$.transfers[0].advertise",
        "$.security.origins[0]",
    }
    assert warnings(tmp_path, mesh).keys() == (expected if warned else set())


LOCAL = ConnectorListener("local")
BEHIND_PROXY = ConnectorListener("proxied", websocket=WebSocketListener(advertise="wss://chat.test/c"))
PUBLIC = ConnectorListener("public", "tcp://198.51.100.7:7100")
LOCAL_WEBSOCKET = ConnectorListener("both", websocket=WebSocketListener())


@pytest.mark.parametrize("rest", ["http://0.0.0.0:8100", "http://[::]:8100", "http://198.51.100.7:8100"])
def test_connectors_that_clients_of_a_public_rest_cannot_reach_are_warned_about(tmp_path: Path, rest: str) -> None:
    mesh = msgspec.structs.replace(DEFAULT, connectors=(LOCAL, BEHIND_PROXY, PUBLIC, LOCAL_WEBSOCKET))
    assert warnings(tmp_path, mesh) == {}
    mesh = msgspec.structs.replace(mesh, rest=(RestListener("r1"), RestListener("r2", rest)))
    found = warnings(tmp_path, mesh)
    assert list(found) == ["$.connectors[0].bind", "$.connectors[3].bind"]
    assert found["$.connectors[0].bind"].startswith("Clients elsewhere reach REST and not this connector")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
@pytest.mark.parametrize("password", [":secret", ""])
def test_a_file_with_a_password_that_every_user_can_read(
    tmp_path: Path, mode: int, warned: bool, password: str
) -> None:
    mesh = msgspec.structs.replace(DEFAULT, backends=Backends(sql=f"mysql+pymysql://meshim{password}@db/meshim"))
    found = warnings(tmp_path, mesh, mode)
    assert bool(found) == (warned and password != "")
    if found:
        assert re.search(rf"every user .* \(mode {mode:04o}\): chmod 600 ", found["$.backends.sql"])
    assert "secret" not in str(found)
