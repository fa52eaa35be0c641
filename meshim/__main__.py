"""`python -m meshim` is the `meshim` command, compiled where it can be."""

from meshim import compiled

if __name__ == "__main__":
    compiled.use()  # before anything that it holds is imported
    from meshim.cli.main import main

    main()
