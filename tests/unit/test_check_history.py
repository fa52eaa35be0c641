"""The judge catches what it is there to catch, and nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_history
from scripts.harness.history.format import BadHistory
from tests.story import ALICE, BOB, CAROL, TABLET, Story, broken, verdict_on, write

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "check_history.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


@pytest.fixture
def story() -> Story:
    """Alice and Bob talk; Carol is a stranger.  Bob has seen m1, m2 and m3."""
    story = Story(ALICE, BOB, CAROL)
    for device in (ALICE, BOB, CAROL):
        story.at_device("online", device)
    for _ in range(3):
        story.send(ALICE, "bob")
    for name in ("m1", "m2", "m3"):
        story.see(BOB, name)
    return story


def test_a_correct_history_passes(path: Path, story: Story) -> None:
    verdict = verdict_on(path, story.records, expected_sent=3)

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


def test_a_loss(path: Path, story: Story) -> None:
    del story.records[-2]
    verdict = verdict_on(path, story.records)

    assert broken(verdict) == {"lost": 1}
    assert verdict["delivered"] == 2
    assert verdict["violations"][0]["message"] == "m2"
    assert not verdict["ok"]


def test_a_duplicate(path: Path, story: Story) -> None:
    story.see(BOB, "m2")
    assert broken(verdict_on(path, story.records)) == {"duplicated": 1}


def test_a_duplicate_after_a_clean_return(path: Path, story: Story) -> None:
    story.at_device("offline", BOB)
    story.at_device("online", BOB)
    story.see(BOB, "m3")
    assert broken(verdict_on(path, story.records)) == {"duplicated": 1}


def test_a_swap(path: Path, story: Story) -> None:
    del story.records[-3:]
    for name in ("m2", "m1", "m3"):
        story.see(BOB, name)
    assert broken(verdict_on(path, story.records)) == {"reordered": 1}


def test_streams_have_no_order_among_them(path: Path) -> None:
    story = Story(ALICE, TABLET, BOB)
    first, second = story.send(ALICE, "bob"), story.send(TABLET, "bob")
    for device, names in ((BOB, (second, first)), (TABLET, (first,)), (ALICE, (second,))):
        for name in names:
            story.see(device, name)
    assert verdict_on(path, story.records)["ok"]


@pytest.mark.parametrize("device", [CAROL, ALICE], ids=["a stranger", "the sending device itself"])
def test_seen_by_the_wrong_one(path: Path, story: Story, device: tuple[str, str]) -> None:
    story.see(device, "m2")
    assert broken(verdict_on(path, story.records)) == {"misdelivered": 1}


def test_seen_by_a_stranger_instead(path: Path, story: Story) -> None:
    story.records[-1]["user"] = "carol"
    assert broken(verdict_on(path, story.records)) == {"lost": 1, "misdelivered": 1}


@pytest.mark.parametrize("field", ["digest", "from", "from_device", "id"])
def test_altered(path: Path, story: Story, field: str) -> None:
    story.records[-1][field] = "another"
    assert broken(verdict_on(path, story.records)) == {"altered": 1}


def test_seen_but_never_sent(path: Path, story: Story) -> None:
    story.see(BOB, "m3")["message"] = "m4"
    assert broken(verdict_on(path, story.records)) == {"unknown": 1}


def test_every_device_is_owed_a_copy(path: Path) -> None:
    story = Story(ALICE, TABLET, BOB, ("bob", "tablet"))
    story.see(BOB, story.send(ALICE, "bob"))
    verdict = verdict_on(path, story.records)

    assert broken(verdict) == {"lost": 2}
    assert verdict["delivered"] == 0
    assert {v["sentence"] for v in verdict["violations"]} == {
        "alice/tablet never saw it",
        "bob/tablet never saw it",
    }


def test_a_device_is_owed_nothing_from_before_its_time(path: Path, story: Story) -> None:
    story.at_device("device", ("bob", "tablet"), state="1")
    assert verdict_on(path, story.records)["ok"]


def test_via_offline_is_safe_before_the_recipient_comes(path: Path) -> None:
    story = Story(ALICE, BOB)
    through_store, sent_late = story.send(ALICE, "bob"), story.send(ALICE, "bob", "queued")
    story.at_device("online", BOB)
    story.outcome(sent_late, "sent")
    sent_early = story.send(ALICE, "bob", "queued")
    story.at_device("offline", BOB)
    story.outcome(sent_early, "sent")
    story.at_device("online", BOB)
    for name in (through_store, sent_late, sent_early):
        story.see(BOB, name)
    verdict = verdict_on(path, story.records)

    assert verdict["ok"]
    assert verdict["via_offline"] == 1


def test_a_killed_application_may_be_handed_its_last_message_again(path: Path, story: Story) -> None:
    story.at_device("killed", BOB)
    story.at_device("killed", BOB)
    story.see(BOB, "m3")
    verdict = verdict_on(path, story.records)

    assert verdict["ok"]
    assert verdict["handed_again"] == 1


@pytest.mark.parametrize("seen", [["m2", "m4"], ["m3", "m3", "m4"], ["m4", "m3"]])
def test_but_no_other_and_not_later(path: Path, story: Story, seen: list[str]) -> None:
    story.send(ALICE, "bob")
    story.at_device("killed", BOB)
    for name in seen:
        story.see(BOB, name)
    assert broken(verdict_on(path, story.records)) == {"duplicated": 1}


def test_killed_while_sending(path: Path, story: Story) -> None:
    unseen, seen = story.send(ALICE, "bob", "queued"), story.send(ALICE, "bob", "queued")
    story.records = [r for r in story.records if r.get("outcome") != "queued" or r["message"] not in (unseen, seen)]
    story.at_device("killed", ALICE)
    story.see(BOB, seen)
    verdict = verdict_on(path, story.records)

    assert verdict["ok"]
    assert (verdict["sent"], verdict["in_doubt"]) == (4, 1)


def test_killed_after_send_returned(path: Path, story: Story) -> None:
    story.send(ALICE, "bob", "queued")
    story.at_device("killed", ALICE)
    assert broken(verdict_on(path, story.records)) == {"lost": 1}


def test_a_lost_state_file_takes_only_its_unsettled_outbox_along(path: Path, story: Story) -> None:
    story.send(ALICE, "bob", "queued")
    story.send(ALICE, "bob", "queued", "sent")
    story.at_device("device", ALICE, state="2")
    verdict = verdict_on(path, story.records)

    assert broken(verdict) == {"lost": 1}
    assert verdict["violations"][0]["message"] == "m5"
    assert verdict["in_doubt"] == 1


def test_a_new_state_file_knows_of_nothing(path: Path, story: Story) -> None:
    story.at_device("device", BOB, state="2")
    for name in ("m2", "m3"):
        story.see(BOB, name)
    assert verdict_on(path, story.records)["ok"]


def test_rejected_is_not_sent_unless_sent_was_said(path: Path, story: Story) -> None:
    story.send(ALICE, "bob", "queued", "rejected")
    verdict = verdict_on(path, story.records)
    assert verdict["ok"]
    assert verdict["rejected"] == 1

    story.send(ALICE, "bob", "queued", "sent", "rejected")
    assert broken(verdict_on(path, story.records)) == {"lost": 1}


def test_another_count_than_expected(path: Path, story: Story) -> None:
    verdict = verdict_on(path, story.records, expected_sent=4)
    assert broken(verdict) == {}
    assert not verdict["ok"]


# ---------------------------------------------------------------- files that cannot be judged


def test_a_truncated_file(path: Path, story: Story) -> None:
    whole = write(path, story.records).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadHistory):
            check_history.judge(path)


def test_a_missing_line(path: Path, story: Story) -> None:
    lines = write(path, story.records).read_bytes().splitlines(keepends=True)
    for missing in range(len(lines)):
        path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(BadHistory):
            check_history.judge(path)


NEXT = b"\n"
SEND = b'{"type":"send","at":99,"user":"bob","device":"phone","to":"%s","message":"%s","n":%s,"digest":""}'
BAD_LINES = {
    "not JSON": b"{",
    "not UTF-8": b'{"type":"note","text":"\xff"}',
    "nested without end": b"[" * 100_000,
    "not an object": b"[1]",
    "no type": b"{}",
    "unknown type": b'{"type":"sended"}',
    "type of another type": b'{"type":[]}',
    "field missing": b'{"type":"user","at":1}',
    "time is true": b'{"type":"user","at":true,"user":"u"}',
    "time is endless": b'{"type":"user","at":1e999,"user":"u"}',
    "time is negative": b'{"type":"user","at":-1,"user":"u"}',
    "second header": b'{"type":"header","format":"meshim-history","version":1,"harness":"h","at":0}',
    "user twice": b'{"type":"user","at":99,"user":"bob"}',
    "device of nobody": b'{"type":"device","at":99,"user":"x","device":"phone","state":"1"}',
    "same state file": b'{"type":"device","at":99,"user":"bob","device":"phone","state":"1"}',
    "unknown device": b'{"type":"online","at":99,"user":"bob","device":"tablet"}',
    "back in time": b'{"type":"online","at":0,"user":"bob","device":"phone"}',
    "sent twice": SEND % (b"alice", b"m1", b"1"),
    "n is not next": SEND % (b"alice", b"m", b"2"),
    "n is no number": SEND % (b"alice", b"m", b"1.0"),
    "to nobody": SEND % (b"nobody", b"m", b"1"),
    "outcome of nothing": b'{"type":"outcome","at":99,"message":"x","outcome":"sent"}',
    "no such outcome": b'{"type":"outcome","at":99,"message":"m1","outcome":"gone"}',
    "queued as nothing": b'{"type":"outcome","at":99,"message":"m1","outcome":"queued"}',
    "after the end": b'{"type":"end","at":99,"records":23}\n{"type":"note"}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(
    path: Path, story: Story, line: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write(path, story.records).read_bytes().splitlines(keepends=True)
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
            check_history.judge(path)


# ---------------------------------------------------------------- the command


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-S", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_the_command(path: Path, story: Story) -> None:
    done = run(write(path, story.records), "--json", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"]

    story.see(BOB, "m1")
    done = run(write(path, story.records), cwd=path.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert "duplicated: message 'm1': bob/phone saw it on line" in done.stdout

    done = run(path.parent / "nowhere", cwd=path.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("cannot be read: No such file or directory.\n")


def test_it_imports_nothing_of_meshim() -> None:
    for script in (SCRIPT, SCRIPT.parent / "harness" / "history" / "format.py"):
        nodes = list(ast.walk(ast.parse(script.read_text())))
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        ours = {"scripts.harness.history.format"}
        assert {module.split(".")[0] for module in modules - ours} <= set(sys.stdlib_module_names)


def test_the_documented_example(path: Path) -> None:
    example = (ROOT / "docs" / "history.md").read_text().split("```json\n")[1].split("```")[0]
    path.write_text(example)
    verdict = check_history.judge(path)
    assert verdict["ok"]
    assert verdict["via_offline"] == 1
