"""`python -m meshim` is the `meshim` command, compiled where it can be."""

from meshim import compiled


def main() -> None:
    """Run the command."""
    compiled.use()  # before anything that it holds is imported
    from meshim.cli.main import main

    main()


if __name__ == "__main__":
    main()
