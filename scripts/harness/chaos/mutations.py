"""Takes one mechanism out of a mesh or of the client library, to show that a chaos run notices.

    python -m scripts.harness.chaos.mutations NAME up|ROLE ARGUMENT...

is the `meshim` command without that mechanism, in every process that it starts.  `tests/sim/breaks.py` defines what
each name takes out; here are the names whose effect shows soon and surely in real processes.  (The others change rules
of Redis and SQL, or need lost state files.)  What is taken out of minimal clients alone is in `minimal_mutations.py`.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from meshim import topology as topologies
from meshim.cli.main import main as meshim
from meshim.client.events import AddToInbox, Change, DropFromInbox
from meshim.client.state import StateFile
from meshim.connector.events import PageRead
from meshim.connector.queues import Queues
from meshim.deploy import supervisor
from meshim.deploy.state import DataFolder
from scripts.harness.chaos.minimal_mutations import REPLACEMENTS
from scripts.harness.mesh.local_mesh import MESHIM
from tests.sim.breaks import broken

MESH_MUTATIONS = ("dedup", "read-before-ack", "sent-before-puback", "sent-on-first-copy", "cookie", "ack-before-commit")
MUTATIONS = (*MESH_MUTATIONS, *REPLACEMENTS)

_PROGRAM = (sys.executable, "-P", "-m", "scripts.harness.chaos.mutations")
_forever = ExitStack()


def apply(name: str) -> None:
    """Take a mechanism out of this process for the rest of its life, unless it is one of the minimal clients alone."""
    if name not in MESH_MUTATIONS:
        return
    _forever.enter_context(broken(name))
    if name == "read-before-ack":  # the mark waits for the next look at the queue otherwise, which is too late here
        _forever.enter_context(patch.object(Queues, "page_read", _page_marked))
    if name == "dedup":  # a key of the state file deduplicates, too, until the application has read the message
        _forever.enter_context(patch.object(StateFile, "_apply", _apply_again))


_apply = StateFile._apply
_page_read = Queues.page_read


def _page_marked(self: Queues, event: PageRead, now: float) -> None:
    _page_read(self, event, now)
    session = self._sessions.of_device(event.device, event.session)
    if session is not None:
        self._actions.extend(session.sync._mark())


def _apply_again(self: StateFile, change: Change) -> None:
    if isinstance(change, AddToInbox):
        _apply(self, DropFromInbox(change.stream, change.seq, 0))
    _apply(self, change)


def mesh_command(name: str) -> Sequence[str]:
    """Return the command line of meshim, without the mechanism `name` if the mesh has it."""
    return (*_PROGRAM, name) if name in MESH_MUTATIONS else MESHIM


def _up(name: str, file: Path, data: DataFolder) -> None:
    def role_command(role: str, member: str, folder: DataFolder) -> list[str]:
        command = supervisor.role_command(role, member, folder)
        return [*_PROGRAM, name, *command[command.index("meshim") + 1 :]]

    asyncio.run(supervisor.run(topologies.load(file), data, lambda api: None, command=role_command))


def _main(name: str, command: str, *arguments: str) -> None:
    apply(name)
    if command == "up":
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        _up(name, Path(options["-t"]), DataFolder(Path(options["--data"])))
    else:
        sys.argv = ["meshim", command, *arguments]
        meshim()


if __name__ == "__main__":
    _main(*sys.argv[1:])
