"""From what YAML says to a `Topology`, with every fault on the way: unknown, missing and mistyped fields.

msgspec stops at the first fault.  Here each field is converted by itself, and msgspec gives the reason.
"""

from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec

from meshim.topology.finding import Finding
from meshim.topology.structs import Topology


def faults(written: object) -> list[Finding]:
    """Return everything that keeps it from being a topology; `msgspec.convert` succeeds where that is nothing."""
    return list(_faults(written, Topology, "$"))


def _faults(written: object, kind: Any, path: str) -> Iterator[Finding]:
    part = _struct_in(kind)
    if get_origin(kind) is tuple and isinstance(written, list):
        for index, each in enumerate(written):
            yield from _faults(each, get_args(kind)[0], f"{path}[{index}]")
    elif part is not None and isinstance(written, dict):
        yield from _faults_of_struct(written, part, path)
    else:
        try:
            msgspec.convert(written, kind)
        except msgspec.ValidationError as error:
            yield Finding(path, str(error).partition(" - at `$")[0])


def _faults_of_struct(written: dict[Any, Any], kind: type[msgspec.Struct], path: str) -> Iterator[Finding]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in written:
        if name not in fields:
            yield Finding(path, f"Object contains unknown field `{name}`")
    for name, field in fields.items():
        if name in written:
            yield from _faults(written[name], field.type, f"{path}.{name}")
        elif field.required:
            yield Finding(path, f"Object missing required field `{name}`")


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct of a field that holds one, or one or null."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)
