"""A model of a disk: what programs see, and what may be left of it after a loss of power.

The rules are those of a journalling file system (ext4, XFS, btrfs) on a disk that does what it reports:

* What was written is in memory until the file is synced.  A sync makes durable everything that was written before it
  *began*: bytes, size, the name of the file, and the folders that lead to it.
* A name that was made, changed or removed otherwise becomes durable when its folder is synced.
* Of everything else the kernel may have written nothing, all, or a part: each page of 4 KiB in any state since the
  last sync, names up to any point in the order of their changes.

This promises more than POSIX does (there even the name of a synced file may be lost) and less than ext4 does by
default, which writes names in order with every sync.

`at` is the time of a change: any ascending number.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

PAGE_BYTES = 4_096


class Write(NamedTuple):
    """Bytes written to a file."""

    at: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A new size of a file."""

    at: int
    size: int


class File:
    """An inode: the visible content, the durable content, and the unsynced changes between the two, in order."""

    def __init__(self) -> None:
        self.visible = bytearray()
        self.durable = bytearray()
        self.unsynced: list[Write | Truncate] = []

    def change(self, change: Write | Truncate) -> None:
        """Apply a change to the visible content."""
        _apply(self.visible, change)
        self.unsynced.append(change)

    def sync(self, before: int) -> None:
        """Make the changes before that time durable."""
        count = sum(change.at < before for change in self.unsynced)
        for change in self.unsynced[:count]:
            _apply(self.durable, change)
        del self.unsynced[:count]

    def after_power_loss(self, random: Random) -> bytes:
        """Return one content that the file may have after a loss of power."""
        content = bytearray(self.durable)
        part = random.random()
        if part < 1 / 3 or not self.unsynced:
            return bytes(content)
        if part < 2 / 3:
            for change in self.unsynced[: random.randint(0, len(self.unsynced))]:
                _apply(content, change)
            return bytes(content)
        # Each page has a state of its own: behind a random number of changes.
        reached: defaultdict[int, int] = defaultdict(lambda: random.randint(0, len(self.unsynced)))
        for number, change in enumerate(self.unsynced):
            if isinstance(change, Truncate):
                if number < reached[-1]:
                    _apply(content, change)
                continue
            for piece in _pages(change):
                if number < reached[piece.offset // PAGE_BYTES]:
                    _apply(content, piece)
        return bytes(content)


class NameChange(NamedTuple):
    """A change of a name that is not durable: made (`old` is empty), renamed, or removed (`new` is empty)."""

    at: int
    old: str
    new: str
    file: File

    def apply(self, names: dict[str, File]) -> None:
        names.pop(self.old, None)
        if self.new:
            names[self.new] = self.file

    @property
    def paths(self) -> set[str]:
        return {self.old, self.new} - {""}


class Disk:
    """Files by path.  Folders are as durable as the files in them."""

    def __init__(self) -> None:
        self._visible: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._unsynced: list[NameChange] = []

    # ---------------------------------------------------------------- what programs do

    def __contains__(self, path: str) -> bool:
        return path in self._visible

    def size(self, path: str) -> int:
        return len(self._visible[path].visible)

    def create(self, path: str, at: int) -> None:
        assert path not in self._visible
        self._name(NameChange(at, "", path, File()))

    def write(self, path: str, offset: int, data: bytes, at: int) -> None:
        self._visible[path].change(Write(at, offset, data))

    def truncate(self, path: str, size: int, at: int) -> None:
        self._visible[path].change(Truncate(at, size))

    def unlink(self, path: str, at: int) -> None:
        self._name(NameChange(at, path, "", self._visible[path]))

    def rename(self, old: str, new: str, at: int) -> None:
        """Rename a file, or a folder with everything in it."""
        if old in self._visible:
            self._name(NameChange(at, old, new, self._visible[old]))
            return
        for path in [path for path in self._visible if path.startswith(f"{old}/")]:
            self._name(NameChange(at, path, new + path[len(old) :], self._visible[path]))

    def sync(self, path: str, began: int) -> None:
        """Sync a file or a folder that was changed before `began`; later changes stay unsynced."""
        file = self._visible.get(path)
        if file is not None:
            file.sync(began)
        self._keep(
            [
                name
                for name in self._unsynced
                if name.at < began
                and (name.file is file or (file is None and path in map(posixpath.dirname, name.paths)))
            ]
        )

    # ---------------------------------------------------------------- after a loss of power

    def visible(self, path: str) -> bytes:
        """Return the content of a file that programs see."""
        return bytes(self._visible[path].visible)

    def paths(self) -> list[str]:
        """Return the paths of all files that programs see."""
        return list(self._visible)

    def unsynced_bytes(self) -> int:
        """Return the number of unsynced bytes."""
        files = {id(file): file for file in (*self._visible.values(), *self._durable.values())}
        return sum(len(change.data) for file in files.values() for change in file.unsynced if isinstance(change, Write))

    def after_power_loss(self, random: Random) -> dict[str, bytes]:
        """Return one state of the disk after a loss of power; the same for the same random numbers."""
        names = dict(self._durable)
        for name in self._unsynced[: random.choice((0, random.randint(0, len(self._unsynced))))]:
            name.apply(names)
        return {path: file.after_power_loss(random) for path, file in sorted(names.items())}

    # ---------------------------------------------------------------- names

    def _name(self, name: NameChange) -> None:
        name.apply(self._visible)
        self._unsynced.append(name)

    def _keep(self, wanted: Iterable[NameChange]) -> None:
        """Make name changes durable, with all earlier changes of the same paths: a disk keeps their order."""
        kept = set(wanted)
        for name in reversed(self._unsynced):
            if any(other.at >= name.at and other.paths & name.paths for other in kept):
                kept.add(name)
        for name in self._unsynced:
            if name in kept:
                name.apply(self._durable)
        self._unsynced = [name for name in self._unsynced if name not in kept]


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


def _pages(change: Write) -> Iterable[Write]:
    """Yield the change in parts that each lie in one page."""
    start = change.offset
    end = change.offset + len(change.data)
    while start < end:
        border = min(end, (start // PAGE_BYTES + 1) * PAGE_BYTES)
        yield Write(change.at, start, change.data[start - change.offset : border - change.offset])
        start = border
