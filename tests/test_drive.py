"""Drives in the library: making, growing, renaming and removing volumes; what is held, and when.

LVM2's own tools look at the results in `test_drive_witness`.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import some_bytes
from drive_cases import EXTENT, drive_file, laid_out, ranges_of
from lvm2_images import MIB, blank, commit, read_group
from model import host_folder
from vdisk.drive import Drive
from vdisk.drive_init import group_name, init_drive
from vdisk.drive_store import DriveStore
from vdisk.errors import (
    Busy,
    Exists,
    HostError,
    InvalidArgument,
    InvalidFormat,
    NoSpace,
    NotFound,
    NotPermitted,
    ReadOnly,
)
from vdisk.geometry import Source
from vdisk.host import HostFile
from vdisk.open import open_disk, open_drive
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.stores import open_stores, store_of
from vdisk.tables.lvm2 import NewVolume, PvRange, difference, joined
from vdisk.volume import VolumeDisk


@pytest.fixture
def path() -> Iterator[Path]:
    with host_folder("disk") as folder:
        yield drive_file(folder / "drive.img")


@pytest.fixture
def drive(path: Path) -> Iterator[Drive]:
    with closing(open_drive(path, writable=True)) as found:
        yield found


def made(drive: Drive, name: str, extents: int) -> None:
    drive.create([NewVolume(name, extents * EXTENT)])


def places(drive: Drive, name: str) -> list[PvRange]:
    return ranges_of(drive.group.vg, name)


def taken(ranges: list[PvRange]) -> set[int]:
    return {extent for one in ranges for extent in range(one.first, one.end)}


# What a volume is given reads as zeros


def test_a_new_volume_reads_as_zeros_whatever_was_there(path: Path) -> None:
    group = read_group(path)
    start = group.vg.pvs[0].pe_start * 512
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), some_bytes(100 * EXTENT), start)
    with closing(open_drive(path, writable=True)) as drive:
        made(drive, "a", 40)
        with drive.open("a") as disk:
            assert disk.read(0, disk.size) == bytes(40 * EXTENT)
            disk.resize(90 * EXTENT)
            assert disk.read(0, disk.size) == bytes(90 * EXTENT)


def test_space_that_is_given_up_goes_back_to_the_host(path: Path, drive: Drive) -> None:
    made(drive, "a", 100)
    made(drive, "b", 10)
    empty = path.stat().st_blocks
    for name, size in (("a", 100), ("b", 10)):
        with drive.open(name) as disk:
            disk.write(0, some_bytes(size * EXTENT))
            disk.flush()
    full = path.stat().st_blocks
    assert full - empty >= 110 * EXTENT // 512
    with drive.open("a") as disk:
        disk.resize(50 * EXTENT)
    assert full - path.stat().st_blocks >= 50 * EXTENT // 512
    drive.remove(["a"])
    assert full - path.stat().st_blocks >= 100 * EXTENT // 512


# What is given up is nobody's while it can be read


def test_extents_are_not_given_to_others_while_their_volume_is_open(drive: Drive) -> None:
    made(drive, "a", 100)
    with drive.open("a") as disk:
        disk.write(0, some_bytes(100 * EXTENT))
        before = taken(places(drive, "a"))
        drive.remove(["a"])
        rest = drive.space().free // EXTENT
        made(drive, "b", rest)  # All there is but for those.
        assert not before & taken(places(drive, "b"))
        with pytest.raises(NoSpace):
            made(drive, "c", 1)
        assert disk.read(0, disk.size) == some_bytes(100 * EXTENT)
    made(drive, "c", 100)
    assert taken(places(drive, "c")) == before


def test_a_cut_off_end_is_held_until_nobody_can_read_it(drive: Drive) -> None:
    made(drive, "a", 100)
    with closing(DriveStore(drive)) as store, drive.open("a") as disk:
        before = taken(places(drive, "a"))
        disk.resize(10 * EXTENT)
        held = before - taken(places(drive, "a"))
        assert len(held) == 90
        made(drive, "b", drive.space().free // EXTENT)
        assert not held & taken(places(drive, "b"))
        store.idle(disk)
        made(drive, "c", 90)
        assert taken(places(drive, "c")) == held


def test_a_volume_that_was_removed_has_nothing_left_to_read(drive: Drive) -> None:
    made(drive, "a", 10)
    with drive.open("a") as disk:
        drive.remove(["a"])
        drive.let_go(disk)
        assert disk.size == 0
        made(drive, "b", 10)
        with pytest.raises(NotFound, match="removed"):
            disk.resize(EXTENT)


# Changes


def test_many_volumes_are_one_commit_or_none(drive: Drive) -> None:
    before = drive.group.vg.seqno
    drive.create([NewVolume(f"d{n}", EXTENT) for n in range(50)])
    assert (drive.group.vg.seqno, len(drive.volumes())) == (before + 1, 50)
    with pytest.raises(Exists, match="d7"):
        drive.create([NewVolume("new", EXTENT), NewVolume("d7", EXTENT)])
    with pytest.raises(NoSpace):
        drive.create([NewVolume("x", EXTENT), NewVolume("y", 1 << 40)])
    drive.remove([f"d{n}" for n in range(50)])
    assert (drive.group.vg.seqno, len(drive.volumes())) == (before + 2, 0)


def test_a_volume_takes_the_place_of_another_in_one_commit(path: Path, drive: Drive) -> None:
    made(drive, "a", 3)
    made(drive, "b", 5)
    with drive.open("a") as disk:
        disk.write(0, b"of a")
        before = drive.group.vg.seqno
        with pytest.raises(Exists):
            drive.rename("a", "b")
        drive.rename("a", "b", replace=True)
        assert drive.group.vg.seqno == before + 1
        assert disk.address == f"{path}/b"
    assert list(drive.volumes()) == ["b"]
    with drive.open("b") as disk:
        assert (disk.size, disk.read(0, 4)) == (3 * EXTENT, b"of a")


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 200, "..", "snapshot1", "é"])
def test_a_name_that_lvm2_forbids_is_refused(drive: Drive, name: str) -> None:
    made(drive, "a", 1)
    for attempt in (lambda: made(drive, name, 1), lambda: drive.rename("a", name)):
        with pytest.raises(InvalidArgument, match="cannot be named"):
            attempt()
    assert list(drive.volumes()) == ["a"]


def test_growing_goes_anywhere_on_the_drive(drive: Drive) -> None:
    made(drive, "a", 10)
    made(drive, "b", 10)
    with drive.open("a") as disk:
        disk.write(0, some_bytes(10 * EXTENT))
        disk.resize(200 * EXTENT)
        assert len(places(drive, "a")) == 2
        assert disk.read(0, disk.size) == some_bytes(10 * EXTENT) + bytes(190 * EXTENT)
        disk.write(5 * EXTENT, some_bytes(100 * EXTENT, 2))
        assert disk.read(5 * EXTENT, 100 * EXTENT) == some_bytes(100 * EXTENT, 2)


def test_what_grows_by_being_written_takes_few_commits_and_is_trimmed(drive: Drive) -> None:
    with closing(DriveStore(drive)) as store:
        _, disk = store.create("new", 0o644)
        before = drive.group.vg.seqno
        for at in range(0, 300_000, 1000):
            disk.resize(at + 1000)
            disk.write(at, some_bytes(1000, at))
        assert disk.size == 300_000
        assert drive.group.vg.seqno - before < 12
        store.finish(disk)
        assert disk.size == drive.volume("new").size == -(-300_000 // EXTENT) * EXTENT
        assert disk.read(0, 300_000) == b"".join(
            some_bytes(1000, at) for at in range(0, 300_000, 1000)
        )
        assert disk.read(300_000, disk.size - 300_000) == bytes(disk.size - 300_000)
        disk.close()


def test_what_was_cut_off_while_growing_is_zeros_when_it_grows_again(drive: Drive) -> None:
    with closing(DriveStore(drive)) as store:
        _, disk = store.create("new", 0o644)
        disk.resize(3000)
        disk.write(0, some_bytes(3000))
        disk.resize(1000)
        disk.resize(4000)
        assert disk.read(0, 4000) == some_bytes(1000) + bytes(3000)
        disk.close()


def test_a_full_drive_gives_what_there_is_and_then_refuses(drive: Drive) -> None:
    rest = drive.space().free
    made(drive, "a", rest // EXTENT - 3)
    with closing(DriveStore(drive)) as store:
        _, disk = store.create("new", 0o644)
        disk.resize(2 * EXTENT)  # Twice as much, which is what it would like, is not there.
        disk.resize(3 * EXTENT)
        with pytest.raises(NoSpace, match=r"drive\.img"):
            disk.resize(3 * EXTENT + 1)
        assert disk.size == 3 * EXTENT
        disk.close()


# Geometry


def test_a_geometry_is_kept_in_the_tags_and_follows_the_size(path: Path, drive: Drive) -> None:
    made(drive, "a", 30)
    with drive.open("a", OpenOptions(chs="4/10/6")) as disk:
        assert disk.keep_geometry(disk.geometry)
    with closing(DriveStore(drive)) as store:
        disk = store.open("a")
        assert str(disk.geometry) == "4/10/6"
        assert disk.choice is not None
        assert disk.choice.source is Source.STORED
        store.resize(disk, 60 * EXTENT)
        assert str(disk.geometry) == "8/10/6"
        disk.close()
    assert read_group(path).vg.lvs[0].tags == ("vdisk.geometry=8/10/6", "vdisk.sector_size=512")


def test_a_geometry_that_does_not_fit_the_volume_counts_as_none(path: Path) -> None:
    """As after lvreduce, or a tag that somebody typed."""
    group = read_group(path)
    (lv,) = laid_out(group.vg, a=[(0, 2)]).lvs
    tagged = replace(lv, tags=("vdisk.geometry=1000/16/63", "vdisk.sector_size=4096"))
    commit(group, replace(group.vg, lvs=(tagged,)), path)
    with open_disk(f"{path}/a") as disk:
        assert disk.choice is not None
        assert disk.choice.source is not Source.STORED
        assert (disk.sector_size, disk.geometry.size_bytes <= disk.size) == (4096, True)


# Refusals


def test_there_is_one_writer(path: Path, drive: Drive) -> None:
    made(drive, "a", 1)
    for address in (path, f"{path}/a"):
        with pytest.raises(Busy, match="in use by this process"):
            open_disk(address, writable=True)
    with drive.open("a"), pytest.raises(Busy, match="open already"):
        drive.open("a")


def test_a_drive_that_another_program_changed_is_not_written_over(
    path: Path, drive: Drive
) -> None:
    made(drive, "a", 1)
    group = read_group(path)
    commit(group, laid_out(group.vg, other=[(500, 2)]), path)
    with pytest.raises(Busy, match="another program"):
        made(drive, "b", 1)
    assert [lv.name for lv in read_group(path).vg.lvs] == ["a", "other"]


def test_a_drive_that_is_open_for_reading_is_not_changed(path: Path, drive: Drive) -> None:
    made(drive, "a", 1)
    drive.close()
    before = path.read_bytes()
    with ExitStack() as held:
        readers = [held.enter_context(closing(open_drive(path))) for _ in range(2)]
        for reader in readers:
            with reader.open("a") as disk, pytest.raises(ReadOnly):
                disk.write(0, b"x")
            with pytest.raises(ReadOnly):
                made(reader, "b", 1)
    assert path.read_bytes() == before


class Failing(HostFile):
    """A host file of which the writes that are made durable at once fail, but for the first ones.
    """

    left: int | None = None

    def write_through(self, offset: int, data: bytes | memoryview) -> None:
        if self.left is not None:
            if self.left == 0:
                raise HostError.of(OSError(errno.EIO, "failed"), "write", self.path)
            self.left -= 1
        super().write_through(offset, data)


@pytest.mark.parametrize("left", range(5))
def test_a_commit_that_fails_leaves_one_or_the_other_group(
    path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Two texts, then two headers.  Before the headers, it can be tried again; after, not."""
    monkeypatch.setattr("vdisk.open.HostFile", Failing)
    with closing(open_drive(path, writable=True)) as drive:
        made(drive, "a", 1)
        (host,) = (host for place in drive.places.values() for host in place.disk.hosts())
        assert isinstance(host, Failing)
        host.left = left
        if left == 4:
            made(drive, "b", 1)
        else:
            with pytest.raises(HostError):
                made(drive, "b", 1)
        host.left = None
        if left < 2:
            made(drive, "b", 1)
        elif left < 4:
            with pytest.raises(NotPermitted, match="failed midway"):
                made(drive, "b", 1)
        with drive.open("a") as disk:  # What is inside volumes goes on.
            disk.write(0, b"x")
    names = [lv.name for lv in read_group(path).vg.lvs]
    assert names in (["a"], ["a", "b"])
    assert left not in (0, 1, 4) or names == ["a", "b"]


