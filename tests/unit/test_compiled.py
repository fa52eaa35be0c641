"""Which folder holds the compiled form of these sources, and when it is used."""

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
    """A copy of the sources that a test may change."""
    package = tmp_path / "meshim"
    shutil.copytree(Path(compiled.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def test_the_same_sources_elsewhere_have_the_same_folder(copy: Path) -> None:
    assert compiled.folder(copy) == compiled.folder()


@pytest.mark.parametrize("file", ["protocol/link.py", "wire/mesh.py", "stores/sql/migrations/env.py"])
def test_a_changed_source_has_another_folder(copy: Path, file: str) -> None:
    before = compiled.folder(copy)
    with (copy / file).open("a") as source:
        source.write("\n")
    assert compiled.folder(copy) != before


def test_a_renamed_source_has_another_folder(copy: Path) -> None:
    before = compiled.folder(copy)
    (copy / "protocol" / "link.py").rename(copy / "protocol" / "links.py")
    assert compiled.folder(copy) != before


@pytest.mark.parametrize(("plain", "exists", "available"), [("0", True, True), ("1", True, False), ("0", False, False)])
def test_compiled_modules_are_available_when_made_and_wanted(
    plain: str, exists: bool, available: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHIM_PLAIN", plain)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    if exists:
        compiled.folder().mkdir(parents=True)
    assert compiled.available() == (compiled.folder() if available else None)


@pytest.mark.parametrize("name", compiled.MODULES)
def test_no_compiled_module_defines_an_encoded_struct(name: str) -> None:
    """mypyc would lose the options of the class; `array_like` and `tag` decide the bytes on the wire."""
    module = importlib.import_module(name)
    for what, each in inspect.getmembers(module, inspect.isclass):
        if each.__module__ == name and issubclass(each, msgspec.Struct):
            config = each.__struct_config__
            assert not config.array_like, what
            assert config.tag is None, what


def test_use_after_an_import_is_an_assertion_error(tmp_path: Path) -> None:
    """Plain and compiled modules of one name would have different classes."""
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
