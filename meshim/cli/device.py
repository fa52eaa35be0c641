"""Options of the commands that connect as a device: its user, name, state file and password."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import rich_click as click

from meshim.cli.login import ApiOptions, api_options, password_option, read_password
from meshim.cli.terminal import escape_unencodable
from meshim.errors import ApiError, BackendUnavailable, MeshimError, UsageError
from meshim.protocol.names import fold_name, is_device_name

if TYPE_CHECKING:  # imports sockets and cryptography, which `--help` does not need
    from meshim.client import Client
    from meshim.client.connection import Transport

_POLL_S = 0.2
_NOTICE_AFTER_S = 2.0
"""Without a connection for that long, a command says what it is waiting for."""
_TERMINATED = 128 + signal.SIGTERM
_T = TypeVar("_T")


class Device(msgspec.Struct, frozen=True):
    """One device of one user, and how it connects.  `password` is None unless it came from standard input."""

    options: ApiOptions
    transport: "Transport"
    name: str
    device: str
    state: Path
    password: str | None

    def run(self, work: "Callable[[Client], Awaitable[_T]]", *, kept: str = "", connected: str = "") -> _T:
        """Log in if necessary, connect, run `work` and return its result.

        While there is no connection, standard error says so, and what becomes of what the user has written (`kept`).
        `connected` is what it says at the first connection.
        """
        import uvloop

        escape_unencodable()
        # Before anything else reads the terminal, or a typed message could become the password, or the reverse.
        password = self.password or self._ask_password()
        new = not self.state.exists()
        waiting = f"Waiting for a connector of the mesh at {self.options.api}{f' ({kept})' if kept else ''} ..."

        async def with_client() -> _T:
            from meshim.client import Client

            client = Client(
                self.options.api,
                self.name,
                password,
                device=self.device,
                state=self.state,
                insecure=self.options.insecure,
                transport=self.transport,
            )
            main = asyncio.current_task()
            assert main is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
            async with client:
                watching = asyncio.create_task(_watch(client, waiting, connected))
                try:
                    return await work(client)
                finally:
                    watching.cancel()

        try:
            return uvloop.run(with_client())
        except asyncio.CancelledError:  # SIGTERM: `work` has said what becomes of what it had to do
            raise SystemExit(_TERMINATED) from None
        except ApiError:
            if new:  # the file holds no login
                self.state.unlink(missing_ok=True)
            raise

    def _ask_password(self) -> str | Callable[[], str]:
        """Ask for the password, unless the state file holds a token that the service accepts, or cannot refuse now."""
        from meshim.client.session import stored_token

        token = stored_token(self.state)
        if token is None or asyncio.run(self._refused(token)):
            return read_password(self.name, False)
        return self._login_ended

    async def _refused(self, token: str) -> bool:
        """Whether the service refuses this token."""
        from meshim.client.rest import Api

        async with Api(self.options.api, token=token, insecure=self.options.insecure) as api:
            try:
                await api.connectors()
            except ApiError as error:
                return error.status == 401
            except BackendUnavailable:
                return False  # connectors may still accept it
        return False

    def _login_ended(self) -> str:
        raise UsageError(f"The login of {self.name} on this device has ended: run the command again to log in.")


async def _watch(client: "Client", waiting: str, connected: str) -> None:
    """Print `connected` at the first connection, and when there is none for longer than a moment and it is back."""
    lost, back = "", "Connected."
    try:
        while True:
            try:
                await asyncio.wait_for(client.online(), _NOTICE_AFTER_S)
            except TimeoutError:
                print(f"{lost}{waiting}", file=sys.stderr)
                await _until_online(client)
                connected = connected or back
            if connected:
                print(connected, file=sys.stderr)
            await client.offline()
            lost, back, connected = "The connection is lost.  ", "Connected again.", ""
    except MeshimError:  # `work` raises the same error, and the command prints it
        return


async def _until_online(client: "Client") -> None:
    """Wait for a connection; say once why there is none, as soon as an attempt has failed."""
    while client.last_failure is None and client.connector is None:
        with suppress(TimeoutError):
            await asyncio.wait_for(client.online(), _POLL_S)
    if client.last_failure is not None:
        print(client.last_failure, file=sys.stderr)
    await client.online()


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """ME, `--device`, `--state` and the password, as one parameter `device`."""

    @api_options
    @password_option
    @click.option(
        "--transport",
        type=click.Choice(("auto", "zeromq", "websocket")),
        default="auto",
        show_default=True,
        help="How to reach a connector; auto is ZeroMQ where the connector has it.",
    )
    @click.option("--device", default="cli", show_default=True, help="Name of this device among yours.")
    @click.option(
        "--state",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="State file of this device; by default one in ~/.local/state/meshim.",
    )
    @wraps(command)
    def with_device(
        *args: Any, options: ApiOptions, transport: "Transport", me: str, device: str, state: Path | None,
        password_stdin: bool, **kwargs: Any,
    ) -> Any:  # fmt: skip
        name = fold_name(me)
        if name is None:
            raise UsageError(f"{me!r} cannot be the name of a user: use letters, digits, dots, dashes and underscores.")
        if not is_device_name(device):
            raise UsageError(f"{device!r} cannot be the name of a device: use up to 64 printable characters.")
        # Read the line even if no login is needed: the lines after it on standard input are messages.
        password = read_password(name, True) if password_stdin else None
        file = state or default_state(options.api, name, device)
        if state is None:  # the folder of a path that the user gave is the user's to make
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return command(*args, device=Device(options, transport, name, device, file, password), **kwargs)

    return click.argument("me")(with_device)


def default_state(api: str, name: str, device: str) -> Path:
    """Return the path of the state file of this device, by default."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    address = urlsplit(api).netloc.replace(":", "-")
    return Path(home) / "meshim" / f"{name}@{quote(address, safe='')}-{quote(device, safe='')}.db"
