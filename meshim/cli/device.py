"""Which device of whom a command is: its state file, its password, and the connection it talks over."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import rich_click as click

from meshim.cli.login import Mesh, mesh_options, password_option, read_password
from meshim.errors import ApiError, BackendUnavailable, MeshimError, UsageError
from meshim.protocol.names import fold_name, is_device_name

if TYPE_CHECKING:  # brings sockets and cryptography, which `--help` does without
    from meshim.client import Client

_TIMEOUT_S = 2.0
"""After that long without a connection the person is told what is being waited for."""
_T = TypeVar("_T")


class Device(msgspec.Struct, frozen=True):
    """One device of one user.  `password` is None when it has to be asked for, if it is needed."""

    mesh: Mesh
    name: str
    device: str
    state: Path
    password: str | None

    def run(self, work: "Callable[[Client], Awaitable[_T]]") -> _T:
        """Log in if that is needed, connect, do the work, leave."""
        import uvloop

        # Before anything else reads the terminal: what is typed next must not be taken for the password, or sent.
        password = self.password or self._reveal()
        new = not self.state.exists()

        async def connected() -> _T:
            from meshim.client import Client

            client = Client(
                self.mesh.api,
                self.name,
                password,
                device=self.device,
                state=self.state,
                insecure=self.mesh.insecure,
            )
            async with client:
                watching = asyncio.create_task(_watch(client, self.mesh.api))
                try:
                    return await work(client)
                finally:
                    watching.cancel()

        try:
            return uvloop.run(connected())
        except ApiError:
            if new:  # nobody has logged in with it
                self.state.unlink(missing_ok=True)
            raise

    def _reveal(self) -> str | Callable[[], str]:
        """The password, unless the state file keeps a login that is still good."""
        from meshim.client.session import stored_token

        token = stored_token(self.state)
        if token is None or asyncio.run(self._refused(token)):
            return read_password(self.name, False)
        return self._ended

    async def _refused(self, token: str) -> bool:
        from meshim.client.rest import Api

        async with Api(self.mesh.api, token=token, insecure=self.mesh.insecure) as api:
            try:
                await api.connectors()
            except ApiError as error:
                return error.status == 401
            except BackendUnavailable:
                return False  # connectors may let us in all the same
        return False

    def _ended(self) -> str:
        raise UsageError(f"The login of {self.name} on this device has ended: run the command again to log in.")


async def _watch(client: "Client", api: str) -> None:
    """Tell when the connection is away for longer than a moment, and when it is back."""
    try:
        while True:
            try:
                await asyncio.wait_for(client.online(), _TIMEOUT_S)
            except TimeoutError:
                print(f"Waiting for a connector of the mesh at {api} (what you write is kept) ...", file=sys.stderr)
                await client.online()
                print("Connected.", file=sys.stderr)
            await client.offline()
    except MeshimError:  # the work fails with the same error, and tells it
        return


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """ME, `--device`, `--state` and the password, as one `device`."""

    @mesh_options
    @password_option
    @click.option("--device", default="cli", show_default=True, help="Name of this device among yours.")
    @click.option(
        "--state",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="State file of this device; by default one in ~/.local/state/meshim.",
    )
    @wraps(command)
    def with_device(
        *args: Any, mesh: Mesh, me: str, device: str, state: Path | None, password_stdin: bool, **kwargs: Any
    ) -> Any:
        name = fold_name(me)
        if name is None:
            raise UsageError(f"{me!r} cannot be the name of a user: use letters, digits, dots, dashes and underscores.")
        if not is_device_name(device):
            raise UsageError(f"{device!r} cannot be the name of a device: use up to 64 printable characters.")
        # The line is read in any case: what follows it on standard input are messages.
        password = read_password(name, True) if password_stdin else None
        file = state or default_state(mesh.api, name, device)
        return command(*args, device=Device(mesh, name, device, file, password), **kwargs)

    return click.argument("me")(with_device)


def default_state(api: str, name: str, device: str) -> Path:
    """Where a device of this user on this mesh keeps its state; its folder is made."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    place = urlsplit(api).netloc.replace(":", "-")
    return Path(home) / "meshim" / f"{name}@{quote(place, safe='')}-{quote(device, safe='')}.db"
