#!/usr/bin/env python3
"""Take the power from a whole mesh at many moments, and look for every message that was reported as sent.

A mesh and its clients run under load while strace records their system calls on files.  From the recording a disk is
rebuilt as a loss of power would leave it: what was not synced is gone, or there in part.  NATS, SQLite and the state
files are opened on it.  Every message with the outcome `sent` at that moment must be there for the device of its
recipient, and every message of which `send` had returned must be in the outbox of its sender (docs/power-loss.md).

A recording takes about 70 MB of disk for each second of load.

Exit code 0: nothing was lost.  1: something was.  2: it could not be done.
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _venv  # noqa: F401  (the project's own Python from here on)

from meshim.errors import MeshimError
from scripts.harness.mesh.options import count, interrupt_on_sigterm, natural, number
from scripts.harness.power_loss import mutations
from scripts.harness.power_loss.losses import PowerLossTest
from scripts.harness.power_loss.recording import check_recording, record
from scripts.harness.power_loss.strace import UnsupportedCall

SECONDS = number(1, 3_600, "a number of seconds, 1 to 3600")


def main() -> int:
    options = _options()
    interrupt_on_sigterm()
    folder: Path = options.recording or Path(tempfile.mkdtemp(prefix="meshim-power-"))
    keep = options.keep or options.recording
    try:
        answer = _run(folder, options)
    except (MeshimError, UnsupportedCall) as error:
        print(f"power_loss: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # killed processes may still be ending
    if keep:
        answer["folder"] = str(folder)
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(f"{name:>17} {value}" for name, value in answer.items()))
    return 0 if answer["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take the power from a mesh and look for every message that was sent.")
    parser.add_argument("--seconds", type=SECONDS, default=20.0, metavar="N", help="how long the load lasts (20)")
    parser.add_argument("--moments", type=count, default=40, metavar="N", help="how often the power goes (40)")
    parser.add_argument("--seed", type=natural, metavar="S", help="of the moments and of what a disk keeps (random)")
    parser.add_argument("--weak", choices=mutations.MUTATIONS, help="leave a sync out, to see that messages are lost")
    parser.add_argument("--recording", type=Path, metavar="FOLDER", help="use a recording of --keep, and run no load")
    parser.add_argument("--keep", action="store_true", help="keep the recording and the files, and print the folder")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser.parse_args()


def _run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    if options.recording:
        check_recording(folder)
    else:
        _tell(f"{options.seconds:g} s of load")
        record(folder, options.seconds, seed, options.weak)
    answer = PowerLossTest(folder, options.moments, seed, _tell).run()
    return answer | {"seed": seed, "weak": options.weak, "seconds": round(time.monotonic() - began, 1)}


def _tell(what: str) -> None:
    print(f"power_loss: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
