"""URLs of databases."""

from pathlib import Path

from sqlalchemy import URL


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite database, with what has a meaning in URLs (`%2F`, `?`, `#`) quoted."""
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
