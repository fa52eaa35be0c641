#!/usr/bin/env python3
"""Compile the modules that each message passes through (`meshim/compiled.py` says which), with mypyc and a C compiler.

It takes half a minute, and nothing when it was done for these sources already.

Exit code 0: they are compiled.  1: it did not work, and one sentence says why; meshim runs without.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import _venv  # noqa: F401  (the project's own Python from here on)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from meshim import compiled

OPTIMIZE = {"MYPYC_OPT_LEVEL": "2", "MYPYC_DEBUG_LEVEL": "0"}
"""As fast as -O3, and made in two thirds of the time."""


def main() -> int:
    target = compiled.folder()
    if target.is_dir():
        return 0
    target.parent.mkdir(exist_ok=True)
    for old in target.parent.iterdir():  # of other sources, or interrupted
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    log = target.parent / "log"
    with tempfile.TemporaryDirectory(dir=target.parent) as work, log.open("w") as output:
        shutil.copytree(Path(compiled.__file__).parent, f"{work}/meshim", ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(
            [sys.executable, "-m", "mypyc", *(name.replace(".", os.sep) + ".py" for name in compiled.MODULES)],
            cwd=work, env=os.environ | OPTIMIZE, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"scripts/compile.py: it did not compile, {log} tells why", file=sys.stderr)
            return 1
        made = Path(work) / "made"
        shutil.rmtree(Path(work) / "build")
        for file in list(Path(work).rglob(f"*{compiled.SUFFIX}")):
            place = made / file.relative_to(work)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
        made.rename(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
