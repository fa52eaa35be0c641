"""`python -m meshim` is the `meshim` command."""

from meshim.cli.main import main

if __name__ == "__main__":
    main()
