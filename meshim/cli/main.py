"""The `meshim` command: the modules of its subcommands, and how errors are printed.

An error that a person can correct is one sentence on stderr and an exit code: 2 for wrong usage, 1 for any other
MeshimError, 130 after Ctrl-C, 143 after SIGTERM (commands of a device).  A traceback means a bug in meshim.
"""

import errno
import importlib
import os
import sys
from typing import NoReturn

import rich_click as click

from meshim.errors import MeshimError, UsageError

_INTERRUPTED = 130


_MODULES = {
    **dict.fromkeys(("up", "down", "status", "topology", "db"), "meshim.cli.mesh"),
    **dict.fromkeys(("connector", "transfer", "writer", "rest"), "meshim.cli.roles"),
    "key": "meshim.cli.keys",
    "deadletter": "meshim.cli.deadletter",
    **dict.fromkeys(("send", "listen", "chat"), "meshim.cli.messaging"),
}
"""Command to its module; the others are in `_OTHERS`."""
_OTHERS = "meshim.cli.accounts"


class _Commands(click.RichGroup):
    """Imports the module of a command when it is used: the parts of meshim need very different libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add(*_MODULES.values(), _OTHERS)
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._add(_MODULES.get(cmd_name, _OTHERS))
        if cmd_name not in self.commands:
            self._add(*_MODULES.values())  # for "Did you mean ...?"
        return super().get_command(ctx, cmd_name)

    def _add(self, *modules: str) -> None:
        for module in modules:
            for command in importlib.import_module(module).commands:
                self.add_command(command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meshim")
def cli() -> None:
    """A self-hosted instant-messaging server.

    `meshim up` starts a whole mesh, `meshim user register NAME` makes an account on it,
    `meshim chat ME --to PEER` talks.
    """


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    # Files hold messages, keys and password hashes: this process and its children make them readable by the owner only.
    os.umask(0o077)
    try:
        code = cli.main(prog_name="meshim", standalone_mode=False)
    except click.UsageError as error:
        help_hint = f" Try `{error.ctx.command_path} --help`." if error.ctx else ""
        _fail(f"{error.format_message()}{help_hint}", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except UsageError as error:
        _fail(error.sentence, 2)
    except MeshimError as error:
        _fail(error.sentence, 1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.stderr.close()
        sys.exit(1)
    except UnicodeEncodeError:  # an argument or standard input was not UTF-8
        _fail("What was typed is not UTF-8: names, passwords and messages have to be.", 2)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        _fail(f"{error.filename or 'Standard output'}: {error.strerror}.", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"meshim: {sentence}", file=sys.stderr)
    sys.exit(code)
