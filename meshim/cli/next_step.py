"""Says, when a mesh is ready, what to type next: commands that work as they are printed."""

import os
import shlex
from pathlib import Path

from meshim import topology
from meshim.cli.login import API_VARIABLE, DEFAULT_API
from meshim.cli.options import DEFAULT_DATA
from meshim.deploy.state import DataFolder
from meshim.errors import BackendUnavailable
from meshim.stores.sql.probe import has_users

_TIMEOUT_S = 2.0


def next_step(api: str, data: DataFolder, or_else: str = "") -> str:
    """Return the sentence for the mesh that runs on a data folder; `or_else` is another way to end it."""
    in_data = "" if data.root == Path(DEFAULT_DATA).resolve() else f" --data {shlex.quote(str(data.root))}"
    if _has_users(data):
        first = f"Talk with `meshim chat ME --to PEER{_at(api)}`; see its processes with `meshim status{in_data}`"
    else:
        first = f"Make an account with `meshim user register NAME{_at(api)}`"
    return f"{first}; end the mesh with `meshim down{in_data}`{or_else}."


def _has_users(data: DataFolder) -> bool:
    try:
        return has_users(topology.load(data.topology).backends.sql, _TIMEOUT_S)
    except BackendUnavailable:  # it was there a moment ago, and `meshim status` tells when it is not
        return False


def _at(api: str) -> str:
    """Return the option with which clients on this host find the REST service; empty where they need none."""
    reached = api.replace("://0.0.0.0:", "://127.0.0.1:")
    return "" if reached == os.environ.get(API_VARIABLE, DEFAULT_API) else f" --api {reached}"
