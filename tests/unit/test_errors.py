"""Errors are sentences: with a capital, wherever they are raised."""

import ast
from collections.abc import Iterator
from pathlib import Path

from meshim import errors
from meshim.errors import as_sentence

MESHIM = Path(errors.__file__).parent
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
WIRE = {"PeerError"}
"""Its text goes to the peer, in lower case as all text on the wire; the client library makes sentences of it."""
FOLDERS = (
    "cli", "client", "connector", "deploy", "protocol", "rest", "runtime", "stores", "topology", "transfer", "writer",
)  # fmt: skip
NOT_YET = {"friends"}
"""Folders whose sentences still begin in lower case."""


def beginnings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and literal beginning of each sentence that an error of this file is made with."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS - WIRE:
            for argument in node.args:
                first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield node.lineno, first.value


def is_word(beginning: str) -> bool:
    """Whether it begins with a word of prose; a code (`no_such_user`) or a field (`backends.nats`) keeps its case."""
    word, space, _ = beginning.partition(" ")
    return bool(space) and word.isalpha()


def test_every_error_begins_with_a_capital() -> None:
    files = [
        file
        for folder in FOLDERS
        for file in sorted((MESHIM / folder).rglob("*.py"))
        if file.parent.name not in NOT_YET
    ]
    found = [(file, line, text) for file in files for line, text in beginnings(file) if is_word(text)]
    assert len(found) > 80, "the sentences are not found any more"
    assert [f"{file}:{line}: {text}" for file, line, text in found if text[0].islower()] == []


def test_what_a_peer_said_becomes_a_sentence() -> None:
    assert as_sentence("the body has 9 bytes, 8 are allowed") == "The body has 9 bytes, 8 are allowed."
    assert as_sentence("It is one.") == "It is one."
