"""mnt/disk.p1 appears, changes and disappears as real partitioners rewrite the table, no remount.

Every sector of the image holds its own number, so a partition's first and last bytes tell which
sectors it shows; that is compared with what the partitioner itself prints.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import PATIENCE, Mounted, Person, make_image, mount, sfdisk
from mount.filesystem import FileSystem, Settings
from mount.inodes import ROOT
from mount.tree import Tree
from vdisk.disk import Disk
from vdisk.open import NO_OPTIONS, scan_table
from vdisk.store import ImageList
from vdisk.tables import Scan

MIB = 1 << 20
SIZE = 16 * MIB
Make = Callable[..., Mounted]


def numbered(sector_size: int = 512) -> bytes:
    """A disk whose every sector holds its own LBA, again and again."""
    repeats = sector_size // 8
    return b"".join(i.to_bytes(8, "little") * repeats for i in range(SIZE // sector_size))


def numbered_image(path: Path, person: Person, sector_size: int = 512) -> Path:
    """An image of `numbered` content."""
    make_image(path, SIZE, person).write_bytes(numbered(sector_size))
    return path


def partitions(mounted: Mounted, sector_size: int = 512) -> dict[str, tuple[int, int]]:
    """Of each partition that is listed, (first LBA, sectors) as its own bytes tell."""
    return mounted.person.does(lambda: _partitions(mounted.mountpoint, sector_size))


def _partitions(folder: Path, sector_size: int) -> dict[str, tuple[int, int]]:
    names = os.listdir(folder)
    assert "disk" in names
    return {
        name: _range(folder / name, sector_size) for name in names if name.startswith("disk.p")
    }


def _range(path: Path, sector_size: int) -> tuple[int, int]:
    sectors, rest = divmod(path.stat().st_size, sector_size)
    assert rest == 0
    with path.open("rb") as file:
        first = int.from_bytes(file.read(8), "little")
        file.seek(-8, os.SEEK_END)
        assert int.from_bytes(file.read(8), "little") == first + sectors - 1
    return first, sectors


def by_sfdisk(mounted: Mounted) -> dict[str, tuple[int, int]]:
    """What sfdisk reads from the mounted disk, but for extended partitions."""
    printed = mounted.person.run("sfdisk", "--json", mounted / "disk").stdout
    rows: list[dict[str, Any]] = json.loads(printed)["partitiontable"].get("partitions", [])
    return {
        "disk.p" + row["node"].removeprefix(str(mounted / "disk")).removeprefix("p"):
            (row["start"], row["size"])
        for row in rows if row["type"] not in ("5", "f", "85")
    }  # fmt: skip


@pytest.fixture(scope="module")
def one_mount(module_person: Person, server: str) -> Iterator[Mounted]:
    folder = module_person.folder()
    image = numbered_image(folder / "disk.img", module_person)
    mounted = mount(module_person, [image], folder / "mnt")
    yield mounted
    mounted.end()
    shutil.rmtree(folder)


@pytest.fixture
def disk(one_mount: Mounted) -> Mounted:
    """The same mount for all tests, its one disk numbered anew and without a table."""

    def renew() -> None:
        with (one_mount / "disk").open("r+b") as file:
            assert file.write(numbered()) == SIZE

    one_mount.person.does(renew)
    return one_mount


@pytest.fixture
def model(disk: Mounted) -> Iterator[Path]:
    """Another image of that size, whose table has one partition: 4096 sectors from LBA 4096."""
    model = make_image(disk.mountpoint.parent / "model", SIZE, disk.person)
    sfdisk(model, "label: dos\nstart=4096,size=4096\n")
    yield model
    model.unlink()


def test_sfdisk_makes_changes_and_removes(disk: Mounted) -> None:
    sfdisk(disk / "disk", "label: dos\nstart=2048,size=4096\nstart=8192\n", person=disk.person)
    assert partitions(disk) == by_sfdisk(disk)
    assert partitions(disk) == {"disk.p1": (2048, 4096), "disk.p2": (8192, 24576)}
    sfdisk(disk / "disk", "start=4096,size=100\n", "-N1", person=disk.person)
    assert partitions(disk)["disk.p1"] == (4096, 100)
    disk.person.run("sfdisk", "--quiet", "--delete", disk / "disk", "1")
    assert partitions(disk) == {"disk.p2": (8192, 24576)}
    disk.person.run("wipefs", "--all", "--force", "--quiet", disk / "disk")
    assert partitions(disk) == {}


def test_sgdisk_makes_and_removes(disk: Mounted) -> None:
    def sgdisk(*words: str) -> None:
        disk.person.run("sgdisk", *words, disk / "disk")

    sgdisk("-n", "1:2048:4095", "-n", "3:6144:8191")
    assert partitions(disk) == by_sfdisk(disk)
    assert partitions(disk) == {"disk.p1": (2048, 2048), "disk.p3": (6144, 2048)}
    sgdisk("-d", "1", "-n", "128:10240:12287")
    assert partitions(disk) == {"disk.p3": (6144, 2048), "disk.p128": (10240, 2048)}
    sgdisk("--sort")
    assert partitions(disk) == {"disk.p1": (6144, 2048), "disk.p2": (10240, 2048)}
    sgdisk("--zap-all")
    assert partitions(disk) == {}


@pytest.mark.parametrize("label", ["msdos", "gpt"])
def test_parted_makes_resizes_and_removes(disk: Mounted, label: str) -> None:
    def parted(*words: str) -> None:
        disk.person.run("parted", "--script", disk / "disk", *words)

    parted("mklabel", label, "mkpart", "primary", "2048s", "4095s")
    assert partitions(disk) == {"disk.p1": (2048, 2048)}
    parted("mkpart", "primary", "8192s", "16383s")
    parted("resizepart", "1", "6143s")
    assert partitions(disk) == {"disk.p1": (2048, 4096), "disk.p2": (8192, 8192)}
    parted("rm", "1")
    assert partitions(disk) == {"disk.p2": (8192, 8192)}


def test_dd_brings_and_wipes_a_table(disk: Mounted, model: Path) -> None:
    copy = ["dd", "bs=512", "count=1", "conv=notrunc", f"of={disk / 'disk'}"]
    disk.person.run(*copy, f"if={model}")
    assert partitions(disk) == {"disk.p1": (4096, 4096)}
    disk.person.run(*copy, "if=/dev/zero")
    assert partitions(disk) == {}


@pytest.mark.parametrize("view", ["chs/0/0/1", "chs/0/0/track", "chs/0/cylinder"])
def test_a_table_written_through_a_geometry_view_counts(
    disk: Mounted, model: Path, view: str
) -> None:
    target = disk / ".vdisk/disk" / view
    disk.person.run("dd", f"if={model}", f"of={target}", "bs=512", "count=1", "conv=notrunc")
    assert partitions(disk) == {"disk.p1": (4096, 4096)}


def test_logical_partitions_follow_their_chain(disk: Mounted) -> None:
    """Removing the first logical partition renumbers the second, as it does for the kernel."""
    script = "label: dos\nstart=2048,size=2048\nstart=4096,size=20480,type=5\n"
    script += "start=6144,size=2048,type=83\nstart=10240,size=2048,type=83\n"
    sfdisk(disk / "disk", script, person=disk.person)
    assert partitions(disk) == by_sfdisk(disk)
    assert partitions(disk) == {
        "disk.p1": (2048, 2048), "disk.p5": (6144, 2048), "disk.p6": (10240, 2048),
    }  # fmt: skip
    disk.person.run("sfdisk", "--quiet", "--delete", disk / "disk", "5")
    assert partitions(disk) == {"disk.p1": (2048, 2048), "disk.p5": (10240, 2048)}


@pytest.mark.parametrize("script", ["g\nn\n1\n512\n1023\nw\n", "o\nn\np\n1\n512\n1023\nw\n"])
def test_tables_of_4096_byte_sectors(
    person: Person, place: Path, mounts: Make, script: str
) -> None:
    """fdisk -b 4096 on a disk whose sectors are that large: its LBAs count these."""
    image = numbered_image(place / "disk.img", person, 4096)
    disk = mounts(image, options=("--sector-size", "4096"))
    person.run("fdisk", "-b", "4096", disk / "disk", stdin=script.encode())
    assert partitions(disk, 4096) == {"disk.p1": (512, 512)}


def test_an_open_partition_keeps_its_range(disk: Mounted) -> None:
    """Who opened the old p1 goes on in the old p1; who opens now gets the new one."""
    sfdisk(disk / "disk", "label: dos\nstart=2048,size=2048\n", person=disk.person)

    def work() -> tuple[bytes, bytes, int, int]:
        with (disk / "disk.p1").open("r+b", buffering=0) as old:
            inode = os.fstat(old.fileno()).st_ino
            os.system(f"echo 'start=8192,size=2048' | sfdisk -q -N1 {disk / 'disk'}")
            assert os.stat(disk / "disk.p1").st_ino != inode
            new = (disk / "disk.p1").read_bytes()[:8]
            os.pwrite(old.fileno(), b"kept", 512)
            return os.pread(old.fileno(), 8, 0), new, inode, os.fstat(old.fileno()).st_ino

    before, after, inode, inode_now = disk.person.does(work)
    assert before == (2048).to_bytes(8, "little")
    assert after == (8192).to_bytes(8, "little")
    assert inode == inode_now
    host = (disk.mountpoint.parent / "disk.img").read_bytes()
    assert host[2049 * 512 :][:4] == b"kept"
    assert partitions(disk) == {"disk.p1": (8192, 2048)}


def test_a_damaged_gpt_is_read_from_its_backup(disk: Mounted) -> None:
    disk.person.run("sgdisk", "-n", "1:2048:4095", disk / "disk")
    wipe = ["dd", "if=/dev/zero", f"of={disk / 'disk'}", "bs=512", "count=1", "conv=notrunc"]
    disk.person.run(*wipe, "seek=1")
    assert partitions(disk) == {"disk.p1": (2048, 2048)}
    disk.person.run(*wipe, f"seek={SIZE // 512 - 1}")
    assert partitions(disk) == {}


def test_a_partition_goes_when_the_disk_becomes_too_small_for_it(disk: Mounted) -> None:
    script = "label: dos\nstart=2048,size=2048\nstart=16384,size=16384\n"
    sfdisk(disk / "disk", script, person=disk.person)
    disk.person.run("truncate", "-s", "12M", disk / "disk")
    assert partitions(disk) == {"disk.p1": (2048, 2048)}
    disk.person.run("truncate", "-s", "16M", disk / "disk")
    names = disk.person.run("ls", disk.mountpoint).stdout.split()
    assert names == [b"disk", b"disk.p1", b"disk.p2"]


@pytest.mark.parametrize(
    "entries",
    [
        os.urandom(64),
        (bytes(8) + b"\0\10\0\0" + b"\xff\xff\xff\xff") * 4,
        (b"\x80\0\0\0\x05\0\0\0" + bytes(4) + b"\1\0\0\0") * 4,
    ],
    ids=["random", "past the end", "an EBR that is the MBR"],
)
def test_a_garbage_table_gives_no_partition_and_no_harm(disk: Mounted, entries: bytes) -> None:
    """Whatever sector 0 says: the disk is there, `ls` ends, and every listed name can be read."""

    def work() -> None:
        with (disk / "disk").open("r+b") as file:
            file.seek(446)
            file.write(entries + b"\x55\xaa")
        for name in os.listdir(disk.mountpoint):
            size = (disk / name).stat().st_size
            assert len((disk / name).read_bytes()) == size <= SIZE
        json.loads((disk / ".vdisk/disk/info").read_text())

    disk.person.does(work)


def test_overlapping_partitions_are_told_and_not_shown(disk: Mounted) -> None:
    """Two entries that share sectors: `info` says so, with both still in its list."""
    row = b"\0\0\0\0\x83\0\0\0"
    first = row + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    second = row + (4096).to_bytes(4, "little") + (4096).to_bytes(4, "little")

    def work() -> list[dict[str, Any]]:
        with (disk / "disk").open("r+b") as file:
            file.seek(446)
            file.write(first + second + bytes(32) + b"\x55\xaa")
        found = json.loads((disk / ".vdisk/disk/info").read_text())["partitions"]
        assert isinstance(found, list)
        return found

    told = disk.person.does(work)
    assert [row["number"] for row in told] == [1, 2]
    problems = {f"disk.p{row['number']}" for row in told if row["problem"]}
    assert problems
    assert set(partitions(disk)) == {"disk.p1", "disk.p2"} - problems


@settings(max_examples=25)
@given(
    label=st.sampled_from(["dos", "gpt"]),
    cuts=st.lists(st.integers(2048, SIZE // 512 - 34), min_size=2, max_size=8, unique=True),
)
def test_any_table_that_sfdisk_writes_is_shown(
    one_mount: Mounted, label: str, cuts: list[int]
) -> None:
    """One table after another on one mount; each partition shows the sectors it was given."""
    cuts = sorted(cuts)
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    rows = "".join(f"start={start},size={end - start}\n" for start, end in ranges)
    sfdisk(one_mount / "disk", f"label: {label}\n{rows}", person=one_mount.person)
    wanted = {f"disk.p{i}": (start, end - start) for i, (start, end) in enumerate(ranges, 1)}
    assert partitions(one_mount) == wanted


async def test_a_partition_looked_up_while_its_table_is_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As programs do that open several partitions at once, right after they were made."""
    image = make_image(tmp_path / "disk.img", SIZE)
    sfdisk(image, "label: dos\nstart=2048,size=2048\nstart=4096,size=2048\n")
    tree = Tree([ImageList([image], NO_OPTIONS, writable=True)])
    tree.show(tree.look(tree.known()))
    filesystem = FileSystem(tree, Settings())
    reading = threading.Event()

    def scanned(disk: Disk) -> Scan:
        assert reading.wait(PATIENCE)
        return scan_table(disk)

    found = {}

    async def find(name: str) -> None:
        found[name] = (await filesystem.lookup(ROOT, name)).size

    monkeypatch.setattr("mount.tree.scan_table", scanned)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, "disk.p1")
            nursery.start_soon(find, "disk.p2")
            try:  # Until both wait, or one has failed.
                await trio.testing.wait_all_tasks_blocked(cushion=0.2)
            finally:
                reading.set()
    finally:
        filesystem.close()
    assert found == {"disk.p1": MIB, "disk.p2": MIB}
