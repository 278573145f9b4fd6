"""What is wrong with a qcow2 image: as qemu-img check finds it; repaired, it is sound to both."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

import qemu
from model import host_folder
from recording import RecordingHost
from vdisk.errors import Corrupt
from vdisk.formats.base import ProblemKind
from vdisk.formats.qcow2.check import differences
from vdisk.formats.qcow2.image import Qcow2
from vdisk.formats.qcow2.opening import open_qcow2
from vdisk.formats.qcow2.tally import PAGE, Tally
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import open_host, open_image
from vdisk.parents import opening

CLUSTER = 4096
SIZE = 4 << 20
_OFFSET = ((1 << 56) - 1) & ~511


class Tables:
    """The tables of an image that qemu-img made, found by the specification alone, to be damaged.

    One L2 entry is chosen that maps a cluster.
    """

    def __init__(self, content: bytes, random: Random) -> None:
        self.bytes = bytearray(content)
        self.random = random
        self.l1, self.refcount_table = self.word(40), self.word(48)
        self.block = self.word(self.refcount_table)
        self.l1_at = random.choice(self._set(self.l1, 2))
        self.l2 = self.word(self.l1_at) & _OFFSET
        self.entries = self._set(self.l2, CLUSTER // 8)
        self.at = random.choice(self.entries)
        self.cluster = (self.word(self.at) & _OFFSET) // CLUSTER

    def word(self, at: int) -> int:
        found: int = struct.unpack_from(">Q", self.bytes, at)[0]
        return found

    def _set(self, table: int, count: int) -> list[int]:
        return [at for at in range(table, table + 8 * count, 8) if self.word(at)]

    def put(self, at: int, word: int) -> None:
        struct.pack_into(">Q", self.bytes, at, word)

    def count(self, cluster: int, count: int) -> None:
        struct.pack_into(">H", self.bytes, self.block + 2 * cluster, count)

    def another(self) -> int:
        """Another entry of the same table."""
        return self.random.choice([at for at in self.entries if at != self.at])


DAMAGES: dict[str, Callable[[Tables], None]] = {
    "a used cluster that is counted as free": lambda t: t.count(t.cluster, 0),
    "a cluster that is counted twice": lambda t: t.count(t.cluster, 2),
    "a leak": lambda t: t.put(t.at, 0),
    "an L2 entry that says shared": lambda t: t.put(t.at, t.word(t.at) & ~(1 << 63)),
    "an L1 entry that says shared": lambda t: t.put(t.l1_at, t.word(t.l1_at) & ~(1 << 63)),
    "a cluster that two entries name": lambda t: t.put(t.at, t.word(t.another())),
    "a guest cluster over the L1 table": lambda t: t.put(t.at, t.l1 | 1 << 63),
    "a guest cluster over the refcounts": lambda t: t.put(t.at, t.block | 1 << 63),
    "a guest cluster over an L2 table": lambda t: t.put(t.at, t.l2 | 1 << 63),
    "a guest cluster over the header": lambda t: t.put(t.at, 1 << 63),
    "an entry that is not aligned": lambda t: t.put(t.at, t.word(t.at) + 512),
    "an entry past the end": lambda t: t.put(t.at, len(t.bytes) + 3 * CLUSTER | 1 << 63),
    "an entry with reserved bits": lambda t: t.put(t.at, t.word(t.at) | 1 << 57),
    "an L1 entry past the end": lambda t: t.put(t.l1_at, 1 << 50 | 1 << 63),
    "refcounts that are not there": lambda t: t.put(t.refcount_table, 0),
    "refcounts that are nowhere": lambda t: t.put(t.refcount_table, t.block + 512),
    "refcounts past the end": lambda t: t.put(t.refcount_table, 1 << 50),
}
_LOST = ("a leak", "two entries", "guest cluster", "not aligned", "past the end", "reserved")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: QEMU's tools, and our barriers, need not wait for a device."""
    with host_folder("memory") as folder:
        yield folder


@pytest.fixture(scope="module")
def scattered_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(the image, what it holds): made by qemu-img, with clusters in a random order."""
    image = tmp_path_factory.mktemp("check") / "d.qcow2"
    qemu.create(image, "qcow2", SIZE, cluster_size=CLUSTER)
    content = bytearray(SIZE)
    qemu.scatter(image, "qcow2", content, Random(1), 12)
    return image.read_bytes(), bytes(content)


def by_qemu(image: Path) -> tuple[bool, bool]:
    """(whether there are leaks, whether there are errors), as qemu-img check says."""
    words = ["qemu-img", "check", "-f", "qcow2", "--output=json", str(image)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    wrong = found.get("corruptions", 0) + found["check-errors"]
    return found.get("leaks", 0) > 0, wrong > 0


def opened(image: Path) -> ImageDisk:
    """Without looking for a geometry in the guest's bytes, which may not be readable."""
    host = HostFile.open(image, writable=True)
    return ImageDisk(
        open_qcow2(host, opening(host)), address=str(image), sector_size=512, read_only=False
    )


def by_us(image: Path) -> tuple[bool, bool]:
    with opened(image) as disk:
        kinds = {problem.kind for problem in disk.image.check()}
    return ProblemKind.LEAK in kinds, bool(kinds - {ProblemKind.LEAK})


