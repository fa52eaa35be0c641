#!/usr/bin/env python3
"""Measure how fast a mesh is, and what a message and a connection cost (`--help` lists the measurements)."""

import sys

import _venv  # noqa: F401  (the project's own Python from here on)

# isort: split
import click

from meshim.errors import MeshimError
from scripts.harness.bench.commands import bench
from scripts.harness.bench.workloads import InvalidMeasurement
from scripts.harness.mesh.options import interrupt_on_sigterm, raise_open_files

FILES = 20_000
"""Descriptors: a client's connection takes two here, and one in a connector."""


def main() -> int:
    interrupt_on_sigterm()
    raise_open_files(FILES)
    try:
        bench(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except MeshimError as error:
        click.echo(f"bench: {error.sentence}", err=True)
        return 2
    except InvalidMeasurement as error:
        click.echo(f"bench: {error}.", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("bench: interrupted; its mesh has ended.", err=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
