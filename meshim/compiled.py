"""The modules that every message passes through, and the import of their compiled form.

They are plain Python.  Where there is a C compiler, `scripts/compile.py` compiles them to extension modules with mypyc,
in a folder of the virtual environment, and `use` imports them from there.  The name of the folder is a digest of the
sources and of the Python version, so that stale extension modules are never imported; without a folder of that name
the plain modules run.  MESHIM_PLAIN=1 in the environment selects the plain modules.

Compiled modules access each other's attributes directly, so either all of them are imported or none.  A folder
contains all of them or does not exist.
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
    "meshim.connector.accounting",
    "meshim.connector.authorization",
    "meshim.connector.cookies",
    "meshim.connector.core",
    "meshim.connector.handshake",
    "meshim.connector.offline_sync",
    "meshim.connector.outcomes",
    "meshim.connector.queues",
    "meshim.connector.session",
    "meshim.connector.sessions",
    "meshim.connector.submissions",
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
    "meshim.transfer.connector_links",
    "meshim.transfer.core",
    "meshim.transfer.log_batcher",
    "meshim.transfer.presence_cache",
    "meshim.wire.sizes",
)
"""Never a module that defines an encoded struct: mypyc loses the class options of msgspec.Struct."""

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
    """Return the folder for the extension modules of these sources, which need not exist.  Takes some milliseconds."""
    digest = hashlib.sha256(f"{sys.version} {SUFFIX} {MODULES}".encode())
    for file in sorted(sources.rglob("*.py")):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(sources)} {len(data)} ".encode() + data)
    return Path(sys.prefix) / "compiled" / digest.hexdigest()[:32]


def available() -> Path | None:
    """Return the folder of extension modules; None without one, or with MESHIM_PLAIN."""
    if os.environ.get("MESHIM_PLAIN", "0") not in ("", "0"):
        return None
    compiled = folder()
    return compiled if compiled.is_dir() else None


def use() -> bool:
    """Import compiled modules from now on; return False when they are not available.

    Call it before any other module of meshim is imported.
    """
    compiled = available()
    if compiled is None:
        return False
    imported = [name for name in MODULES if name in sys.modules]
    assert not imported, f"imported already: {imported}"
    files = {str(file.relative_to(compiled)).removesuffix(SUFFIX): file for file in compiled.rglob(f"*{SUFFIX}")}
    sys.meta_path.insert(0, _Finder({name.replace(os.sep, "."): file for name, file in files.items()}))
    return True


def used() -> bool:
    """Return whether this process runs compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)
