"""Block devices as host files: loop devices, at 512- and 4096-byte sectors."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conformance import DiskConformance, some_bytes
from devices import loop_device
from holders import qemu_io, vdisk_holder
from model import Subject, host_folder
from vdisk.disk import Disk
from vdisk.errors import Busy, HostError, Unsupported
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.record import forget_geometry, store_format, store_geometry, stored_geometry

MIB = 1 << 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a loop device")


@pytest.fixture
def backing() -> Iterator[Path]:
    with host_folder("memory") as folder:
        path = folder / "backing"
        path.write_bytes(some_bytes(4 * MIB))
        yield path


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, backing: Path) -> Iterator[Path]:
    with loop_device(backing, request.param) as made:
        yield made


def opened(device: Path, *, writable: bool = True) -> Disk:
    return open_disk(device, writable=writable, options=OpenOptions(format="raw"))


class TestLoopDevice(DiskConformance):
    """The suite for every disk, on a device; its content must be in the file beneath at the end."""

    @pytest.fixture(params=[512, 4096])
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        with ExitStack() as stack:
            folder = stack.enter_context(host_folder("memory"))
            content = some_bytes(32 * 4096)
            (folder / "backing").write_bytes(content)
            device = stack.enter_context(loop_device(folder / "backing", request.param))
            options = OpenOptions(format="raw", sector_size=request.param, chs="4/2/4")

            def reopen(writable: bool) -> Disk:
                return open_disk(device, writable=writable, options=options)

            yield Subject(reopen(True), content, reopen, boundary=4096)


def test_the_size_is_the_devices(device: Path) -> None:
    size = subprocess.run(
        ["blockdev", "--getsize64", str(device)], capture_output=True, check=True
    ).stdout
    with opened(device) as disk:
        assert disk.size == int(size) == 4 * MIB


def test_what_is_flushed_is_in_the_file_beneath(device: Path, backing: Path) -> None:
    with opened(device) as disk:
        disk.write(12345, b"x" * 10000)
        disk.zero(100000, 70000)
        disk.flush()
        expected = bytearray(some_bytes(4 * MIB))
        expected[12345:22345] = b"x" * 10000
        expected[100000:170000] = bytes(70000)
        assert backing.read_bytes() == expected


@pytest.mark.parametrize(("start", "end"), [(MIB, 3 * MIB), (MIB + 1, 3 * MIB - 1)])
def test_a_discard_gives_space_back_even_where_its_ends_are_not_aligned(
    device: Path, backing: Path, start: int, end: int
) -> None:
    before = backing.stat().st_blocks * 512
    with opened(device) as disk:
        disk.discard(start, end - start)
        disk.flush()
    expected = some_bytes(4 * MIB)
    assert backing.read_bytes() == expected[:start] + bytes(end - start) + expected[end:]
    assert backing.stat().st_blocks * 512 <= before - 2 * MIB + 2 * 4096


def test_a_mounted_device_is_refused_to_a_writer(backing: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", str(backing)], check=True)
    with loop_device(backing) as device, host_folder("memory") as mountpoint:
        subprocess.run(["mount", str(device), str(mountpoint)], check=True)
        try:
            with pytest.raises(Busy, match=rf"{device}: .*in use"):
                opened(device)
            opened(device, writable=False).close()
        finally:
            subprocess.run(["umount", str(mountpoint)], check=True)
        opened(device).close()


def test_two_writers_of_a_device_refuse_each_other_and_the_holder_is_named(device: Path) -> None:
    with vdisk_holder(device) as holder, pytest.raises(Busy, match=rf"\(pid {holder.pid}\)"):
        opened(device)
    with qemu_io(device) as vm, pytest.raises(Busy, match=rf"qemu-io \(pid {vm.pid}\)"):
        opened(device)
    with opened(device):
        line = ["qemu-io", "-f", "raw", "-c", "write 0 4096", str(device)]
        done = subprocess.run(line, capture_output=True, check=False)
        assert done.returncode != 0


def test_a_device_cannot_be_resized_and_says_so(device: Path) -> None:
    with opened(device) as disk:
        for size in (MIB, 8 * MIB):
            with pytest.raises(Unsupported, match="cannot be resized"):
                disk.resize(size)
        assert disk.size == 4 * MIB


def test_a_read_only_device_says_that_reading_works(backing: Path) -> None:
    with loop_device(backing, 512, "--read-only") as device:
        opened(device, writable=False).close()
        with pytest.raises(HostError, match=rf"{device}: .*Read-only.*-r") as refusal:
            opened(device)
        assert refusal.value.errno == errno.EROFS


def test_nothing_can_be_recorded_with_a_device(device: Path) -> None:
    """User attributes are for files and folders (xattr(7)); so a geometry is given each time."""
    host = HostFile.open(device, writable=True)
    try:
        assert not store_geometry(host, Geometry(8, 16, 63))
        assert not store_format(host, "raw")
        forget_geometry(host)
        assert stored_geometry(host) is None
    finally:
        host.close()
