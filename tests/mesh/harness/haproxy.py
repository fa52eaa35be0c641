"""HAProxy with the configurations of docs/load-balancer.md and docs/websocket.md, on ports of this machine."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import Certificate
from tests.mesh.harness import proxies


def documented(port: int, connectors: Mapping[str, int], timeout: str = "50s") -> str:
    """For ZeroMQ: word for word but for addresses, idle timeouts and the number of connections."""
    replacements = {
        "bind :5000\n": f"bind 127.0.0.1:{port}\n",
        "maxconn 20000\n": "maxconn 500\n",  # descriptors: not every machine of a test has as many
    }
    for side in ("client", "server"):
        replacements[f"timeout {side} 50s\n"] = f"timeout {side} {timeout}\n"
    for number, (name, its_port) in enumerate(connectors.items(), start=1):
        replacements[f"server {name} 10.0.0.1{number}:7100\n"] = f"server {name} 127.0.0.1:{its_port}\n"
    return proxies.documented("load-balancer.md", "haproxy", replacements)


def documented_websocket(
    tls: Certificate, port: int, connectors: Mapping[str, int], rest: int, timeout: str = "60s"
) -> str:  # fmt: skip
    """For WebSocket: word for word but for addresses, the certificate, its timeout and the number of connections."""
    replacements = {
        "bind :443 ssl crt /etc/ssl/chat.example/haproxy.pem\n": f"bind 127.0.0.1:{port} ssl crt {tls.both}\n",
        "maxconn 20000\n": "maxconn 500\n",
        "timeout tunnel 60s\n": f"timeout tunnel {timeout}\n",
        "server r1 10.0.0.11:8100\n": f"server r1 127.0.0.1:{rest}\n",
    }
    for number, (name, its_port) in enumerate(connectors.items(), start=1):
        replacements[f"server {name} 10.0.0.1{number}:7200\n"] = f"server {name} 127.0.0.1:{its_port}\n"
    return proxies.documented("websocket.md", "haproxy", replacements)


@contextmanager
def running(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run HAProxy during the block; raises AssertionError with its output when it does not start."""
    file = folder / "haproxy.cfg"
    file.write_text(configuration)
    with proxies.running(folder, "haproxy", ["-db", "-f", str(file)], port):
        yield
