"""The modules that each message passes through, compiled where there is a compiler.

They are plain Python and stay it: `scripts/compile.py` makes extension modules of them with mypyc, in a folder of the
virtual environment whose name tells what they were made of, and `use` takes them from there.  What was made of other
sources, or for another Python, is never taken: then they run as they are.  The environment variable
MESHIM_PLAIN=1 asks for that.

A folder holds all of them or does not exist.  They know each other's insides, so that they are taken together.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

MODULES = (
    "meshim.connector.authorization",
    "meshim.connector.core",
    "meshim.connector.handshake",
    "meshim.connector.offline_sync",
    "meshim.connector.queues",
    "meshim.connector.session",
    "meshim.connector.sessions",
    "meshim.connector.transfer_links",
    "meshim.protocol.coalescing",
    "meshim.protocol.flush_queue",
    "meshim.protocol.link",
    "meshim.protocol.outcome",
    "meshim.protocol.routing",
    "meshim.protocol.token_bucket",
    "meshim.protocol.window",
    "meshim.runtime.driver",
    "meshim.runtime.sockets.context",
    "meshim.runtime.sockets.dealer",
    "meshim.runtime.sockets.guard",
    "meshim.runtime.sockets.pump",
    "meshim.runtime.sockets.router",
    "meshim.transfer.core",
    "meshim.transfer.log_batcher",
    "meshim.transfer.presence_cache",
    "meshim.wire.sizes",
)
"""Modules that define what is encoded are never among them: a compiled class forgets the options of msgspec.Struct."""

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


_SOURCES = Path(__file__).parent


class _Finder(MetaPathFinder):
    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else importlib.util.spec_from_file_location(fullname, file)


def folder(sources: Path = _SOURCES) -> Path:
    """Where the extension modules of these very sources are, if there are any; it takes some milliseconds."""
    seen = hashlib.sha256(f"{sys.version} {SUFFIX} {MODULES}".encode())
    for file in sorted(sources.rglob("*.py")):
        data = file.read_bytes()
        seen.update(f"{file.relative_to(sources)} {len(data)} ".encode() + data)
    return Path(sys.prefix) / "compiled" / seen.hexdigest()[:32]


def available() -> Path | None:
    """The folder, when these sources are compiled and that is wanted."""
    if os.environ.get("MESHIM_PLAIN", "0") not in ("", "0"):
        return None
    here = folder()
    return here if here.is_dir() else None


def use() -> bool:
    """Take compiled modules from now on; False when they are not available.

    Call it before anything else of meshim is imported.
    """
    here = available()
    if here is None:
        return False
    early = [name for name in MODULES if name in sys.modules]
    assert not early, f"imported already: {early}"
    files = {str(file.relative_to(here)).removesuffix(SUFFIX): file for file in here.rglob(f"*{SUFFIX}")}
    sys.meta_path.insert(0, _Finder({name.replace(os.sep, "."): file for name, file in files.items()}))
    return True


def used() -> bool:
    """Whether this process runs compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)
