"""The commands for accounts and friends: user, friend.  `messaging` has those for messages."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING

import msgspec
import rich_click as click

from meshim.chunks import chunks
from meshim.cli.login import ApiOptions, api_options, password_option, read_password
from meshim.cli.relations import unblock_first
from meshim.errors import ApiError, MeshimError, UsageError

if TYPE_CHECKING:  # see `login`
    from meshim.client.rest import Api
    from meshim.wire import rest

_IMPORT_REQUEST_USERS = 100
"""A request of this size takes the service a second or two; the progress bar moves after each."""
_USER_LINE = re.compile(r"(\S+)[ \t](.+)")


# ---------------------------------------------------------------- accounts


@click.group()
def user() -> None:
    """Make accounts."""


@user.command()
@click.argument("name")
@api_options
@password_option
def register(options: ApiOptions, name: str, password_stdin: bool) -> None:
    """Make an account called NAME."""
    password = read_password(name, password_stdin, new=True)

    async def run() -> str:
        async with options.connect() as api:
            return (await api.register(name, password)).name

    print(f"{asyncio.run(run())} is registered.")


@user.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@api_options
def import_users(options: ApiOptions, file: IO[str]) -> int:
    """Make many accounts at once, on the machine the mesh runs on.

    Each line of FILE (- is standard input) is a name, a space and the password, which goes on to the end of
    the line.  Empty lines and lines that begin with # are skipped.  Names that cannot be registered are told
    on standard error, and the exit code is 1.
    """
    users = users_of(file, file.name)

    async def run() -> int:
        registered = 0
        with click.progressbar(length=len(users), label="Registering", file=sys.stderr) as bar:
            async with options.connect() as api:
                for chunk in chunks(users, _IMPORT_REQUEST_USERS):
                    for each in await api.import_users(chunk):
                        if each.user is None:
                            print(f"{each.name}: {each.detail}", file=sys.stderr)
                        else:
                            registered += 1
                    bar.update(len(chunk))
        return registered

    registered = asyncio.run(run())
    print(f"Registered {registered} of {len(users)} users.")
    return 0 if registered == len(users) else 1


def users_of(lines: Iterable[str], name: str) -> list[tuple[str, str]]:
    """Return each (name, password) in the lines of the file `name`.  Raises UsageError."""
    try:
        return list(_users(lines))
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8: save it in that encoding.") from None


def _users(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("#"):
            continue
        parts = _USER_LINE.fullmatch(line)
        if parts is None:
            raise UsageError(f"Line {number} is not a name, a space and a password.")
        yield parts[1], parts[2]


# ---------------------------------------------------------------- friends


@click.group()
def friend() -> None:
    """Ask people for friendship, and answer them.

    ME is your name, PEER the other's.  Only friends can send each other messages.
    """


def _run_logged_in(
    options: ApiOptions, me: str, peer: str, password_stdin: bool, act: "Callable[[Api], Awaitable[str]]"
) -> None:
    """Log in as `me`, call `act`, and print the sentence that it returns."""
    password = read_password(me, password_stdin)

    async def run() -> str:
        async with options.logged_in(me, password) as api:
            return await act(api)

    try:
        print(asyncio.run(run()))
    except ApiError as error:
        if error.code != "blocked":
            raise
        raise MeshimError(unblock_first(me, peer)) from error


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def add(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """Ask PEER for friendship; who has asked you becomes your friend at once."""

    async def act(api: "Api") -> str:
        relation = await api.request(peer)
        if relation.state == "friends":
            return _are_friends(me, relation)
        return f"{relation.peer.name} is asked: now it takes `meshim friend accept {relation.peer.name} {me}`."

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def accept(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """Accept the friendship that PEER has asked for."""

    async def act(api: "Api") -> str:
        return _are_friends(me, await api.accept(peer))

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def refuse(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """Refuse the friendship that PEER has asked for; PEER may ask again."""

    async def act(api: "Api") -> str:
        await api.refuse(peer)
        return f"{peer} is refused."

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def remove(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """End the friendship with PEER, or take back that you asked."""

    async def act(api: "Api") -> str:
        await api.remove(peer)
        return f"{me} and {peer} are not friends any more."

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def block(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """Block PEER: you are friends no more and see no requests.  PEER does not learn of it."""

    async def act(api: "Api") -> str:
        return f"{(await api.block(peer)).peer.name} is blocked."

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@api_options
@password_option
def unblock(options: ApiOptions, me: str, peer: str, password_stdin: bool) -> None:
    """End the block of PEER; that does not make you friends again."""

    async def act(api: "Api") -> str:
        relation = await api.unblock(peer)
        name = relation.peer.name
        asked = f"\n{_answer(me, name)}" if relation.state == "asked" else ""
        return f"{name} is not blocked any more.{asked}"

    _run_logged_in(options, me, peer, password_stdin, act)


@friend.command("list")
@click.argument("me")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@api_options
@password_option
def list_friends(options: ApiOptions, me: str, password_stdin: bool, as_json: bool) -> None:
    """Show friends, whether they are online, who has asked whom, and who is blocked."""

    async def act(api: "Api") -> str:
        known = [relation for relation in await api.relations() if relation.state != "removed"]
        online = await _online(api)
        rows = [Friend(each.peer.name, each.state, online.get(each.peer.name)) for each in known]
        if as_json:
            return msgspec.json.format(msgspec.json.encode(rows)).decode()
        return "\n".join(_line(me, row) for row in rows) or f"{me} has no friends yet: `meshim friend add {me} PEER`."

    _run_logged_in(options, me, "", password_stdin, act)


class Friend(msgspec.Struct, frozen=True):
    """An entry of `friend list --json`.  `online` is null for a peer who is no friend, and while it is unknown."""

    name: str
    state: str
    online: bool | None


async def _online(api: "Api") -> dict[str, bool]:
    """Name to presence, of friends; empty, with a message, while the service cannot tell."""
    try:
        return {each.peer.name: each.online for each in await api.presence()}
    except ApiError as error:
        if not error.temporary:
            raise
        print(f"Who is online is not known now: {error.sentence}", file=sys.stderr)
        return {}


def _line(me: str, friend: Friend) -> str:
    if friend.state == "asked":
        return _answer(me, friend.name)
    if friend.state == "blocked":
        return f"{friend.name} is blocked"
    if friend.state == "requested":
        return f"{friend.name} has not answered yet"
    return friend.name + {True: " (online)", False: " (offline)", None: ""}[friend.online]


def _answer(me: str, peer: str) -> str:
    return f"{peer} has asked: answer with `meshim friend accept {me} {peer}`"


def _are_friends(me: str, relation: "rest.Relation") -> str:
    return f"{me} and {relation.peer.name} are friends."


commands: list[click.Command] = [user, friend]
