"""The table of H1 to H12 in docs/guarantees.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def rows() -> dict[str, str]:
    """The last cell of each row, by its first."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    table = page.partition("## Hostile or careless people, H1 to H12\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| H")]
    return {first.strip("| "): last.strip("| ") for first, *_, last in cells}


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, test) for each test in a cell: names follow the name of their file."""
    found, file = [], ""
    for name in re.findall(r"`([a-z0-9_./]+)`", cell):
        if name.endswith(".py"):
            file = name
        else:
            found.append((file, name))
    return found


def test_every_attack_has_a_row_with_tests_that_exist() -> None:
    table = rows()
    assert list(table) == [f"H{number}" for number in range(1, 13)]
    for attack, cell in table.items():
        tests = named_tests(cell)
        assert tests, attack
        for file, test in tests:
            path = ROOT / "tests" / file
            assert path.is_file(), (attack, file)
            defined = {each.name for each in ast.parse(path.read_text()).body if isinstance(each, _FUNCTION)}
            assert test in defined, (attack, file, test)


def test_every_test_that_is_named_after_an_attack_is_in_its_row() -> None:
    table = rows()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, test in re.findall(r"^(?:async )?def (?=test_h(\d\d)_)(\w+)", path.read_text(), re.MULTILINE):
            assert f"`{test}`" in table[f"H{int(number)}"], (path, test)


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
