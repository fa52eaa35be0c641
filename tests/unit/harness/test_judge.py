"""The judge of histories finds each kind of broken promise, and passes correct histories."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_history
from scripts.harness.history.format import BadHistory
from scripts.harness.history.judge import judge
from tests.unit.harness.history_builder import ALICE, BOB, CAROL, TABLET, HistoryBuilder, broken, verdict_on, write

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "check_history.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


@pytest.fixture
def history() -> HistoryBuilder:
    """Alice has sent m1, m2 and m3 to Bob, who has seen them; Carol is another user."""
    history = HistoryBuilder(ALICE, BOB, CAROL)
    for device in (ALICE, BOB, CAROL):
        history.at_device("online", device)
    for _ in range(3):
        history.send(ALICE, "bob")
    for name in ("m1", "m2", "m3"):
        history.see(BOB, name)
    return history


def test_a_correct_history_passes(path: Path, history: HistoryBuilder) -> None:
    verdict = verdict_on(path, history.records, expected_sent=3)

    assert verdict["ok"]
    assert broken(verdict) == {}
    assert {name: verdict[name] for name in ("users", "devices", "expected", "sent", "settled", "delivered")} == {
        "users": 3,
        "devices": 3,
        "expected": 3,
        "sent": 3,
        "settled": 3,
        "delivered": 3,
    }
    assert verdict["via_offline"] == 0


def test_a_lost_message(path: Path, history: HistoryBuilder) -> None:
    del history.records[-2]
    verdict = verdict_on(path, history.records)

    assert broken(verdict) == {"lost": 1}
    assert verdict["delivered"] == 2
    assert verdict["violations"][0]["message"] == "m2"
    assert not verdict["ok"]


def test_a_duplicate(path: Path, history: HistoryBuilder) -> None:
    history.see(BOB, "m2")
    assert broken(verdict_on(path, history.records)) == {"duplicated": 1}


def test_a_duplicate_after_a_clean_return(path: Path, history: HistoryBuilder) -> None:
    history.at_device("offline", BOB)
    history.at_device("online", BOB)
    history.see(BOB, "m3")
    assert broken(verdict_on(path, history.records)) == {"duplicated": 1}


def test_two_messages_in_the_wrong_order(path: Path, history: HistoryBuilder) -> None:
    del history.records[-3:]
    for name in ("m2", "m1", "m3"):
        history.see(BOB, name)
    assert broken(verdict_on(path, history.records)) == {"reordered": 1}


def test_streams_have_no_order_among_them(path: Path) -> None:
    history = HistoryBuilder(ALICE, TABLET, BOB)
    first, second = history.send(ALICE, "bob"), history.send(TABLET, "bob")
    for device, names in ((BOB, (second, first)), (TABLET, (first,)), (ALICE, (second,))):
        for name in names:
            history.see(device, name)
    assert verdict_on(path, history.records)["ok"]


@pytest.mark.parametrize("device", [CAROL, ALICE], ids=["a stranger", "the sending device itself"])
def test_seen_by_a_device_that_is_not_owed_it(path: Path, history: HistoryBuilder, device: tuple[str, str]) -> None:
    history.see(device, "m2")
    assert broken(verdict_on(path, history.records)) == {"misdelivered": 1}


def test_seen_by_a_stranger_instead_of_the_recipient(path: Path, history: HistoryBuilder) -> None:
    history.records[-1]["user"] = "carol"
    assert broken(verdict_on(path, history.records)) == {"lost": 1, "misdelivered": 1}


@pytest.mark.parametrize("field", ["digest", "from", "from_device", "id"])
def test_an_altered_field(path: Path, history: HistoryBuilder, field: str) -> None:
    history.records[-1][field] = "another"
    assert broken(verdict_on(path, history.records)) == {"altered": 1}


def test_seen_but_never_sent(path: Path, history: HistoryBuilder) -> None:
    history.see(BOB, "m3")["message"] = "m4"
    assert broken(verdict_on(path, history.records)) == {"unknown": 1}


def test_every_device_is_owed_a_copy(path: Path) -> None:
    history = HistoryBuilder(ALICE, TABLET, BOB, ("bob", "tablet"))
    history.see(BOB, history.send(ALICE, "bob"))
    verdict = verdict_on(path, history.records)

    assert broken(verdict) == {"lost": 2}
    assert verdict["delivered"] == 0
    assert {v["sentence"] for v in verdict["violations"]} == {
        "alice/tablet never saw it",
        "bob/tablet never saw it",
    }


def test_a_device_is_not_owed_messages_from_before_it_was_known(path: Path, history: HistoryBuilder) -> None:
    history.at_device("device", ("bob", "tablet"), state="1")
    assert verdict_on(path, history.records)["ok"]


def test_via_offline_means_settled_before_the_recipient_is_online(path: Path) -> None:
    history = HistoryBuilder(ALICE, BOB)
    through_store, sent_late = history.send(ALICE, "bob"), history.send(ALICE, "bob", "queued")
    history.at_device("online", BOB)
    history.outcome(sent_late, "sent")
    sent_early = history.send(ALICE, "bob", "queued")
    history.at_device("offline", BOB)
    history.outcome(sent_early, "sent")
    history.at_device("online", BOB)
    for name in (through_store, sent_late, sent_early):
        history.see(BOB, name)
    verdict = verdict_on(path, history.records)

    assert verdict["ok"]
    assert verdict["via_offline"] == 1


def test_a_killed_application_may_be_handed_its_last_message_again(path: Path, history: HistoryBuilder) -> None:
    history.at_device("killed", BOB)
    history.at_device("killed", BOB)
    history.see(BOB, "m3")
    verdict = verdict_on(path, history.records)

    assert verdict["ok"]
    assert verdict["handed_again"] == 1


@pytest.mark.parametrize("seen", [["m2", "m4"], ["m3", "m3", "m4"], ["m4", "m3"]])
def test_no_other_message_and_not_later(path: Path, history: HistoryBuilder, seen: list[str]) -> None:
    history.send(ALICE, "bob")
    history.at_device("killed", BOB)
    for name in seen:
        history.see(BOB, name)
    assert broken(verdict_on(path, history.records)) == {"duplicated": 1}


def test_killed_while_sending(path: Path, history: HistoryBuilder) -> None:
    unseen, seen = history.send(ALICE, "bob", "queued"), history.send(ALICE, "bob", "queued")
    history.records = [r for r in history.records if r.get("outcome") != "queued" or r["message"] not in (unseen, seen)]
    history.at_device("killed", ALICE)
    history.see(BOB, seen)
    verdict = verdict_on(path, history.records)

    assert verdict["ok"]
    assert (verdict["sent"], verdict["in_doubt"]) == (4, 1)


def test_killed_after_send_returned(path: Path, history: HistoryBuilder) -> None:
    history.send(ALICE, "bob", "queued")
    history.at_device("killed", ALICE)
    assert broken(verdict_on(path, history.records)) == {"lost": 1}


def test_a_lost_state_file_loses_only_its_unsettled_messages(path: Path, history: HistoryBuilder) -> None:
    history.send(ALICE, "bob", "queued")
    history.send(ALICE, "bob", "queued", "sent")
    history.at_device("device", ALICE, state="2")
    verdict = verdict_on(path, history.records)

    assert broken(verdict) == {"lost": 1}
    assert verdict["violations"][0]["message"] == "m5"
    assert verdict["in_doubt"] == 1


def test_a_new_state_file_has_seen_nothing(path: Path, history: HistoryBuilder) -> None:
    history.at_device("device", BOB, state="2")
    for name in ("m2", "m3"):
        history.see(BOB, name)
    assert verdict_on(path, history.records)["ok"]


def test_rejected_is_not_sent_without_an_earlier_sent(path: Path, history: HistoryBuilder) -> None:
    history.send(ALICE, "bob", "queued", "rejected")
    verdict = verdict_on(path, history.records)
    assert verdict["ok"]
    assert verdict["rejected"] == 1

    history.send(ALICE, "bob", "queued", "sent", "rejected")
    assert broken(verdict_on(path, history.records)) == {"lost": 1}


def test_an_unexpected_number_of_messages(path: Path, history: HistoryBuilder) -> None:
    verdict = verdict_on(path, history.records, expected_sent=4)
    assert broken(verdict) == {}
    assert not verdict["ok"]


# ---------------------------------------------------------------- files that cannot be judged


def test_a_truncated_file(path: Path, history: HistoryBuilder) -> None:
    whole = write(path, history.records).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadHistory):
            judge(path)


def test_a_missing_line(path: Path, history: HistoryBuilder) -> None:
    lines = write(path, history.records).read_bytes().splitlines(keepends=True)
    for missing in range(len(lines)):
        path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(BadHistory):
            judge(path)


NEXT = b"\n"
SEND = b'{"type":"send","at":99,"user":"bob","device":"phone","to":"%s","message":"%s","n":%s,"digest":""}'
BAD_LINES = {
    "not JSON": b"{",
    "not UTF-8": b'{"type":"note","text":"\xff"}',
    "nested without end": b"[" * 100_000,
    "not an object": b"[1]",
    "no type": b"{}",
    "unknown type": b'{"type":"other"}',
    "type of another type": b'{"type":[]}',
    "field missing": b'{"type":"user","at":1}',
    "time is true": b'{"type":"user","at":true,"user":"u"}',
    "time is endless": b'{"type":"user","at":1e999,"user":"u"}',
    "time is negative": b'{"type":"user","at":-1,"user":"u"}',
    "second header": b'{"type":"header","format":"meshim-history","version":1,"harness":"h","at":0}',
    "user twice": b'{"type":"user","at":99,"user":"bob"}',
    "device of an unknown user": b'{"type":"device","at":99,"user":"x","device":"phone","state":"1"}',
    "same state file": b'{"type":"device","at":99,"user":"bob","device":"phone","state":"1"}',
    "unknown device": b'{"type":"online","at":99,"user":"bob","device":"tablet"}',
    "back in time": b'{"type":"online","at":0,"user":"bob","device":"phone"}',
    "sent twice": SEND % (b"alice", b"m1", b"1"),
    "n is not next": SEND % (b"alice", b"m", b"2"),
    "n is no number": SEND % (b"alice", b"m", b"1.0"),
    "to an unknown user": SEND % (b"unknown", b"m", b"1"),
    "outcome of nothing": b'{"type":"outcome","at":99,"message":"x","outcome":"sent"}',
    "no such outcome": b'{"type":"outcome","at":99,"message":"m1","outcome":"gone"}',
    "queued as nothing": b'{"type":"outcome","at":99,"message":"m1","outcome":"queued"}',
    "after the end": b'{"type":"end","at":99,"records":23}\n{"type":"note"}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(
    path: Path,
    history: HistoryBuilder,
    line: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = write(path, history.records).read_bytes().splitlines(keepends=True)
    end = json.dumps({"type": "end", "at": 99, "records": len(lines) + 1}).encode()
    path.write_bytes(b"".join((*lines[:-1], line, b"\n", end, b"\n")))
    monkeypatch.setattr(sys, "argv", ["check_history.py", str(path), "--json"])

    assert check_history.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}, line {len(lines) + line.count(NEXT)}: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")


def test_other_formats_and_empty_files(path: Path) -> None:
    for content in (b"", b"\n", b'{"type":"note"}\n', b'{"type":"header","format":"x","version":1,"harness":"h"}\n'):
        path.write_bytes(content)
        with pytest.raises(BadHistory):
            judge(path)


# ---------------------------------------------------------------- the command


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-S", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_the_command(path: Path, history: HistoryBuilder) -> None:
    done = run(write(path, history.records), "--json", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"]

    history.see(BOB, "m1")
    done = run(write(path, history.records), cwd=path.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert "duplicated: message 'm1': bob/phone saw it on line" in done.stdout

    done = run(path.parent / "nowhere", cwd=path.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("cannot be read: No such file or directory.\n")


def test_it_imports_the_standard_library_only() -> None:
    folder = SCRIPT.parent / "harness" / "history"
    for script in (SCRIPT, folder / "format.py", folder / "judge.py"):
        nodes = list(ast.walk(ast.parse(script.read_text())))
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        ours = {"scripts.harness.history.format", "scripts.harness.history.judge"}
        assert {module.split(".")[0] for module in modules - ours} <= set(sys.stdlib_module_names)


def test_the_documented_example(path: Path) -> None:
    example = (ROOT / "docs" / "history.md").read_text().split("```json\n")[1].split("```")[0]
    path.write_text(example)
    verdict = judge(path)
    assert verdict["ok"]
    assert verdict["via_offline"] == 1
