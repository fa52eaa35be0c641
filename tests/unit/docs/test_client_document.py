"""The examples of docs/client.md and of the README type-check, and the page names all that the library has."""

import inspect
import re
from pathlib import Path

import mypy.api
import pytest

import meshim.client
from meshim.client import Client, Event

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "client.md").read_text()


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_examples_type_check(tmp_path: Path) -> None:
    found = examples(PAGE) + examples((ROOT / "README.md").read_text())
    assert len(found) >= 8
    files = [tmp_path / f"example{number}.py" for number in range(len(found))]
    for file, text in zip(files, found, strict=True):
        file.write_text(text)
    report, errors, status = mypy.api.run(
        ["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--warn-unreachable", *map(str, files)]
    )
    assert status == 0, report + errors


def test_all_examples_open_the_same_device() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "meshim" / "client").rglob("*.py")]
    opened = [each for page in pages for each in re.findall(r"Client\((\"http.*?)\) as", page.read_text())]
    assert len(opened) >= 4
    assert set(opened) == {'"http://127.0.0.1:8100", "ann", password, device="bot", state="ann.db"'}


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(Client) if not name.startswith("_")])
def test_the_page_has_every_method(name: str) -> None:
    assert re.search(rf"[`.]{name}\b", PAGE)


def test_the_page_has_a_row_for_every_event() -> None:
    rows = "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))
    assert [kind.__name__ for kind in Event.__args__ if f"`{kind.__name__}`" not in rows] == []
    assert {kind.__name__ for kind in Event.__args__} <= set(meshim.client.__all__)
