"""The disk model: what was synced is always there; what was not may be gone or torn."""

from collections.abc import Callable
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scripts.harness.power_loss.disk_model import PAGE_BYTES, Disk

SEEDS = range(200)


def outcomes(disk: Disk) -> list[dict[str, bytes]]:
    """Return the different states after losses of power."""
    found: list[dict[str, bytes]] = []
    for seed in SEEDS:
        state = disk.after_power_loss(Random(seed))
        if state not in found:
            found.append(state)
    return found


def made(*steps: Callable[[Disk, int], None]) -> Disk:
    disk = Disk()
    for at, step in enumerate(steps, 1):
        step(disk, at)
    return disk


def create(path: str) -> Callable[[Disk, int], None]:
    return lambda disk, at: disk.create(path, at)


def write(path: str, offset: int, data: bytes) -> Callable[[Disk, int], None]:
    return lambda disk, at: disk.write(path, offset, data, at)


def sync(path: str) -> Callable[[Disk, int], None]:
    return lambda disk, at: disk.sync(path, at)


def rename(old: str, new: str) -> Callable[[Disk, int], None]:
    return lambda disk, at: disk.rename(old, new, at)


def unlink(path: str) -> Callable[[Disk, int], None]:
    return lambda disk, at: disk.unlink(path, at)


def test_a_synced_file_survives_with_its_name() -> None:
    disk = made(create("/d/a"), write("/d/a", 0, b"one"), sync("/d/a"))
    assert outcomes(disk) == [{"/d/a": b"one"}]


def test_unsynced_bytes_may_survive() -> None:
    disk = made(create("/a"), write("/a", 0, b"one"), sync("/a"), write("/a", 3, b"two"))
    assert disk.visible("/a") == b"onetwo"
    assert sorted(state["/a"] for state in outcomes(disk)) == [b"one", b"onetwo"]


def test_a_file_that_was_never_synced_may_be_missing_or_empty() -> None:
    disk = made(create("/a"), write("/a", 0, b"one"))
    assert {} in outcomes(disk)
    assert {"/a": b""} in outcomes(disk)
    assert {"/a": b"one"} in outcomes(disk)


def test_each_page_may_be_lost_by_itself() -> None:
    three = b"1" * PAGE_BYTES + b"2" * PAGE_BYTES + b"3"
    disk = made(create("/a"), sync("/a"), write("/a", 0, three))
    torn = bytes(PAGE_BYTES) + three[PAGE_BYTES:]
    assert {"/a": torn} in outcomes(disk)


def test_a_write_during_a_sync_may_be_lost() -> None:
    disk = made(create("/a"), write("/a", 0, b"one"))
    disk.write("/a", 0, b"two", at=7)
    disk.sync("/a", began=7)
    assert {"/a": b"one"} in outcomes(disk)


def test_a_rename_is_durable_when_its_folder_is_synced() -> None:
    steps = [create("/d/new"), write("/d/new", 0, b"2"), sync("/d/new"), rename("/d/new", "/d/name")]
    assert {"/d/new": b"2"} in outcomes(made(*steps))
    assert outcomes(made(*steps, sync("/d"))) == [{"/d/name": b"2"}]
    assert {"/d/new": b"2"} in outcomes(made(*steps, sync("/")))


def test_a_removed_file_may_come_back() -> None:
    steps = [create("/d/a"), write("/d/a", 0, b"1"), sync("/d/a"), unlink("/d/a")]
    assert outcomes(made(*steps)) == [{"/d/a": b"1"}, {}] or outcomes(made(*steps)) == [{}, {"/d/a": b"1"}]
    assert outcomes(made(*steps, sync("/d"))) == [{}]


def test_a_name_that_is_used_again_keeps_its_order() -> None:
    """The old file must not come back over the new one that was synced."""
    disk = made(create("/a"), sync("/a"), unlink("/a"), create("/a"), write("/a", 0, b"new"), sync("/a"))
    assert outcomes(disk) == [{"/a": b"new"}]


def test_a_folder_is_renamed_with_its_files() -> None:
    disk = made(create("/d/a"), sync("/d/a"), rename("/d", "/e"), sync("/e/a"))
    assert outcomes(disk) == [{"/e/a": b""}]


@given(
    st.lists(st.tuples(st.integers(0, 3 * PAGE_BYTES), st.binary(min_size=1, max_size=2 * PAGE_BYTES), st.booleans()))
)
def test_nothing_is_lost_after_a_sync(writes: list[tuple[int, bytes, bool]]) -> None:
    disk = made(create("/a"))
    for at, (offset, data, synced) in enumerate(writes, 2):
        disk.write("/a", offset, data, at)
        if synced:
            disk.sync("/a", at + 1)
            for seed in range(3):
                assert disk.after_power_loss(Random(seed))["/a"] == disk.visible("/a")
