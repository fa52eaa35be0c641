#!/usr/bin/env python3
"""Compile the modules on the path of each message (`meshim/compiled.py` lists them), with mypyc and a C compiler.

It takes half a minute; nothing happens when these sources are compiled already.

Exit code 0: they are compiled.  1: they could not be compiled, and one sentence says why; meshim runs as plain Python.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim import compiled

OPTIMIZE = {"MYPYC_OPT_LEVEL": "2", "MYPYC_DEBUG_LEVEL": "0"}
"""As fast as -O3, and compiled in two thirds of the time."""


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if compiled.folder().is_dir():
        return 0
    place = compiled.folder().parent
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(dir=place) as work:
            return _compile(place, Path(work))


def _compile(place: Path, work: Path) -> int:
    """Compile a copy: an edit meanwhile gives another digest, so that it is never taken for compiled."""
    sources = work / "meshim"
    shutil.copytree(Path(compiled.__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    target = compiled.folder(sources)
    if target.is_dir():
        return 0  # another process has just compiled them
    log = place / "log"
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "mypyc", *(name.replace(".", os.sep) + ".py" for name in compiled.MODULES)],
            cwd=work, env=os.environ | OPTIMIZE, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode:
        print(f"scripts/compile.py: it did not compile, {log} tells why", file=sys.stderr)
        return 1
    made = work / "made"
    shutil.rmtree(work / "build")
    for file in list(work.rglob(f"*{compiled.SUFFIX}")):
        to = made / file.relative_to(work)
        to.parent.mkdir(parents=True, exist_ok=True)
        file.rename(to)
    os.sync()  # the name must not survive a loss of power without its files
    made.rename(target)
    for other in place.iterdir():
        if other.is_dir() and other not in (target, work):
            shutil.rmtree(other)  # of other sources, or left by an interrupted run
    return 0


if __name__ == "__main__":
    sys.exit(main())
