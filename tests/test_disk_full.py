"""A host that is full: the guest is told ENOSPC, loses nothing, and goes on once there is room.

On real file systems of a few MiB, made for the test: tmpfs, and ext4 on a loop device.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model import host_folder
from vdisk.disk import Disk
from vdisk.errors import HostError
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.store import FolderStore

MIB = 1 << 20
HOST = 8 * MIB
GUEST = 64 * MIB
RAW = OpenOptions(format="raw")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture(params=["tmpfs", "ext4"])
def host_fs(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The mountpoint of a file system of `HOST` bytes."""
    with host_folder("memory") as folder:
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        if request.param == "tmpfs":
            line = ["mount", "-t", "tmpfs", "-o", f"size={HOST}", "tmpfs", str(mountpoint)]
        else:
            device = folder / "ext4"
            device.touch()
            os.truncate(device, HOST)
            subprocess.run(["mkfs.ext4", "-q", "-m0", str(device)], check=True)
            line = ["mount", "-o", "loop", str(device), str(mountpoint)]
        subprocess.run(line, check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", str(mountpoint)], check=True)


@pytest.fixture
def disk(host_fs: Path) -> Iterator[Disk]:
    """A sparse disk eight times as large as its host, with a megabyte written."""
    image = host_fs / "disk.img"
    image.touch()
    os.truncate(image, GUEST)
    with open_disk(image, writable=True, options=RAW) as opened:
        opened.write(0, b"a" * MIB)
        opened.flush()
        yield opened


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"b" * 65536)
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"b" * 512)
    return ballast


def refused(operation: Callable[[], None]) -> None:
    with pytest.raises(HostError, match=r"disk\.img.*No space left on device") as refusal:
        operation()
    assert refusal.value.errno == errno.ENOSPC


def test_a_write_that_finds_no_room_is_refused_and_loses_nothing(
    disk: Disk, host_fs: Path
) -> None:
    ballast = fill(host_fs)
    refused(lambda: disk.write(32 * MIB, b"c" * 2 * MIB))
    assert disk.read(0, MIB) == b"a" * MIB
    # What takes no more room still works: reading, and writing where there is something already.
    disk.write(0, b"d" * MIB)
    assert disk.read(0, 2 * MIB) == b"d" * MIB + bytes(MIB)
    ballast.unlink()
    disk.write(32 * MIB, b"c" * 2 * MIB)
    disk.flush()
    assert disk.read(32 * MIB, 2 * MIB) == b"c" * 2 * MIB
    assert disk.read(0, MIB) == b"d" * MIB
    assert disk.size == GUEST


def test_zeroing_a_hole_finds_no_room_and_loses_nothing(disk: Disk, host_fs: Path) -> None:
    """Space that a guest has zeroed is its own, so there must be some."""
    ballast = fill(host_fs)
    refused(lambda: disk.zero(32 * MIB, 4 * MIB))
    assert disk.read(0, MIB) == b"a" * MIB
    assert disk.read(32 * MIB, 4 * MIB) == bytes(4 * MIB)
    ballast.unlink()
    disk.zero(32 * MIB, 4 * MIB)


def test_discarding_on_a_full_host_makes_the_room_to_go_on(disk: Disk, host_fs: Path) -> None:
    fill(host_fs)
    refused(lambda: disk.write(8 * MIB, b"c" * MIB))
    disk.discard(0, MIB)
    disk.flush()
    disk.write(8 * MIB, b"c" * (MIB // 2))
    disk.flush()
    assert disk.read(0, MIB) == bytes(MIB)
    assert disk.read(8 * MIB, MIB // 2) == b"c" * (MIB // 2)


def test_growing_a_sparse_disk_needs_no_room(disk: Disk, host_fs: Path) -> None:
    fill(host_fs)
    disk.resize(2 * GUEST)
    assert disk.read(2 * GUEST - 512, 512) == bytes(512)
    assert disk.read(0, MIB) == b"a" * MIB


def test_a_disk_made_on_a_full_host_is_there_whole_or_not_at_all(
    disk: Disk, host_fs: Path
) -> None:
    """A new name may still fit into a folder; then it is an empty disk that reports ENOSPC."""
    fill(host_fs)
    store = FolderStore(host_fs, RAW, writable=True)
    try:
        path, new = store.create("new", 0o600)
    except HostError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
        assert not (host_fs / "new.img").exists()
        return
    with new:
        new.resize(MIB)
        with pytest.raises(HostError) as refusal:
            new.write(0, b"x" * MIB)
        assert refusal.value.errno == errno.ENOSPC
        assert path.stat().st_size == MIB
