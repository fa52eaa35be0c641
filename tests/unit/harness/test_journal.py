"""The journal of a killed client process, as the next process reads it."""

from pathlib import Path

import pytest

from scripts.harness.history.journal import Journal, read_journal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "process-0.jsonl"


def test_a_missing_file_is_an_empty_journal(file: Path) -> None:
    assert read_journal(file) == {}


def test_numbers_and_unsettled_messages_are_read_back(file: Path) -> None:
    journal = Journal(file, 0.0)
    for number, name in enumerate(("a", "b", "c", "d"), start=1):
        journal.write("send", device="7", to="ben", message=name, n=number)
    journal.write("outcome", message="a", outcome="queued", id="aa")
    journal.write("outcome", message="b", outcome="queued", id="bb")
    journal.write("outcome", message="a", outcome="sent")
    journal.write("outcome", message="c", outcome="rejected")
    record = read_journal(file)["7"]
    assert (record.written, record.numbers) == (4, {"ben": 4})
    assert record.unsettled == {"bb": "b"}  # the envelope of d is unknown, if there is one


def test_a_torn_line_is_cut_and_later_lines_are_whole(file: Path) -> None:
    Journal(file, 0.0).write("send", device="7", to="ben", message="a", n=1)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"type":"se')
    Journal(file, 0.0).write("send", device="7", to="ben", message="b", n=2)
    lines = file.read_bytes().splitlines(keepends=True)
    assert lines[0] == whole
    assert len(lines) == 2
    assert read_journal(file)["7"].written == 2


def test_a_file_with_only_a_torn_line_becomes_empty(file: Path) -> None:
    file.write_bytes(b'{"type":"se')
    Journal(file, 0.0)
    assert file.read_bytes() == b""