# Making a drive, and telling one from a disk


def test_init_says_what_it_would_overwrite(path: Path, drive: Drive) -> None:
    made(drive, "a", 1)
    drive.close()
    with pytest.raises(NotPermitted, match=r"holds the drive drive \(1 volume\).*--force"):
        init_drive(path)
    init_drive(path, force=True, name="other")
    assert read_group(path).vg.lvs == ()
    with pytest.raises(Exists):
        init_drive(path, size_bytes=8 * MIB)
    with pytest.raises(NotFound, match="--size"):
        init_drive(path.with_name("missing"))
    with pytest.raises(InvalidArgument, match="no size for a drive"):
        init_drive(path.with_name("small"), size_bytes=MIB)
    assert os.listdir(path.parent) == ["drive.img"]


def test_a_volume_group_is_called_as_its_file_if_that_can_be() -> None:
    assert group_name(Path("/x/drive.img")) == "drive"
    assert group_name(Path("/x/my disks.img")) == "my_disks"
    assert group_name(Path("/dev/null")) == "drive_null"
    assert group_name(Path("/x/---")) == "drive"


def test_what_is_recorded_as_raw_stays_a_disk_whatever_its_guest_writes(path: Path) -> None:
    def kinds(options: OpenOptions = NO_OPTIONS) -> list[str]:
        stores = open_stores([path], options, writable=False)
        for store in stores:
            store.close()
        return [type(store).__name__ for store in stores]

    assert kinds() == ["DriveStore"]
    assert kinds(OpenOptions(format="raw")) == ["ImageList"]
    with open_disk(path, writable=True) as disk:  # As a disk, which is recorded.
        assert disk.size == path.stat().st_size
    assert kinds() == ["ImageList"]
    init_drive(path, force=True)
    with open_disk(path, writable=True):
        pass
    assert kinds() == ["DriveStore"]
    with path.open("r+b") as file:
        file.write(bytes(4096))
    with pytest.raises(InvalidFormat, match="recorded as a drive"):
        kinds()


