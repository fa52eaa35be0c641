"""`python -m meshim` is the `meshim` command, compiled where it can be."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from meshim import compiled

        compiled.use()  # before anything that it holds is imported
        from meshim.cli.main import main
    except KeyboardInterrupt:  # Ctrl-C during the imports
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
