"""Commands for people: accounts and friends.  Talking is in `talk`."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING

import msgspec
import rich_click as click

from meshim.cli.login import Mesh, mesh_options, password_option, read_password
from meshim.errors import ApiError, UsageError

if TYPE_CHECKING:  # see `login`
    from meshim.client.rest import Api
    from meshim.wire import rest

_IMPORT_AT_ONCE = 100
"""A request of this size takes the service a second or two, so that the bar moves."""
_USER = re.compile(r"(\S+)[ \t](.+)")


# ---------------------------------------------------------------- accounts


@click.group()
def user() -> None:
    """Make accounts."""


@user.command()
@click.argument("name")
@mesh_options
@password_option
def register(mesh: Mesh, name: str, password_stdin: bool) -> None:
    """Make an account called NAME."""
    password = read_password(name, password_stdin, new=True)

    async def run() -> str:
        async with mesh.connect() as api:
            return (await api.register(name, password)).name

    print(f"{asyncio.run(run())} is registered.")


@user.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@mesh_options
def import_users(mesh: Mesh, file: IO[str]) -> int:
    """Make many accounts at once, on the machine the mesh runs on.

    Each line of FILE (- is standard input) is a name, a space and the password, which goes on to the end of
    the line.  Empty lines and lines that begin with # are skipped.  Names that cannot be registered are told
    on standard error, and the exit code is 1.
    """
    users = list(_users(file))

    async def run() -> int:
        registered = 0
        with click.progressbar(length=len(users), label="Registering", file=sys.stderr) as bar:
            async with mesh.connect() as api:
                for batch in _batches(users, _IMPORT_AT_ONCE):
                    for each in await api.import_users(batch):
                        if each.user is None:
                            print(f"{each.name}: {each.detail}", file=sys.stderr)
                        else:
                            registered += 1
                    bar.update(len(batch))
        return registered

    registered = asyncio.run(run())
    print(f"Registered {registered} of {len(users)} users.")
    return 0 if registered == len(users) else 1


def _users(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("#"):
            continue
        parts = _USER.fullmatch(line)
        if parts is None:
            raise UsageError(f"Line {number} is not a name, a space and a password.")
        yield parts[1], parts[2]


def _batches(users: list[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    rest = iter(users)
    while batch := list(islice(rest, size)):
        yield batch


# ---------------------------------------------------------------- friends


@click.group()
def friend() -> None:
    """Ask people for friendship, and answer them.

    ME is your name, PEER the other's.  Only friends can send each other messages.
    """


def _as_friend(mesh: Mesh, me: str, password_stdin: bool, act: "Callable[[Api], Awaitable[str]]") -> None:
    """Log in as `me`, act, and print the sentence that comes of it."""
    password = read_password(me, password_stdin)

    async def run() -> str:
        async with mesh.logged_in(me, password) as api:
            return await act(api)

    print(asyncio.run(run()))


@friend.command()
@click.argument("me")
@click.argument("peer")
@mesh_options
@password_option
def add(mesh: Mesh, me: str, peer: str, password_stdin: bool) -> None:
    """Ask PEER for friendship; who has asked you becomes your friend at once."""

    async def act(api: "Api") -> str:
        relation = await api.request(peer)
        if relation.state == "friends":
            return _are_friends(me, relation)
        return f"{relation.peer.name} is asked: now it takes `meshim friend accept {relation.peer.name} {me}`."

    _as_friend(mesh, me, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@mesh_options
@password_option
def accept(mesh: Mesh, me: str, peer: str, password_stdin: bool) -> None:
    """Accept the friendship that PEER has asked for."""

    async def act(api: "Api") -> str:
        return _are_friends(me, await api.accept(peer))

    _as_friend(mesh, me, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@mesh_options
@password_option
def refuse(mesh: Mesh, me: str, peer: str, password_stdin: bool) -> None:
    """Refuse the friendship that PEER has asked for; PEER may ask again."""

    async def act(api: "Api") -> str:
        await api.refuse(peer)
        return f"{peer} is refused."

    _as_friend(mesh, me, password_stdin, act)


@friend.command()
@click.argument("me")
@click.argument("peer")
@mesh_options
@password_option
def remove(mesh: Mesh, me: str, peer: str, password_stdin: bool) -> None:
    """End the friendship with PEER, or take back that you asked."""

    async def act(api: "Api") -> str:
        await api.remove(peer)
        return f"{me} and {peer} are not friends any more."

    _as_friend(mesh, me, password_stdin, act)


@friend.command("list")
@click.argument("me")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@mesh_options
@password_option
def list_friends(mesh: Mesh, me: str, password_stdin: bool, as_json: bool) -> None:
    """Show friends, whether they are online, and who has asked whom."""

    async def act(api: "Api") -> str:
        known = [relation for relation in await api.relations() if relation.state != "removed"]
        online = await _online(api)
        rows = [Friend(each.peer.name, each.state, online.get(each.peer.name)) for each in known]
        if as_json:
            return msgspec.json.format(msgspec.json.encode(rows)).decode()
        return "\n".join(_line(me, row) for row in rows) or f"{me} has no friends yet: `meshim friend add {me} PEER`."

    _as_friend(mesh, me, password_stdin, act)


class Friend(msgspec.Struct, frozen=True):
    """A line of `friend list --json`.  `online` is null for who is no friend, and where nobody can say."""

    name: str
    state: str
    online: bool | None


async def _online(api: "Api") -> dict[str, bool]:
    """Who is online, as far as anybody can say now."""
    try:
        return {each.peer.name: each.online for each in await api.presence()}
    except ApiError as error:
        if not error.temporary:
            raise
        print(f"Who is online is not known now: {error.sentence}", file=sys.stderr)
        return {}


def _line(me: str, friend: Friend) -> str:
    if friend.state == "asked":
        return f"{friend.name} has asked: answer with `meshim friend accept {me} {friend.name}`"
    if friend.state == "requested":
        return f"{friend.name} has not answered yet"
    return friend.name + {True: " (online)", False: " (offline)", None: ""}[friend.online]


def _are_friends(me: str, relation: "rest.Relation") -> str:
    return f"{me} and {relation.peer.name} are friends."


commands: list[click.Command] = [user, friend]
