"""Certificates for TLS on this machine."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """The files of a certificate, of its key, and of both together (PEM)."""

    certificate: Path
    key: Path
    both: Path


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1 that signs itself."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", made.certificate, "-keyout", made.key],
        check=True, capture_output=True,
    )  # fmt: skip
    made.both.write_text(made.certificate.read_text() + made.key.read_text())
    return made
