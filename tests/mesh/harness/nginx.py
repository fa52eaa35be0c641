"""nginx with the configuration of docs/websocket.md, on ports of this machine."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import Certificate
from tests.mesh.harness import proxies

_WRITES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def documented(
    folder: Path, tls: Certificate, port: int, connectors: Mapping[str, int], rest: int,
    timeout: str | None = "60s",
) -> str:  # fmt: skip
    """Word for word but for addresses, the certificate, its timeouts, the number of connections, and where it writes.

    None leaves the timeouts to nginx, whose defaults are 60 s as well.
    """
    paths = "".join(f"{name}_temp_path {folder}/nginx-{name}; " for name in _WRITES)
    replacements = {
        # Of root the workers would be another user, who sees nothing of the folder of a test.
        "user www-data;\n": "user root;\n" if os.geteuid() == 0 else "",
        "pid /run/nginx.pid;\n": f"pid {folder}/nginx.pid; daemon off; error_log stderr;\n",
        # One process: workers would outlive a master that is killed.
        "worker_processes auto;\n": "master_process off;\n",
        "worker_rlimit_nofile 40000;\n": "",
        "worker_connections 20000;\n": "worker_connections 500;\n",
        "http {\n": f"http {{ {paths}\n",
        "listen 443 ssl;\n": f"listen 127.0.0.1:{port} ssl;\n",
        "ssl_certificate /etc/ssl/chat.example/fullchain.pem;\n": f"ssl_certificate {tls.certificate};\n",
        "ssl_certificate_key /etc/ssl/chat.example/key.pem;\n": f"ssl_certificate_key {tls.key};\n",
        "server 10.0.0.11:8100;\n": f"server 127.0.0.1:{rest};\n",
    }
    for side in ("read", "send"):
        replacements[f"proxy_{side}_timeout 60s;\n"] = f"proxy_{side}_timeout {timeout};\n" if timeout else "\n"
    for number, its_port in enumerate(connectors.values(), start=1):
        replacements[f"server 10.0.0.1{number}:7200 "] = f"server 127.0.0.1:{its_port} "
    return proxies.documented("websocket.md", "nginx", replacements)


@contextmanager
def running(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run nginx during the block; raises AssertionError with its output when it does not start."""
    file = folder / "nginx.conf"
    file.write_text(configuration)
    with proxies.running(folder, "nginx", ["-p", str(folder), "-e", "stderr", "-c", str(file)], port):
        yield
