"""Recordings by strace: what a program did is replayed to the byte, and unsupported calls are refused."""

import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from scripts.harness.power_loss import strace
from scripts.harness.power_loss.strace import Replay, UnsupportedCall

PREFACE = "import os; disk = os.getcwd() + '/disk'\n"
"""First line of every program: only absolute names can be replayed."""


def record(folder: Path, program: str) -> Path:
    """Run a Python program in the folder under strace; return the recording."""
    recording = folder / "trace"
    command = [*strace.RECORD, str(recording), sys.executable, "-I", "-S", "-c", PREFACE + textwrap.dedent(program)]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return recording


def replayed(folder: Path, program: str) -> Replay:
    replay = Replay(lambda path: path.startswith(f"{folder}/disk/"))
    (folder / "disk").mkdir()
    for call in strace.calls(record(folder, program), folder):
        replay.apply(call)
    return replay


def test_every_way_to_write_is_replayed(tmp_path: Path) -> None:
    replay = replayed(
        tmp_path,
        """
        file = os.open(f"{disk}/plain", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"first "); os.writev(file, [b"sec", b"ond"])
        file = os.open(f"{disk}/at", os.O_RDWR | os.O_CREAT)
        os.pwrite(file, b"\\\\x00\\"\\xff", 5000); os.ftruncate(file, 5002); os.pwrite(file, b"zero", 0)
        file = os.open(f"{disk}/plain", os.O_WRONLY | os.O_APPEND); os.write(file, b" third")
        os.mkdir(f"{disk}/folder"); os.rename(f"{disk}/plain", f"{disk}/folder/moved")
        os.open(f"{disk}/gone", os.O_WRONLY | os.O_CREAT); os.unlink(f"{disk}/gone")
        file = os.open(f"{disk}/again", os.O_WRONLY | os.O_CREAT); os.write(file, b"old")
        file = os.open(f"{disk}/again", os.O_WRONLY | os.O_TRUNC); os.write(file, b"new")
        """,
    )
    disk = replay.disk
    real = {str(path): path.read_bytes() for path in (tmp_path / "disk").rglob("*") if path.is_file()}
    assert {path: disk.visible(path) for path in disk.paths()} == real
    assert len(real) == 3
    assert {} in [disk.after_power_loss(Random(seed)) for seed in range(20)]


def test_only_synced_writes_are_durable(tmp_path: Path) -> None:
    replay = replayed(
        tmp_path,
        """
        for name, flags in (("fsync", 0), ("none", 0), ("sync-flag", os.O_SYNC)):
            file = os.open(f"{disk}/{name}", os.O_WRONLY | os.O_CREAT | flags)
            os.write(file, b"text")
            if name == "fsync":
                os.fdatasync(file)
        """,
    )
    worst = [replay.disk.after_power_loss(Random(seed)) for seed in range(50)]
    assert {str(tmp_path / "disk" / "fsync"): b"text", str(tmp_path / "disk" / "sync-flag"): b"text"} in worst
    assert all(state[str(tmp_path / "disk" / "fsync")] == b"text" for state in worst)


def test_a_sync_of_a_folder_makes_its_names_durable(tmp_path: Path) -> None:
    replay = replayed(
        tmp_path,
        """
        os.open(f"{disk}/made", os.O_WRONLY | os.O_CREAT)
        os.fsync(os.open(disk, os.O_RDONLY))
        """,
    )
    assert replay.disk.after_power_loss(Random(0)) == {str(tmp_path / "disk" / "made"): b""}


@pytest.mark.parametrize(
    "program",
    [
        "import mmap; f = os.open(disk + '/a', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 9); mmap.mmap(f, 9)",
        "f = os.open(disk + '/a', os.O_RDWR | os.O_CREAT); os.write(f, b'12'); os.lseek(f, 0, 0); os.write(f, b'3')",
        "os.open(disk + '/a', os.O_RDWR | os.O_CREAT); os.link(disk + '/a', disk + '/b')",
        "f = os.open(disk + '/a', os.O_RDWR | os.O_CREAT); os.posix_fallocate(f, 0, 100)",
        "os.open(disk + '-a', os.O_RDWR | os.O_CREAT); os.rename(disk + '-a', disk + '/a')",
    ],
)
def test_an_unsupported_call_is_refused(tmp_path: Path, program: str) -> None:
    with pytest.raises(UnsupportedCall, match=r"^line \d+: "):
        replayed(tmp_path, program)


def test_interrupted_calls_of_several_threads_are_joined(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    file = f"3<{strace.in_hex(str(folder / 'a'))}>"
    (tmp_path / "trace").write_text(
        f"""\
1 openat(AT_FDCWD<\\x2f>, "{strace.in_hex(str(folder / "a"))}", O_RDWR|O_CREAT, 0600) = {file}
1 pwrite64({file}, "\\x61", 1, 0) = 1
2 fsync({file} <unfinished ...>
1 pwrite64({file}, "\\x62", 1, 0 <unfinished ...>
1 <... pwrite64 resumed>)           = 1
2 <... fsync resumed>)              = 0
1 pwrite64({file}, "\\x63", 1, 0 <unfinished ...>
1 +++ killed by SIGKILL +++
"""
    )
    replay = Replay(lambda path: path.startswith(f"{folder}/"))
    for call in strace.calls(tmp_path / "trace", folder):
        replay.apply(call)
    path = str(folder / "a")
    assert replay.disk.visible(path) == b"b"
    assert {path: b"a"} in [replay.disk.after_power_loss(Random(seed)) for seed in range(20)]
    assert replay.interrupted == {path}
