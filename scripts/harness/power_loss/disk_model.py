"""A disk that forgets: what programs see of it, and what could be left of that after a loss of power.

The rules, those of a journalling file system (ext4, XFS, btrfs) on a disk that does what it is told:

* What was written is in memory until the file is synced.  A sync keeps everything that was written before it
  *began*: bytes, size, the file's name, and the folders that lead to it.
* A name that was made, changed or removed otherwise survives when its folder is synced.
* Of everything else the kernel may have written nothing, all, or some: any page of 4 KiB in any state it ever had
  since, names up to any point in the order in which they changed.

That is less than POSIX allows (there even the name of a synced file may be lost) and more than ext4 does by default,
which writes names in order with every sync.

`at` is the time of a change: any number that rises.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

PAGE_BYTES = 4_096


class Written(NamedTuple):
    """Bytes that were written to a file and not synced yet."""

    at: int
    offset: int
    data: bytes


class Truncated(NamedTuple):
    """A size that was given to a file."""

    at: int
    size: int


class File:
    """An inode: what it shows, what is safe, and the changes between the two, in order."""

    def __init__(self) -> None:
        self.shown = bytearray()
        self.safe = bytearray()
        self.unsynced: list[Written | Truncated] = []

    def change(self, change: Written | Truncated) -> None:
        _apply(self.shown, change)
        self.unsynced.append(change)

    def sync(self, before: int) -> None:
        """Make safe what was changed before that time."""
        count = sum(change.at < before for change in self.unsynced)
        for change in self.unsynced[:count]:
            _apply(self.safe, change)
        del self.unsynced[:count]

    def survivor(self, random: Random) -> bytes:
        """One content that the disk might have after a loss of power."""
        content = bytearray(self.safe)
        luck = random.random()
        if luck < 1 / 3 or not self.unsynced:
            return bytes(content)
        if luck < 2 / 3:
            for change in self.unsynced[: random.randint(0, len(self.unsynced))]:
                _apply(content, change)
            return bytes(content)
        # Each page in a state of its own, behind the changes that reached it.
        reached: defaultdict[int, int] = defaultdict(lambda: random.randint(0, len(self.unsynced)))
        for number, change in enumerate(self.unsynced):
            if isinstance(change, Truncated):
                if number < reached[-1]:
                    _apply(content, change)
                continue
            for piece in _pages(change):
                if number < reached[piece.offset // PAGE_BYTES]:
                    _apply(content, piece)
        return bytes(content)


class Named(NamedTuple):
    """A name that was made (`old` is empty), changed, or removed (`new` is empty), and is not safe yet."""

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
    """Files by path.  Folders are as safe as what is in them."""

    def __init__(self) -> None:
        self._shown: dict[str, File] = {}
        self._safe: dict[str, File] = {}
        self._unsynced: list[Named] = []

    # ---- what programs do

    def __contains__(self, path: str) -> bool:
        return path in self._shown

    def size(self, path: str) -> int:
        return len(self._shown[path].shown)

    def create(self, path: str, at: int) -> None:
        assert path not in self._shown
        self._name(Named(at, "", path, File()))

    def write(self, path: str, offset: int, data: bytes, at: int) -> None:
        self._shown[path].change(Written(at, offset, data))

    def truncate(self, path: str, size: int, at: int) -> None:
        self._shown[path].change(Truncated(at, size))

    def unlink(self, path: str, at: int) -> None:
        self._name(Named(at, path, "", self._shown[path]))

    def rename(self, old: str, new: str, at: int) -> None:
        """Of a file, or of a folder with everything in it."""
        if old in self._shown:
            self._name(Named(at, old, new, self._shown[old]))
            return
        for path in [path for path in self._shown if path.startswith(f"{old}/")]:
            self._name(Named(at, path, new + path[len(old) :], self._shown[path]))

    def sync(self, path: str, began: int) -> None:
        """Of a file or a folder; changes while it ran are not counted on."""
        file = self._shown.get(path)
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

    # ---- what one may find afterwards

    def shown(self, path: str) -> bytes:
        """What programs see in a file while there is power."""
        return bytes(self._shown[path].shown)

    def paths(self) -> list[str]:
        """The files that programs see."""
        return list(self._shown)

    def unsynced_bytes(self) -> int:
        """How many bytes a loss of power puts at risk."""
        files = {id(file): file for file in (*self._shown.values(), *self._safe.values())}
        return sum(
            len(change.data) for file in files.values() for change in file.unsynced if isinstance(change, Written)
        )

    def after_power_loss(self, random: Random) -> dict[str, bytes]:
        """One state in which the disk may be found; the same for the same random numbers."""
        names = dict(self._safe)
        for name in self._unsynced[: random.choice((0, random.randint(0, len(self._unsynced))))]:
            name.apply(names)
        return {path: file.survivor(random) for path, file in sorted(names.items())}

    # ---- names

    def _name(self, name: Named) -> None:
        name.apply(self._shown)
        self._unsynced.append(name)

    def _keep(self, wanted: Iterable[Named]) -> None:
        """Make names safe, and what happened to the same paths before: a disk cannot do one without the other."""
        kept = set(wanted)
        for name in reversed(self._unsynced):
            if any(other.at >= name.at and other.paths & name.paths for other in kept):
                kept.add(name)
        for name in self._unsynced:
            if name in kept:
                name.apply(self._safe)
        self._unsynced = [name for name in self._unsynced if name not in kept]


def _apply(content: bytearray, change: Written | Truncated) -> None:
    if isinstance(change, Truncated):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


def _pages(change: Written) -> Iterable[Written]:
    """The change, cut at the borders of pages."""
    start = change.offset
    end = change.offset + len(change.data)
    while start < end:
        border = min(end, (start // PAGE_BYTES + 1) * PAGE_BYTES)
        yield Written(change.at, start, change.data[start - change.offset : border - change.offset])
        start = border
