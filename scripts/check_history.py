#!/usr/bin/env python3
"""Judge a history: did every device see every message that it is owed, once, in order, unchanged, and no other device?

`docs/history.md` describes the format and defines each promise.  This command knows nothing of meshim, and uses the
standard library only.

Exit code 0: every promise was kept.  1: at least one was broken.  2: the file cannot be judged.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.harness.history.format import BadHistory
from scripts.harness.history.judge import PROMISES, judge


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge a history (docs/history.md).")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="show N violations at most (20)")
    options = parser.parse_args()
    try:
        verdict = judge(options.file, options.limit)
    except BadHistory as bad:
        place = "" if bad.line is None else f", line {bad.line}"
        print(f"{options.file}{place}: {bad.sentence}.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.file} cannot be read: {error.strerror}.", file=sys.stderr)
        return 2
    print(json.dumps(verdict, indent=2) if options.json else "\n".join(_describe(verdict)))
    return 0 if verdict["ok"] else 1


def _describe(verdict: dict[str, Any]) -> Iterator[str]:
    for name, value in verdict.items():
        if name not in ("ok", "violations") and value is not None:
            yield f"{name:>13} {value}"
    for violation in verdict["violations"]:
        yield "line {line}: {kind}: message {message!r}: {sentence}.".format_map(violation)
    found = sum(verdict[name] for name in PROMISES)
    if found > len(verdict["violations"]):
        yield f"... and {found - len(verdict['violations'])} more."
    if verdict["expected"] not in (None, verdict["sent"]):
        yield f"{verdict['sent']} messages were sent, and {verdict['expected']} should have been."
    yield "Every promise was kept." if verdict["ok"] else "NOT every promise was kept."


if __name__ == "__main__":
    sys.exit(main())
