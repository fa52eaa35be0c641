"""What is taken for the compiled form of these sources, and when."""

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from meshim import compiled


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources, as a folder of their own that can be changed."""
    package = tmp_path / "meshim"
    shutil.copytree(Path(compiled.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def test_the_same_sources_anywhere_have_the_same_folder(copy: Path) -> None:
    assert compiled.folder(copy) == compiled.folder()


@pytest.mark.parametrize("file", ["protocol/link.py", "wire/mesh.py", "stores/sql/migrations/env.py"])
def test_any_change_of_the_sources_is_another_folder(copy: Path, file: str) -> None:
    before = compiled.folder(copy)
    with (copy / file).open("a") as source:
        source.write("\n")
    assert compiled.folder(copy) != before


def test_a_source_under_another_name_is_another_folder(copy: Path) -> None:
    before = compiled.folder(copy)
    (copy / "protocol" / "link.py").rename(copy / "protocol" / "links.py")
    assert compiled.folder(copy) != before


@pytest.mark.parametrize(("plain", "there", "wanted"), [("0", True, True), ("1", True, False), ("0", False, False)])
def test_they_are_available_when_made_and_wanted(
    plain: str, there: bool, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHIM_PLAIN", plain)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    if there:
        compiled.folder().mkdir(parents=True)
    assert compiled.available() == (compiled.folder() if wanted else None)


@pytest.mark.parametrize("name", compiled.MODULES)
def test_no_compiled_module_defines_what_is_encoded(name: str) -> None:
    """Their options are forgotten: `array_like` and `tag` decide what is on the wire."""
    module = importlib.import_module(name)
    for what, each in inspect.getmembers(module, inspect.isclass):
        if each.__module__ == name and issubclass(each, msgspec.Struct):
            config = each.__struct_config__
            assert not config.array_like, what
            assert config.tag is None, what


def test_nobody_uses_what_was_imported_already(tmp_path: Path) -> None:
    """Two of the same name would not know each other's classes."""
    program = f"""if True:
        import sys
        import meshim.protocol.window
        from meshim import compiled
        sys.prefix = {str(tmp_path)!r}
        compiled.folder().mkdir(parents=True)
        compiled.use()
    """
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert ran.returncode == 1
    assert "imported already: ['meshim.protocol.window']" in ran.stderr
