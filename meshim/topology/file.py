"""The file of a topology: `load` reads and checks it, `dump` writes one that `load` reads back.

An error is one sentence, a `TopologyError`, with the path of the field, such as `$.timers.sweep_s`.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from meshim.errors import TopologyError, one_line
from meshim.topology import checks, structure, suspicious
from meshim.topology.finding import Finding
from meshim.topology.structs import Topology


class Inspection(NamedTuple):
    """What there is to say about a file; without faults it is a topology."""

    topology: Topology | None
    faults: list[Finding]
    warnings: list[Finding]


def load(path: Path) -> Topology:
    """Return the checked topology of a file.  Raises `TopologyError` when the file is missing or anything is wrong."""
    found = inspect(path)
    try:
        checks.refuse(found.faults)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error
    assert found.topology is not None
    return found.topology


def inspect(path: Path) -> Inspection:
    """Return every fault and every warning.  Raises `TopologyError` for a file that cannot be read or is not YAML."""
    try:
        with path.open(encoding="utf-8") as file:
            written = yaml.load(file, _Loader)  # noqa: S506  (a safe loader)
    except FileNotFoundError:
        raise TopologyError(f"{path} does not exist: name a topology file.") from None
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # not UTF-8, no such date or number; too deep
        raise TopologyError(f"{path} is not YAML: {one_line(error)}.") from error
    if written is None:
        raise TopologyError(f"{path}: It is empty: a topology names connectors, transfers, writers and rest services.")
    if faults := structure.faults(written):
        return Inspection(None, faults, [])
    topology = msgspec.convert(written, Topology)
    if faults := checks.faults(topology):
        return Inspection(topology, faults, [])
    return Inspection(topology, [], [*checks.warnings(topology), *suspicious.readable_passwords(topology, path)])


def dump(topology: Topology) -> str:
    """Return the topology as YAML, with every default written out."""
    return msgspec.yaml.encode(topology).decode()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """YAML without tags.  A key that is given twice is an error; PyYAML would silently take the second value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in keys[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping
