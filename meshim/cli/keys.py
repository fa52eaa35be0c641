"""The command that makes a key file: key new."""

from pathlib import Path

import rich_click as click

from meshim.runtime.sockets import key_file


@click.group()
def key() -> None:
    """Work with the key that connectors share behind a load balancer."""


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Make FILE with a new CURVE key pair, for `security.connector_key_file` of the topology."""
    public = key_file.create(file).decode()
    print(f"{file} holds a new key pair with the public key {public}: copy it to the host of every connector.")


commands: list[click.Command] = [key]
