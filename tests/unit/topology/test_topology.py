"""A topology is loaded as written, or refused in one sentence with path and reason."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshim import topology
from meshim.errors import TopologyError
from meshim.topology import (
    Backends,
    ConnectorListener,
    Limits,
    Listener,
    RestListener,
    Security,
    Timers,
    Topology,
    WebSocketListener,
    Worker,
)

ROOT = Path(__file__).parents[3]

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    unique = draw(st.lists(names, min_size=4, max_size=12, unique=True))
    connector, transfer, writer, rest, *others = unique
    ports = iter(range(1_024, 2_048))

    def bind(scheme: str) -> str:
        host = draw(
            st.sampled_from(["127.0.0.1", "[::1]", "chat.example.org", "*"] if scheme == "tcp" else ["127.0.0.1"])
        )
        return f"{scheme}://{host}:{draw(st.sampled_from([0, next(ports)]))}"

    def listener() -> tuple[str, str | None]:
        address = bind("tcp")
        needed = "*" in address
        return address, f"tcp://198.51.100.7:{next(ports)}" if needed or draw(st.booleans()) else None

    def websocket() -> WebSocketListener | None:
        return draw(
            st.sampled_from(
                [
                    None,
                    WebSocketListener(),
                    WebSocketListener("ws://[::]:0", "wss://chat.example/c1"),
                    WebSocketListener("wss://127.0.0.1:0", None, "certificate.pem", "key.pem"),
                ]
            )
        )

    return Topology(
        connectors=tuple(ConnectorListener(name, *listener(), websocket()) for name in (connector, *others)),
        transfers=(Listener(transfer, *listener()),),
        writers=(Worker(writer),),
        rest=(RestListener(rest, bind("http")),),
        namespace=draw(names),
        backends=Backends(sql=draw(st.sampled_from(["embedded", "sqlite:///a.db", "mysql+pymysql://u:p@h/meshim"]))),
        timers=Timers(relation_ttl_s=draw(st.floats(5, 1_000)), sweep_s=draw(st.floats(0.001, 1e6))),
        limits=Limits(partitions=draw(st.integers(1, 64)), sessions=draw(st.integers(1, 100_000))),
    )


@given(topologies())
def test_a_dumped_topology_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, written: Topology) -> None:
    file = tmp_path_factory.getbasetemp() / "topology.yaml"
    file.write_text(topology.dump(written), encoding="utf-8")
    assert topology.load(file) == written


@given(st.binary(max_size=200))
@example(b"[" * 12_000)
@example(b"{a: " * 12_000)
@example(b"&a [*a]")
@example(b"connectors: " + b"9" * 5_000)
@example(b"connectors: 2026-99-99")
@example(b"? [a]\n: b")
def test_any_bytes_are_a_topology_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    assert_one_sentence(file)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)


@given(st.sampled_from(["timers", "limits", "backends", "security"]), st.data())
def test_any_value_of_a_known_field_is_valid_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, part: str, data: st.DataObject
) -> None:
    written: dict[str, Any] = msgspec.to_builtins(topology.default())
    field = data.draw(st.sampled_from(sorted(written[part])))
    written[part][field] = data.draw(scalars)
    file = tmp_path_factory.getbasetemp() / "value.yaml"
    file.write_bytes(msgspec.yaml.encode(written))
    assert_one_sentence(file)


def assert_one_sentence(file: Path) -> None:
    refused = None
    try:
        topology.load(file)
    except TopologyError as error:
        refused = error.sentence
    if refused is not None:
        assert refused.startswith(str(file))
        assert refused.endswith(".")
        assert "\n" not in refused


def test_the_default_is_the_file_of_the_repository() -> None:
    assert topology.load(ROOT / "topology.yaml") == topology.default()


def test_the_mysql_topology_is_the_same_mesh_on_other_backends() -> None:
    external = topology.load(ROOT / "topology.mysql.yaml")
    assert external.connectors == topology.default().connectors
    assert "embedded" not in msgspec.structs.astuple(external.backends)


WEBSOCKET_URL = "`$.connectors[0].websocket.advertise`"


def refusal(tmp_path: Path, old: str, new: str) -> str:
    """Return the sentence for the default topology after one change to its text."""
    text = topology.dump(topology.default())
    assert old in text
    file = tmp_path / "topology.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TopologyError) as refused:
        topology.load(file)
    return refused.value.sentence.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("old", "new", "where", "why"),
    [
        # unknown, missing and mistyped fields
        ("bind: tcp://127.0.0.1:0", "bnid: x", "`$.connectors[0]`", "unknown field `bnid`"),
        ("namespace:", "namespaze:", "`$`", "unknown field `namespaze`"),
        ("writers:\n- name: w1\n", "", "`$`", "missing required field `writers`"),
        ("sweep_s: 30.0", "sweep_s: soon", "`$.timers.sweep_s`", "Expected `float`, got `str`"),
        ("sweep_s: 30.0", "sweep_s: 0", "`$.timers.sweep_s`", "> 0"),
        ("sweep_s: 30.0", "sweep_s: .nan", "`$.timers.sweep_s`", "> 0"),
        ("sweep_s: 30.0", "sweep_s: .inf", "`$.timers.sweep_s`", "<="),
        ("partitions: 4", "partitions: 0", "`$.limits.partitions`", ">= 1"),
        ("partitions: 4", "partitions: 4.5", "`$.limits.partitions`", "Expected `int`"),
        # names
        ("name: c2", "name: c1", "`$.connectors[1].name`", "'c1' is taken by `$.connectors[0]`"),
        ("name: w1", "name: c1", "`$.writers[0].name`", "'c1' is taken by `$.connectors[0]`"),
        ("name: c1", "name: ../c1", "`$.connectors[0].name`", "regex"),
        ("name: c1", 'name: "c1\\n"', "`$.connectors[0].name`", "regex"),
        ("namespace: meshim", "namespace: a.b", "`$.namespace`", "regex"),
        ("writers:\n- name: w1", "writers: []", "`$.writers`", "at least one"),
        # addresses
        ("tcp://127.0.0.1:0", "udp://127.0.0.1:0", "`$.connectors[0].bind`", "does not begin with tcp://"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1", "`$.connectors[0].bind`", "no port"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", "`$.connectors[0].bind`", "0-65535"),
        ("tcp://127.0.0.1:0", "tcp://:7100", "`$.connectors[0].bind`", "no host"),
        ("tcp://127.0.0.1:0", "tcp://[::1:0", "`$.connectors[0].bind`", "Invalid IPv6"),
        ("tcp://127.0.0.1:0", "'tcp://127.0.0.1:\\t0'", "`$.connectors[0].bind`", "is not an address"),
        ("tcp://127.0.0.1:0", '"tcp://127.0.0.1:0\\n"', "`$.connectors[0].bind`", "a space"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:1/x", "`$.connectors[0].bind`", "more than host and port"),
        ("tcp://127.0.0.1:0", "tcp://0.0.0.0:7100", "`$.connectors[0]`", "`advertise`"),
        ("tcp://127.0.0.1:0", "tcp://*:7100", "`$.connectors[0]`", "`advertise`"),
        ("advertise: null", "advertise: tcp://[::]:7100", "`$.connectors[0].advertise`", "no address of one host"),
        ("advertise: null", "advertise: tcp://h:0", "`$.connectors[0].advertise`", "port is 0"),
        ("advertise: null", "advertise: h:7100", "`$.connectors[0].advertise`", "does not begin with tcp://"),
        ("ws://127.0.0.1:0", "http://127.0.0.1:0", "`$.connectors[0].websocket.bind`", "does not begin with ws://"),
        ("ws://127.0.0.1:0", "ws://127.0.0.1:1/x", "`$.connectors[0].websocket.bind`", "more than host and port"),
        ("ws://127.0.0.1:0", "ws://0.0.0.0:7100", "`$.connectors[0].websocket`", "`advertise`"),
        ("ws://127.0.0.1:0", "wss://127.0.0.1:0", "`$.connectors[0].websocket.tls_certificate_file`", "a certificate"),
        ("tls_key_file: null", "tls_key_file: k", "`$.connectors[0].websocket.tls_key_file`", "ws:// has no TLS"),
        *(
            ("ws://127.0.0.1:0\n    advertise: null", f"ws://127.0.0.1:0\n    advertise: {url}", WEBSOCKET_URL, why)
            for url, why in (
                ("http://h/", "neither with ws:// nor with wss://"),
                ("wss://h/c1?x=1", "more than host, port and path"),
                ("wss://u@h/", "more than host, port and path"),
                ("ws://h:0/", "port is 0"),
                ("ws:///c1", "no host"),
                ("ws://0.0.0.0:80", "no address of one host"),
            )
        ),
        *(
            ("origins: []", f"origins: ['{origin}']", "`$.security.origins[0]`", "no origin as browsers write it")
            for origin in ("https://chat.example/", "HTTPS://chat.example", "chat.example", "https://*", "", "null ")
        ),
        ("http://127.0.0.1:8100", "tcp://127.0.0.1:8100", "`$.rest[0].bind`", "does not begin with http://"),
        # backends
        ("redis: embedded", "redis: http://h", "`$.backends.redis`", "redis://HOST:PORT/0"),
        ("nats: embedded", "nats: nats://", "`$.backends.nats`", "nats://HOST:PORT"),
        ("nats: embedded", "nats: nats://h:x", "`$.backends.nats`", "nats://HOST:PORT"),
        ("nats_monitor: null", "nats_monitor: nats://h:8222", "`$.durability.nats_monitor`", "HOST:8222"),
        ("weak: refuse", "weak: ignore", "`$.durability.weak`", "'ignore'"),
        ("sql: embedded", "sql: mysql://h/db", "`$.backends.sql`", "mysql+pymysql://"),
        ("sql: embedded", "sql: mysql+pymysql://u:p@h", "`$.backends.sql`", "mysql+pymysql://"),
        ("sql: embedded", "sql: 'sqlite://'", "`$.backends.sql`", "sqlite:///FILE"),
        ("sql: embedded", "sql: 'sqlite:///:memory:'", "`$.backends.sql`", "sqlite:///FILE"),
        # relations
        (
            "lease_renew_s: 1.0",
            "lease_renew_s: 1.5",
            "`$.timers.lease_renew_s`",
            "Twice 1.5 s must be less than lease_ttl_s",
        ),
        ("lease_ttl_s: 3.0", "lease_ttl_s: 3.5", "`$.timers.lease_ttl_s`", "5 s and must be less than 5 s"),
        ("mesh_heartbeat_s: 0.5", "mesh_heartbeat_s: 0.75", "`$.timers.mesh_heartbeat_s`", "cuts a link"),
        (
            "delivery_timeout_s: 2.5",
            "delivery_timeout_s: 4",
            "`$.timers.delivery_timeout_s`",
            "every client waits (4 s)",
        ),
        ("ack_delay_s: 0.05", "ack_delay_s: 1.15", "`$.timers.ack_delay_s`", "delivery_timeout_s (2.5 s)"),
        ("client_silence_max_s: 150.0", "client_silence_max_s: 24.9", "`$.timers.client_silence_max_s`", "is granted"),
        ("client_silence_max_s: 150.0", "client_silence_max_s: 2147484", "`$.timers.client_silence_max_s`", "31 bits"),
        ("outcome_delay_s: 0.003", "outcome_delay_s: 0.05", "`$.timers.outcome_delay_s`", "Fifty times 0.05 s"),
        ("publish_timeout_s: 2.0", "publish_timeout_s: 4", "`$.timers.publish_timeout_s`", "every client waits (4 s)"),
        ("token_ttl_s: 2592000.0", "token_ttl_s: 7776000", "`$.timers.token_ttl_s`", "that was dropped is still taken"),
        ("client_heartbeat_s: 10.0", "client_heartbeat_s: 13", "`$.timers.client_heartbeat_s`", "cuts a client"),
        ("presence_silence_s: 5.0", "presence_silence_s: 3", "`$.timers.presence_silence_s`", "two answers of Redis"),
        ("partition_lease_s: 6.0", "partition_lease_s: 3", "`$.timers.lease_ttl_s`", "partition_lease_s"),
        (
            "body_bytes: 65536",
            "body_bytes: 262144",
            "`$.limits.body_bytes`",
            "262144 + 4096 must be at most frame_bytes",
        ),
        ("frame_bytes: 262144", "frame_bytes: 600000", "`$.limits.frame_bytes`", "at most bundle_bytes"),
        ("bundle_bytes: 524288", "bundle_bytes: 921601", "`$.limits.bundle_bytes`", "what NATS takes (921600)"),
        ("log_bytes: 4294967296", "log_bytes: 1000", "`$.limits.log_bytes`", "stream of dead letters"),
        ("sync_page_bytes: 1048576", "sync_page_bytes: 65536", "`$.limits.body_bytes`", "sync_page_bytes"),
        ("queue_bytes: 268435456", "queue_bytes: 65536", "`$.limits.bundle_bytes`", "queue_bytes"),
        ("client_window: 32", "client_window: 2000", "`$.limits.client_window`", "session_queue"),
        ("session_rate: 2000", "session_rate: 64", "`$.limits.session_rate`", "acknowledged after 2 s"),
        ("session_rate: 2000", "session_rate: 10", "`$.limits.session_rate`", "counts as 128 messages"),
        ("link_queue: 65536", "link_queue: 500", "`$.limits.bundle_items`", "link_queue"),
        ("mesh_window: 64", "mesh_window: 1025", "`$.limits.mesh_window`", "what an acknowledgement can list (1024)"),
        ("devices_per_user: 10", "devices_per_user: 513", "`$.limits.devices_per_user`", "an outcome can list (512)"),
    ],
)
def test_a_wrong_value_is_refused_with_path_and_reason(
    tmp_path: Path, old: str, new: str, where: str, why: str
) -> None:
    sentence = refusal(tmp_path, old, new)
    assert where in sentence
    assert why in sentence


def test_trusted_proxies_are_networks() -> None:
    def security(*networks: str) -> Topology:
        return msgspec.structs.replace(topology.default(), security=Security(trusted_proxies=networks))

    topology.check(security("10.1.0.0/16", "127.0.0.1", "::1/128"))
    for wrong in ("10.1.2.3/16", "proxy.example", "", "10.1.0.0/33"):
        with pytest.raises(TopologyError, match=r"no network like 10\.1\.0\.0/16.*security\.trusted_proxies\[1\]`"):
            topology.check(security("10.1.0.0/16", wrong))


def test_one_address_belongs_to_one_process(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    text = topology.dump(topology.default()).replace("tcp://127.0.0.1:0", "tcp://127.0.0.1:7100")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TopologyError, match=r"taken by `\$\.connectors\[0\]` - at `\$\.connectors\[1\]\.bind`"):
        topology.load(file)


ONE_KEY_EACH = Security()
BALANCER = "tcp://chat.example:5000"


def advertising(*addresses: str, group: str = "connectors", security: Security = ONE_KEY_EACH) -> Topology:
    """The default mesh with these advertised addresses in one group."""
    listeners = tuple(Listener(f"x{index}", advertise=address) for index, address in enumerate(addresses))
    return msgspec.structs.replace(topology.default(), security=security, **{group: listeners})


def test_connectors_behind_one_address_need_one_key() -> None:
    with pytest.raises(TopologyError) as refused:
        topology.check(advertising("tcp://other:5000", BALANCER, BALANCER))
    assert refused.value.sentence == (
        "'tcp://chat.example:5000' is advertised by `$.connectors[1]` too: give all connectors one key in "
        "`security.connector_key_file`, or each an address of its own - at `$.connectors[2].advertise`."
    )
    topology.check(advertising(BALANCER, BALANCER, security=Security(connector_key_file="connector.key")))
    topology.check(advertising(BALANCER, BALANCER, security=Security(curve=False)))


@pytest.mark.parametrize("security", [Security(), Security(curve=False), Security(connector_key_file="connector.key")])
def test_a_transfer_shares_its_address_with_no_process(security: Security) -> None:
    with pytest.raises(TopologyError, match=r"an address of its own - at `\$\.transfers\[1\]\.advertise`"):
        topology.check(advertising(BALANCER, BALANCER, group="transfers", security=security))
    both = advertising(BALANCER, security=security)
    with pytest.raises(TopologyError, match=r"by `\$\.connectors\[0\]` too: .* - at `\$\.transfers\[0\]\.advertise`"):
        topology.check(msgspec.structs.replace(both, transfers=(Listener("t1", advertise=BALANCER),)))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, "sweep_s: 30.0", "sweep_s: 30.0\n  sweep_s: 31.0")
    assert "'sweep_s' is given twice" in sentence
    lines = (tmp_path / "topology.yaml").read_text(encoding="utf-8").splitlines()
    assert f"line {lines.index('  sweep_s: 31.0') + 1}," in sentence, "the line of the second one"


def test_a_password_is_never_repeated(tmp_path: Path) -> None:
    assert "hunter2" not in refusal(tmp_path, "sql: embedded", "sql: mysql+pymysql://u:hunter2@h")


def test_a_missing_or_empty_file_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"none\.yaml does not exist: name a topology file"):
        topology.load(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(TopologyError, match=r"empty\.yaml: It is empty: a topology names connectors"):
        topology.load(tmp_path / "empty.yaml")
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        topology.load(tmp_path)


def test_some_module_reads_every_timer_and_limit() -> None:
    """A field that no module reads would promise an operator what it does not do."""
    modules = (path for path in (ROOT / "meshim").rglob("*.py") if path.parent.name != "topology")
    code = "\n".join(path.read_text(encoding="utf-8") for path in modules)
    read = set(re.findall(r"(?:timers|limits)\.(\w+)", code))
    assert {*Timers.__struct_fields__, *Limits.__struct_fields__} - read == set()
