"""docs/rest.md lists exactly the endpoints and codes of the service."""

import re
from pathlib import Path

from litestar.handlers import HTTPRouteHandler

from meshim.rest import core, routes
from meshim.wire.rest import PREFIX

TEXT = (Path(__file__).parents[3] / "docs" / "rest.md").read_text()


def test_docs_list_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d{3}) \|", TEXT, re.MULTILINE)
    documented = {code: int(status) for codes, status in rows for code in re.findall(r"\w+", codes)}
    assert documented == {code: problem.status for code, problem in core.PROBLEMS.items()}


def test_docs_list_every_endpoint() -> None:
    documented = set(re.findall(r"^\| `([A-Z]+ /\S*)`", TEXT, re.MULTILINE))
    handlers = [(PREFIX, each) for each in (*routes.ACCOUNTS, *routes.SESSIONS, *routes.FRIENDS)]
    handlers += [("", each) for each in routes.routers() if isinstance(each, HTTPRouteHandler)]
    served = {
        f"{method} {prefix}{path.replace(':str', '')}"
        for prefix, handler in handlers
        for path in handler.paths
        for method in handler.http_methods
        if method != "OPTIONS"
    }
    assert documented == served
