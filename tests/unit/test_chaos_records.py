"""What the next process of players finds in the file of the one that was killed."""

from pathlib import Path

import pytest

from scripts.harness.history.journal import Records, remember


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "process-0.jsonl"


def test_nothing_is_known_without_a_file(file: Path) -> None:
    assert remember(file) == {}


def test_numbers_go_on_and_what_is_unsettled_is_known(file: Path) -> None:
    records = Records(file, 0.0)
    for number, name in enumerate(("a", "b", "c", "d"), start=1):
        records.write("send", device="7", to="ben", message=name, n=number)
    records.write("outcome", message="a", outcome="queued", id="aa")
    records.write("outcome", message="b", outcome="queued", id="bb")
    records.write("outcome", message="a", outcome="sent")
    records.write("outcome", message="c", outcome="rejected")
    memory = remember(file)["7"]
    assert (memory.written, memory.numbers) == (4, {"ben": 4})
    assert memory.unsettled == {"bb": "b"}  # nobody knows the envelope of d, if there is one


def test_a_torn_line_is_cut_and_what_follows_is_whole(file: Path) -> None:
    Records(file, 0.0).write("send", device="7", to="ben", message="a", n=1)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"type":"se')
    Records(file, 0.0).write("send", device="7", to="ben", message="b", n=2)
    lines = file.read_bytes().splitlines(keepends=True)
    assert lines[0] == whole
    assert len(lines) == 2
    assert remember(file)["7"].written == 2


def test_a_file_of_a_torn_line_alone_is_empty(file: Path) -> None:
    file.write_bytes(b'{"type":"se')
    Records(file, 0.0)
    assert file.read_bytes() == b""
