"""The layer over a disk that takes its changes and is forgotten, as a disk."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from conformance import DiskConformance, some_bytes
from model import DiskMachine, Subject, host_folder
from vdisk.disk import Disk
from vdisk.errors import HostError
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import choose_geometry, open_image, resize_disk
from vdisk.scratch import UNIT, Changes, Scratch, scratch_disk

MIB = 1 << 20


def subject(folder: Path, size: int) -> Subject:
    """A layer that has a file with a name, so that it can be opened again, over a raw disk.

    The first units are written, the next ones zeros; the rest is the disk's beneath.
    """
    base, layer = folder / "base.img", folder / "layer"
    content = bytearray(some_bytes(size))
    base.write_bytes(content)
    layer.touch()
    changes = Changes(size)

    def opened(writable: bool) -> Disk:
        host = HostFile.open(layer, writable=writable)
        parent = open_image(base, writable=False)
        disk = ImageDisk(
            Scratch(host, parent, changes), address="layer", sector_size=512,
            read_only=not writable,
        )
        disk.choice = choose_geometry(disk)
        return disk

    disk = opened(True)
    for offset, operation in ((0, "write"), (UNIT + 7, "zero"), (3 * UNIT + 5, "write")):
        length = min(UNIT + 100, size - offset)
        if length <= 0:
            continue
        block = some_bytes(length, 3) if operation == "write" else bytes(length)
        getattr(disk, operation)(offset, block if operation == "write" else length)
        content[offset : offset + length] = block
    untouched = base.read_bytes()

    def sound() -> None:
        assert base.read_bytes() == untouched

    return Subject(
        disk, bytes(content), opened, boundary=UNIT, resize=resize_disk, size_unit=512, sound=sound
    )


class TestScratch(DiskConformance):
    """As any disk; and the one beneath is as it was."""

    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        with host_folder("memory") as folder:
            yield subject(folder, 5 * UNIT + 512)


class ScratchCommutes(DiskMachine):
    """Begins with units of all three states."""

    def __init__(self) -> None:
        super().__init__()
        self.made = ExitStack()

    @initialize(units=st.integers(1, 6), rest=st.sampled_from([0, 512, 3584]))
    def start(self, units: int, rest: int) -> None:
        folder = self.made.enter_context(host_folder("memory"))
        self.begin(subject(folder, units * UNIT + rest))

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.made.close()


TestScratchCommutes = ScratchCommutes.TestCase
TestScratchCommutes.settings = settings(max_examples=30, stateful_step_count=15)


def test_it_remembers_little_of_a_large_disk(tmp_path: Path) -> None:
    """A disk of 8 TiB, changed in a hundred places: megabytes, and no time."""
    path = tmp_path / "huge.img"
    with path.open("wb") as file:
        file.truncate(8 << 40)
    begun = time.monotonic()
    with scratch_disk(open_image(path, writable=False)) as disk:
        random, places = Random(0), []
        for _ in range(100):
            places.append(random.randrange(disk.size - 5))
            disk.write(places[-1], b"here!")
        for place in places:
            assert disk.read(place, 5) == b"here!"
        assert len(list(disk.map(0, disk.size))) >= 200
        changes = disk.image._changes  # type: ignore[attr-defined]
        assert len(changes._pages) <= 100
    assert time.monotonic() - begun < 20
    assert path.stat().st_blocks == 0


def test_its_file_has_no_name_and_no_descriptor_outlives_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    before = len(os.listdir("/proc/self/fd"))
    with scratch_disk(open_image(path, writable=False)) as disk:
        disk.write(0, b"y" * MIB)
        assert os.fstat(disk.image.hosts()[0].fd).st_nlink == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert path.read_bytes() == b"x" * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_folder_for_temporary_files_is_enospc_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, small = tmp_path / "disk.img", tmp_path / "small"
    path.write_bytes(b"x" * (8 * MIB))
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small], check=True)
    monkeypatch.setenv("TMPDIR", str(small))
    try:
        with scratch_disk(open_image(path, writable=False)) as disk:
            disk.write(0, b"a" * 5000)
            with pytest.raises(HostError, match="No space left") as told:
                disk.write(UNIT, b"b" * (4 * MIB))
            assert told.value.errno == errno.ENOSPC
            assert disk.read(0, UNIT) == b"a" * UNIT
            assert disk.read(5 * MIB, MIB) == b"x" * MIB
            disk.discard(0, 4 * MIB)
            disk.write(MIB, b"c" * 100_000)
            assert disk.read(MIB, 100_000) == b"c" * 100_000
    finally:
        subprocess.run(["umount", small], check=True)
