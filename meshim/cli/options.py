"""Options that several commands share: the data folder and the topology."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from meshim import topology
from meshim.deploy.state import DataFolder
from meshim.runtime.log import Log
from meshim.topology import Topology

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_FILE = Path("topology.yaml")
DEFAULT_DATA = "data"


class _DataType(click.ParamType[DataFolder, Path]):
    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DataFolder:
        return value if isinstance(value, DataFolder) else DataFolder(Path(value))


def data_option(command: _Command) -> _Command:
    """`--data DIR`, as a `DataFolder`."""
    return click.option(
        "--data", type=_DataType(), default=DEFAULT_DATA, show_default="./data", help="Folder with the mesh's files."
    )(command)


def topology_option(command: _Command) -> _Command:
    """`-t FILE`, as a path or None; see `load`."""
    return click.option(
        "-t",
        "--topology",
        "file",
        type=click.Path(path_type=Path),
        help="Topology file; ./topology.yaml where there is one, otherwise a mesh on this host with embedded backends.",
    )(command)


def load(file: Path | None) -> Topology:
    """Return the topology of `-t`, else of the current folder, else the default one.  Raises TopologyError."""
    if file is None and not DEFAULT_FILE.exists():
        return topology.default()
    return topology.load(file or DEFAULT_FILE)


def log_warnings(file: Path | None, log: Log) -> None:
    """Log what is suspicious in the file that `load` takes.  Raises TopologyError."""
    if file is not None or DEFAULT_FILE.exists():
        for warning in topology.inspect(file or DEFAULT_FILE).warnings:
            log.warning("suspicious topology", file=file or DEFAULT_FILE, says=warning.sentence)