def test_the_space_of_a_drive_is_that_of_its_extents(path: Path, drive: Drive) -> None:
    made(drive, "a", 7)
    with closing(DriveStore(drive)) as store:
        vg = read_group(path).vg
        space = store.space()
        assert space.total == vg.pvs[0].pe_count * EXTENT
        assert space.free == space.available == space.total - 7 * EXTENT


def test_an_address_leads_to_its_store(path: Path) -> None:
    for address, kind, name in (
        (f"{path}/new", DriveStore, "new"), (str(path), object, "drive.img"),
    ):  # fmt: skip
        store, found = store_of(address)
        store.close()
        assert isinstance(store, kind)
        assert found == name
    with pytest.raises(NotFound, match="no volume"):
        store_of(f"{path}/missing/new")
    image = blank(path.with_name("image.img"), MIB)
    with pytest.raises(NotFound, match="is no drive"):
        store_of(f"{image}/new")


def test_a_volume_is_a_disk_with_partitions(path: Path, drive: Drive) -> None:
    made(drive, "a", 400)
    with drive.open("a") as disk:
        assert isinstance(disk, VolumeDisk)
    drive.close()
    copy = blank(path.with_name("copy.img"), 400 * EXTENT)
    subprocess.run(["sfdisk", "-q", copy], input=b"label: dos\nstart=64,size=2048\n", check=True)
    with open_disk(f"{path}/a", writable=True) as disk:
        disk.write(0, copy.read_bytes())
    with open_disk(f"{path}/a/p1") as part:
        assert part.size == MIB
        assert part.address == f"{path}/a/p1"


# Sets of extents


_RANGES = st.lists(
    st.builds(PvRange, st.sampled_from("xy"), st.integers(0, 20), st.integers(1, 6)), max_size=6
)


@given(_RANGES, _RANGES)
def test_the_difference_of_ranges_is_that_of_sets(one: list[PvRange], two: list[PvRange]) -> None:
    def members(ranges: list[PvRange]) -> set[tuple[str, int]]:
        return {(each.pv, extent) for each in ranges for extent in range(each.first, each.end)}

    found = list(difference(one, two))
    assert members(found) == members(one) - members(two)
    assert members(list(joined(one))) == members(one)
    for some in (found, list(joined(one))):
        assert sum(each.count for each in some) == len(members(some))
        assert len(list(joined(some))) == len(some)  # As few as can be.