def judged_alike(image: Path) -> None:
    """Before the repair and after it; whatever we repair, QEMU calls sound."""
    assert by_us(image) == by_qemu(image)
    with opened(image) as disk:
        list(disk.repair())
        left = list(disk.image.check())
    assert bool(left) == any(by_qemu(image)), left


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_as_qemu_finds_it_and_repaired(
    tmp_path: Path, scattered_image: tuple[bytes, bytes], name: str
) -> None:
    original, content = scattered_image
    image = tmp_path / "d.qcow2"
    tables = Tables(original, Random(name))
    DAMAGES[name](tables)
    image.write_bytes(tables.bytes)
    judged_alike(image)
    if not any(word in name for word in _LOST):
        qemu.check(image, "qcow2")
        qemu.expect(image, "qcow2", content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_damages_of_several_kinds_at_once(
    tmp_path: Path, scattered_image: tuple[bytes, bytes], seed: int
) -> None:
    image, random = tmp_path / "d.qcow2", Random(seed)
    content = scattered_image[0]
    for name in random.choices(sorted(DAMAGES), k=random.randrange(1, 4)):
        if name.startswith("refcounts") or "L1 entry past" in name:
            continue  # The next one would not find its tables.
        tables = Tables(content, random)
        DAMAGES[name](tables)
        content = bytes(tables.bytes)
    image.write_bytes(content)
    judged_alike(image)


def test_how_many_clusters_leak_is_what_qemu_counts(
    tmp_path: Path, scattered_image: tuple[bytes, bytes]
) -> None:
    image = tmp_path / "d.qcow2"
    tables = Tables(scattered_image[0], Random(5))
    for at in tables.entries[::3]:
        tables.put(at, 0)
    image.write_bytes(tables.bytes)
    words = ["qemu-img", "check", "-f", "qcow2", "--output=json", str(image)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    with open_image(image, writable=False) as disk:
        assert isinstance(disk.image, Qcow2)
        assert sum(count for _, count, _, _ in differences(disk.image)) == found["leaks"]


def test_two_guest_clusters_in_one_place_are_told_apart_by_the_repair(
    tmp_path: Path, scattered_image: tuple[bytes, bytes]
) -> None:
    """Counted twice, the place is copied before it is written to."""
    image = tmp_path / "d.qcow2"
    tables = Tables(scattered_image[0], Random(3))
    other = tables.another()
    tables.put(tables.at, tables.word(other))
    image.write_bytes(tables.bytes)
    with open_image(image, writable=True) as disk:
        list(disk.repair())
        reach = CLUSTER // 8 * CLUSTER
        start = (tables.l1_at - tables.l1) // 8 * reach
        one, two = (start + (at - tables.l2) // 8 * CLUSTER for at in (tables.at, other))
        assert disk.read(one, CLUSTER) == disk.read(two, CLUSTER)
        before = disk.read(two, CLUSTER)
        disk.write(one, b"only here")
        assert disk.read(two, CLUSTER) == before
        disk.flush()
        list(disk.repair())  # The other has the place for itself now.
    qemu.check(image, "qcow2")


def test_a_guest_cluster_over_a_table_is_neither_read_nor_written(
    tmp_path: Path, scattered_image: tuple[bytes, bytes]
) -> None:
    image = tmp_path / "d.qcow2"
    for name in ("a guest cluster over the L1 table", "an entry past the end"):
        tables = Tables(scattered_image[0], Random(3))
        DAMAGES[name](tables)
        image.write_bytes(tables.bytes)
        start = (tables.l1_at - tables.l1) // 8 * (CLUSTER // 8 * CLUSTER)
        offset = start + (tables.at - tables.l2) // 8 * CLUSTER
        with open_image(image, writable=True) as disk:
            with pytest.raises(Corrupt, match=r"over the L1 table|past the end of"):
                disk.read(offset, 10)
            with pytest.raises(Corrupt, match=r"over the L1 table|past the end of"):
                disk.write(offset, b"x")
            assert not disk.try_write(offset, b"x")


def test_a_repair_that_is_cut_short_leaves_what_was_there(
    scattered_image: tuple[bytes, bytes],
) -> None:
    with host_folder("memory") as folder:
        image = folder / "d.qcow2"
        tables = Tables(scattered_image[0], Random(4))
        DAMAGES["refcounts that are not there"](tables)
        image.write_bytes(tables.bytes)
        host = RecordingHost.recording(image)
        with open_host(host) as disk:
            list(disk.repair())
        random = Random(0)
        crashed = folder / "crashed.qcow2"
        for count in range(len(host.log.events) + 1):
            for state in host.log.crash_states(count, random, 2):
                crashed.write_bytes(state)
                with open_image(crashed, writable=True) as disk:
                    list(disk.repair())
                    assert list(disk.image.check()) == []
                    assert disk.read(0, SIZE) == scattered_image[1]


def test_few_counts_in_a_vast_file_and_many_in_parts_take_little_memory() -> None:
    """Where there are too many pages, the last ones are left for the next part."""
    tally = Tally()
    for cluster in (0, 1 << 40, 1 << 54):
        tally.add(cluster, 2, 3)
    assert list(tally) == [(c + n, 3) for c in (0, 1 << 40, 1 << 54) for n in (0, 1)]
    small = Tally(pages_max=2)
    for cluster in (5 * PAGE, 9 * PAGE, PAGE - 1, 7 * PAGE, 0):
        small.add(cluster, 2)
    assert small.end == 5 * PAGE
    assert [cluster for cluster, _ in small if cluster < small.end] == [0, 1, PAGE - 1, PAGE]
    assert small.highest == 9 * PAGE + 1
