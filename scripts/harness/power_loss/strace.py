"""Replays the system calls of a recording by strace onto a `Disk`.

strace writes a call down before the process goes on, so that the lines are in causal order: what a process did after a
sync stands below the end of that sync.  A loss of power is a line: nothing below it has happened, and a call that
began above it and ends below it does not count.

Calls that this module cannot replay raise `UnsupportedCall` with the line.  Names have to be absolute: strace does not
show the folder of relative ones.  At the end the caller compares the disk model with the real disk.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.harness.power_loss.disk_model import Disk

_OPENING = ("openat", "?open", "?creat")
_WRITING = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "?truncate", "?fallocate")
_NAMING = ("?rename", "renameat", "renameat2", "?unlink", "unlinkat", "?link", "linkat", "?symlink", "symlinkat")
_SYNCING = ("fsync", "fdatasync")
_OTHER = ("lseek", "mmap", "?sendfile", "copy_file_range", "io_uring_setup")

RECORD = [
    "strace",
    "--follow-forks",
    "--seccomp-bpf",  # otherwise strace stops a process at every call
    "--decode-fds=path",
    "-xx",  # all strings in hexadecimal digits
    f"--string-limit={1 << 26}",
    "--signal=none",
    f"--trace={','.join((*_OPENING, *_WRITING, *_NAMING, *_SYNCING, *_OTHER))}",
    "--inject=io_uring_setup:error=ENOSYS",  # operations on a ring would not show as calls
    "--output",
]
"""The command line of strace; the recording file and the command follow."""

_HEX = r"(?:\\x[0-9a-f]{2})*"
_OPEN_FILE = rf"(?:(?P<fd>\d+)|AT_FDCWD)<(?P<path>{_HEX})>(?P<deleted>\(deleted\))?"
_CALL = re.compile(r" *(\w+)\((.*)\) += (\d+|0x[0-9a-f]+|\?)(.*)")
_UNFINISHED = " <unfinished ...>\n"
_RESUMED = re.compile(r" *<\.\.\. \w+ resumed>")
_AN_OPEN_FILE = re.compile(_OPEN_FILE)
_NAMES = re.compile(rf'(?:AT_FDCWD<(?P<cwd>{_HEX})>, |\d+<(?P<folder>{_HEX})>, )?"(?P<name>{_HEX})"(?P<cut>\.\.\.)?')
_STRINGS = re.compile(rf'"({_HEX})"(\.\.\.)?')


class UnsupportedCall(Exception):
    """The recording has a call that cannot be replayed."""


class Call(NamedTuple):
    """A system call that began at line `began` and ended at line `at`."""

    at: int
    began: int
    name: str
    arguments: str
    result: str
    more: str
    """Text after the result; for a descriptor its path."""


def calls(recording: Path, folder: Path) -> Iterator[Call]:
    """Yield the successful calls that name the folder, in the order of their ends.

    Calls that a kill has interrupted come last; their result is `?`.
    """
    mark = in_hex(str(folder))
    unfinished: dict[str, tuple[int, str]] = {}
    with recording.open(encoding="ascii") as lines:
        for at, line in enumerate(lines, 1):
            pid, _, call = line.partition(" ")
            began = at
            if line.endswith(_UNFINISHED):
                unfinished[pid] = (at, call[: -len(_UNFINISHED)])
                continue
            if match := _RESUMED.match(call):
                began, beginning = unfinished.pop(pid)
                call = beginning + call[match.end() :]
            if mark in call and (match := _CALL.match(call)):
                yield Call(at, began, *match.groups())
        for began, call in unfinished.values():
            if mark in call and (match := _CALL.match(f"{call}) = ?")):
                yield Call(at + 1, began, *match.groups())


class Replay:
    """A disk model, and the open files.  `concerns` returns whether a path is on that disk."""

    def __init__(self, concerns: Callable[[str], bool]) -> None:
        self.disk = Disk()
        self._concerns = concerns
        self._performers: dict[str, Callable[[Call], None]] = {
            **dict.fromkeys(("openat", "open", "creat"), self._open),
            **dict.fromkeys(("unlink", "unlinkat"), self._unlink),
            **dict.fromkeys(("rename", "renameat", "renameat2"), self._rename),
            **dict.fromkeys(("fsync", "fdatasync"), self._sync),
            **dict.fromkeys(("write", "writev", "pwrite64"), self._write),
            "ftruncate": self._truncate,
            "mmap": self._map,
            "lseek": self._seek,
        }
        self._synchronous: dict[tuple[str, str], bool] = {}
        """By descriptor and path, whether each write is also a sync (`O_SYNC`)."""
        self.interrupted: set[str] = set()
        """Files whose last change was interrupted: its effect is unknown."""
        self._at_start: set[tuple[str, str]] = set()
        """Files with content that were opened without O_APPEND: writing them from the start is not supported."""

    def apply(self, call: Call) -> None:
        """Apply a call to the disk.  Raises `UnsupportedCall`."""
        if call.result == "?":
            if call.name not in _WRITING:
                self.interrupted.update(_paths(call))
            self.interrupted.update(_text(match["path"]) for match in _AN_OPEN_FILE.finditer(call.arguments))
            return
        self._performers.get(call.name, self._refuse)(call)

    def _open(self, call: Call) -> None:
        match = _AN_OPEN_FILE.match(call.result + call.more)
        path = _text(match["path"]) if match else ""
        if not path or not self._concerns(path):
            return
        assert match is not None
        key = (match["fd"], path)
        self._synchronous.pop(key, None)  # of an earlier file with this descriptor
        if not (call.name == "creat" or "O_WRONLY" in call.arguments or "O_RDWR" in call.arguments):
            return
        truncates = call.name == "creat" or "O_TRUNC" in call.arguments
        if path not in self.disk:
            self.disk.create(path, call.at)
        elif truncates and self.disk.size(path):
            self.disk.truncate(path, 0, call.at)
        self._synchronous[key] = "O_SYNC" in call.arguments or "O_DSYNC" in call.arguments
        self._at_start.discard(key)
        if self.disk.size(path) and "O_APPEND" not in call.arguments:
            self._at_start.add(key)

    def _write(self, call: Call) -> None:
        path = self._path(call)
        if not path:
            return
        strings = _STRINGS.findall(call.arguments)
        data = b"".join(_bytes(text) for text, _ in strings)[: int(call.result)]
        if any(cut for _, cut in strings) or len(data) != int(call.result):
            raise UnsupportedCall(f"line {call.at}: its bytes were cut off")
        key = self._key(call)
        if call.name == "pwrite64":
            offset = int(call.arguments.rpartition(", ")[2])
        elif key in self._at_start:
            raise UnsupportedCall(f"line {call.at}: {path} is written from its start")
        else:
            offset = self.disk.size(path)
        self.disk.write(path, offset, data, call.at)
        if self._synchronous.get(key):
            self.disk.sync(path, call.at + 1)

    def _truncate(self, call: Call) -> None:
        if path := self._path(call):
            self.disk.truncate(path, int(call.arguments.rpartition(", ")[2]), call.at)

    def _sync(self, call: Call) -> None:
        if match := _AN_OPEN_FILE.match(call.arguments):  # also a folder
            self.disk.sync(_text(match["path"]), call.began)

    def _map(self, call: Call) -> None:
        if "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments:
            self._refuse(call)

    def _seek(self, call: Call) -> None:
        if self._key(call) in self._synchronous:
            self._refuse(call)

    def _unlink(self, call: Call) -> None:
        (path,) = _paths(call)
        if path in self.disk:
            self.disk.unlink(path, call.at)

    def _rename(self, call: Call) -> None:
        old, new = _paths(call)
        if self._concerns(old) or self._concerns(new):
            if not (self._concerns(old) and self._concerns(new)):
                raise UnsupportedCall(f"line {call.at}: {old} comes from, or goes to, another disk")
            self.disk.rename(old, new, call.at)

    def _refuse(self, call: Call) -> None:
        """Raise `UnsupportedCall` if the call concerns a file of this disk."""
        for match in _AN_OPEN_FILE.finditer(call.arguments):
            if self._concerns(_text(match["path"])) and not match["deleted"]:
                raise UnsupportedCall(f"line {call.at}: {call.name} of {_text(match['path'])}")
        for path in _paths(call):
            if self._concerns(path):
                raise UnsupportedCall(f"line {call.at}: {call.name} of {path}")

    def _key(self, call: Call) -> tuple[str, str]:
        return call.arguments.partition("<")[0], self._path(call) or ""

    def _path(self, call: Call) -> str | None:
        """Return the path of the first descriptor; None if it is not on this disk, or deleted."""
        match = _AN_OPEN_FILE.match(call.arguments)
        if match is None or match["deleted"]:
            return None
        path = _text(match["path"])
        return path if self._concerns(path) else None


def _paths(call: Call) -> list[str]:
    """Return the names in the arguments as absolute paths."""
    found = []
    for match in _NAMES.finditer(call.arguments):
        folder = _text(match["cwd"] or match["folder"] or "")
        found.append(posixpath.normpath(posixpath.join(folder, _text(match["name"]))))
    return found


def in_hex(text: str) -> str:
    """Return the text as strace writes it."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode(errors="surrogateescape")
