"""The file of a topology: `load` reads and checks it, `dump` writes one that `load` reads back.

An error is one sentence, a `TopologyError`, with the path of the field, such as `$.timers.sweep_s`.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from meshim.errors import TopologyError, one_line
from meshim.topology.checks import check
from meshim.topology.structs import Topology


def load(path: Path) -> Topology:
    """Return the checked topology of a file.  Raises `TopologyError` when the file is missing or anything is wrong."""
    try:
        with path.open(encoding="utf-8") as file:
            written = yaml.load(file, _Loader)  # noqa: S506  (a safe loader)
        if written is None:
            raise TopologyError("It is empty: a topology names connectors, transfers, writers and rest services.")
        topology = msgspec.convert(written, Topology)
        check(topology)
    except FileNotFoundError:
        raise TopologyError(f"{path} does not exist: name a topology file.") from None
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.ValidationError as error:
        where = "" if "`$" in str(error) else " - at `$`"  # msgspec leaves out the path of the root
        raise TopologyError(f"{path}: {error}{where}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # not UTF-8, no such date or number; too deep
        raise TopologyError(f"{path} is not YAML: {one_line(error)}.") from error
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error
    return topology


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
