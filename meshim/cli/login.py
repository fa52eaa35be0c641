"""Options of the commands that use REST: the URL of the service, and the password, which is never an argument."""

import functools
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import rich_click as click

from meshim.errors import UsageError

if TYPE_CHECKING:  # imports httpx, which takes longer than all other modules together
    from meshim.client.rest import Api

DEFAULT_API = "http://127.0.0.1:8100"
API_VARIABLE = "MESHIM_API"

_Command = TypeVar("_Command", bound=Callable[..., Any])


class ApiOptions(msgspec.Struct, frozen=True):
    """The `--api` and `--insecure` of a command."""

    api: str
    insecure: bool

    def connect(self) -> "Api":
        """Return the REST client.  Raises UsageError when the URL is invalid or insecure."""
        from meshim.client.rest import Api

        return Api(self.api, insecure=self.insecure)

    @asynccontextmanager
    async def logged_in(self, name: str, password: str) -> AsyncGenerator["Api"]:
        """Log in for the duration of one command.

        Without a device name: a login with one would take over the device of that name, and its offline queue.
        """
        async with self.connect() as api:
            await api.login(name, password)
            yield api
            await api.logout()


def api_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--api` and `--insecure`, as one parameter `options`."""

    @functools.wraps(command)
    def with_options(*args: Any, api: str, insecure: bool, **kwargs: Any) -> Any:
        return command(*args, options=ApiOptions(api, insecure), **kwargs)

    with_insecure = click.option(
        "--insecure",
        is_flag=True,
        help="Allow plain http:// to another machine: passwords and keys can be read on the way.",
    )(with_options)
    return click.option(
        "--api",
        metavar="URL",
        default=DEFAULT_API,
        show_default=True,
        envvar=API_VARIABLE,
        show_envvar=True,
        help="Where the mesh's REST service is.",
    )(with_insecure)


def password_option(command: _Command) -> _Command:
    """`--password-stdin`, as the parameter that `read_password` takes."""
    return click.option(
        "--password-stdin", is_flag=True, help="Read the password from the first line of standard input."
    )(command)


def read_password(name: str, password_stdin: bool, *, new: bool = False) -> str:
    """Return the password of `name`, from standard input or a prompt (typed twice when `new`).  Raises UsageError."""
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
