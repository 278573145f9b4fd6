"""Random work in a mounted store against a model: the same machine on a folder and on a drive.

Disks are made, written, resized, copied, renamed over each other and removed by system calls on a
real mount.  After every step, names and sizes are as they should be; after every sequence, so is
every byte, through the mount and without it, and LVM2's tools find nothing wrong with the drive.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conformance import some_bytes
from harness import Mounted, Person, mount
from lvm2 import attached
from vdisk.open import open_disk

EXTENT = 64 * 1024
DISKS_MAX = 8
BYTES_MAX = 6 * EXTENT
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])


class StoreMachine(RuleBasedStateMachine):
    """`unit` is what sizes are rounded up to when a disk is closed."""

    unit: ClassVar[int]
    source: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Person().folder()
        self.make_source()
        self.mounted: Mounted = mount(Person(), [self.source], self.folder / "mnt")
        self.model: dict[str, bytearray] = {}
        self.salt = 0

    def make_source(self) -> None:
        """Make `source`."""
        raise NotImplementedError

    def content(self, name: str) -> bytes:
        """What the disk holds, without the mount."""
        raise NotImplementedError

    def check(self) -> None:
        """The store is sound, after the mount."""

    def path(self, name: str) -> Path:
        return self.mounted / name

    def rounded(self, size: int) -> int:
        return max(-(-size // self.unit), 1) * self.unit

    def new_bytes(self, length: int) -> bytes:
        self.salt += 1
        return some_bytes(length, self.salt)

    def padded(self, content: bytes) -> bytearray:
        return bytearray(content + bytes(self.rounded(len(content)) - len(content)))

    @precondition(lambda self: len(self.model) < DISKS_MAX)
    @rule(name=NAMES, sizes=st.lists(st.integers(1, BYTES_MAX // 2), min_size=1, max_size=3))
    def create(self, name: str, sizes: list[int]) -> None:
        """By writing, a piece after the other."""
        if name in self.model:
            return
        content = b"".join(self.new_bytes(size) for size in sizes)
        fd = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        at = 0
        for size in sizes:
            assert os.pwrite(fd, content[at : at + size], at) == size
            at += size
        assert os.fstat(fd).st_size == len(content)
        os.close(fd)
        self.model[name] = self.padded(content)

    @precondition(lambda self: len(self.model) < DISKS_MAX)
    @rule(name=NAMES, size=st.integers(1, BYTES_MAX))
    def create_by_size(self, name: str, size: int) -> None:
        if name in self.model:
            return
        fd = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        os.ftruncate(fd, size)
        os.close(fd)
        self.model[name] = self.padded(bytes(size))

    @rule(name=NAMES, data=st.data())
    def write(self, name: str, data: st.DataObject) -> None:
        content = self.model.get(name)
        if not content:
            return
        start = data.draw(st.integers(0, len(content) - 1))
        block = self.new_bytes(data.draw(st.integers(1, len(content) - start)))
        with self.path(name).open("r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), block, start) == len(block)
        content[start : start + len(block)] = block

    @rule(name=NAMES, size=st.integers(1, BYTES_MAX), opened=st.booleans())
    def resize(self, name: str, size: int, opened: bool) -> None:
        content = self.model.get(name)
        if content is None:
            return
        if opened:
            with self.path(name).open("r+b", buffering=0) as file:
                os.ftruncate(file.fileno(), size)
        else:
            os.truncate(self.path(name), size)
        size = self.rounded(size)
        del content[size:]
        content.extend(bytes(size - len(content)))

    @precondition(lambda self: len(self.model) < DISKS_MAX)
    @rule(name=NAMES, new=NAMES)
    def copy(self, name: str, new: str) -> None:
        """As cp does it."""
        if name not in self.model or new in self.model:
            return
        with self.path(name).open("rb", buffering=0) as source:
            target = os.open(self.path(new), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            while os.copy_file_range(source.fileno(), target, 1 << 30):
                pass
            os.close(target)
        self.model[new] = bytearray(self.model[name])

    @rule(name=NAMES, new=NAMES)
    def rename(self, name: str, new: str) -> None:
        """Over whatever has the new name."""
        if name not in self.model:
            return
        os.rename(self.path(name), self.path(new))
        self.model[new] = self.model.pop(name)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name not in self.model:
            with pytest.raises(FileNotFoundError):
                self.path(name).unlink()
            return
        self.path(name).unlink()
        del self.model[name]

    @rule(name=NAMES)
    def open_ones_stay(self, name: str) -> None:
        if name not in self.model:
            return
        with self.path(name).open("rb"):
            larger = len(self.model[name]) + 1
            for attempt in (os.unlink, lambda path: os.truncate(path, larger)):
                with pytest.raises(OSError, match="busy"):
                    attempt(self.path(name))

    @invariant()
    def names_and_sizes_are_right(self) -> None:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(self.mounted.mountpoint)}
        assert found == {name: len(content) for name, content in self.model.items()}

    def teardown(self) -> None:
        try:
            for name, content in self.model.items():
                assert self.path(name).read_bytes() == content, name
            self.mounted.unmount()
            for name, content in self.model.items():
                assert self.content(name) == content, name
            self.check()
        finally:
            self.mounted.end()
            shutil.rmtree(self.folder, ignore_errors=True)


class FolderMachine(StoreMachine):
    unit = 1

    def make_source(self) -> None:
        self.source = self.folder / "disks"
        self.source.mkdir()

    def content(self, name: str) -> bytes:
        return (self.source / f"{name}.img").read_bytes()

    def check(self) -> None:
        assert sorted(os.listdir(self.source)) == sorted(f"{name}.img" for name in self.model)


class DriveMachine(StoreMachine):
    """A drive that is hardly larger than the disks can be, so that freed extents are used again."""

    unit = EXTENT

    def make_source(self) -> None:
        self.source = self.folder / "drive.img"
        size = str(2 * (1 << 20) + (DISKS_MAX + 2) * BYTES_MAX * 3 // 2)
        words = ("--size", size, "--extent-size", str(EXTENT))
        Person().vdisk("drive", "init", self.source, *words)

    def content(self, name: str) -> bytes:
        with open_disk(f"{self.source}/{name}") as disk:
            return disk.read(0, disk.size)

    def check(self) -> None:
        if os.geteuid() == 0:
            with attached(self.source) as tools:
                tools.check("drive")
                assert set(tools.volumes()) == set(self.model)


ONE_SERVER = "kernel"
_QUICK = settings(max_examples=3, stateful_step_count=25)
_LONG = settings(max_examples=25, stateful_step_count=60)

TestFolder = FolderMachine.TestCase
TestFolder.settings = _QUICK
TestDrive = DriveMachine.TestCase
TestDrive.settings = _QUICK


@pytest.mark.slow
class TestFolderLong(FolderMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = _LONG


@pytest.mark.slow
class TestDriveLong(DriveMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = _LONG
