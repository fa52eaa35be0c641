"""How commands act for a person: where the mesh is, and her password, which is never an argument."""

import functools
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import rich_click as click

from meshim.errors import UsageError

if TYPE_CHECKING:  # brings httpx, which takes longer to import than all the rest
    from meshim.client.rest import Api

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Mesh(msgspec.Struct, frozen=True):
    """The `--api` and `--insecure` of a command."""

    api: str
    insecure: bool

    def connect(self) -> "Api":
        """Return the REST client; raises `UsageError` for a URL that must not be used."""
        from meshim.client.rest import Api

        return Api(self.api, insecure=self.insecure)

    @asynccontextmanager
    async def logged_in(self, name: str, password: str) -> AsyncGenerator["Api"]:
        """A login for the length of one command.

        It is for no device: a device would take over the queue of the one that has its name.
        """
        async with self.connect() as api:
            await api.login(name, password)
            yield api
            await api.logout()


def mesh_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--api` and `--insecure`, as one `mesh`."""

    @functools.wraps(command)
    def with_mesh(*args: Any, api: str, insecure: bool, **kwargs: Any) -> Any:
        return command(*args, mesh=Mesh(api, insecure), **kwargs)

    with_insecure = click.option(
        "--insecure",
        is_flag=True,
        help="Allow plain http:// to another machine: passwords and keys can be read on the way.",
    )(with_mesh)
    return click.option(
        "--api",
        metavar="URL",
        default="http://127.0.0.1:8100",
        show_default=True,
        envvar="MESHIM_API",
        show_envvar=True,
        help="Where the mesh's REST service is.",
    )(with_insecure)


def password_option(command: _Command) -> _Command:
    """`--password-stdin`; give it to `read_password`."""
    return click.option(
        "--password-stdin", is_flag=True, help="Read the password from the first line of standard input."
    )(command)


def read_password(name: str, password_stdin: bool, *, new: bool = False) -> str:
    """The password of `name`, from standard input or a prompt (twice for a new one)."""
    if password_stdin:
        line = sys.stdin.readline()
        if not line:
            raise UsageError("There is no password on standard input: write it there as one line.")
        return line.removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for the password: use --password-stdin.")
    password: str = click.prompt(
        f"Password of {name}", hide_input=True, confirmation_prompt="Once again" if new else False, err=True
    )
    return password
