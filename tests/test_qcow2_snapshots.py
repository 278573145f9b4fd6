"""Internal snapshots: those of qemu-img are seen and gone back to here, and the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from operator import contains
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from test_format_crash import Sectors, survivors

import qemu
from cli import done
from model import host_folder
from qcow2_images import create, sound
from recording import FailingHost, RecordingHost
from vdisk.disk_geometry import resize_disk
from vdisk.errors import Exists, HostError, InvalidArgument, NotFound, ReadOnly, Unsupported
from vdisk.formats.base import ProblemKind
from vdisk.formats.qcow2.header import Incompatible
from vdisk.image_disk import ImageDisk
from vdisk.open import open_host, open_image
from vdisk.snapshots import apply_snapshot, create_snapshot, delete_snapshot, list_snapshots

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2

KIB, MIB = 1 << 10, 1 << 20
SIZE = 2 * MIB
VARIANTS = ["cluster-size=4K", "compat=0.10", "cluster-size=16K,extended-l2=on"]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: QEMU's tools, and our barriers, need not wait for a device."""
    with host_folder("memory") as folder:
        yield folder


@contextmanager
def written(image: Path) -> Iterator[ImageDisk]:
    """The image open for writing; sound by qemu-img check and by our own when it is closed."""
    with open_image(image, writable=True) as disk:
        yield disk
    sound(image)


def change(disk: ImageDisk, content: bytearray, random: Random, count: int) -> None:
    for _ in range(count):
        offset = random.randrange(len(content))
        length = min(random.randrange(1, 60000), len(content) - offset)
        block = random.choice([random.randbytes(length), bytes(length)])
        if any(block):
            disk.write(offset, block)
        else:
            random.choice([disk.zero, disk.discard])(offset, length)
        content[offset : offset + length] = block


def content_of(image: Path, name: str) -> bytes:
    """What a snapshot holds, taken out by qemu-img."""
    raw = image.with_name("raw")
    words = ["-l", f"snapshot.name={name}", "-f", "qcow2", "-O", "raw"]
    qemu.qemu("qemu-img", "convert", *words, image, raw)
    return raw.read_bytes()


def listed(image: Path) -> list[tuple[str, str]]:
    """(id, name) of the snapshots, as qemu-img lists them."""
    said = qemu.qemu("qemu-img", "snapshot", "-l", image)
    return re.findall(r"^(\d+) +(\S+) +0 B", said, re.MULTILINE)


@pytest.mark.parametrize("options", VARIANTS)
def test_a_snapshot_taken_here_holds_the_disk_as_it_was(tmp_path: Path, options: str) -> None:
    image = tmp_path / "d.qcow2"
    create(image, SIZE, options)
    content, random = bytearray(SIZE), Random(options)
    kept = {}
    for name in ("first", "second", "third"):
        with written(image) as disk:
            change(disk, content, random, 8)
            create_snapshot(disk, name)
            kept[name] = bytes(content)
            change(disk, content, random, 8)
            assert disk.read(0, SIZE) == content
    assert listed(image) == [("1", "first"), ("2", "second"), ("3", "third")]
    for name, expected in kept.items():
        assert content_of(image, name) == expected
    qemu.expect(image, "qcow2", content)
    with written(image) as disk:
        delete_snapshot(disk, "second")
        apply_snapshot(disk, "1")
        assert disk.read(0, SIZE) == kept["first"]
        disk.write(0, b"new")
    assert content_of(image, "first") == kept["first"]
    assert content_of(image, "third") == kept["third"]
    qemu.qemu("qemu-img", "snapshot", "-a", "third", image)
    qemu.expect(image, "qcow2", kept["third"])
    qemu.qemu("qemu-img", "snapshot", "-d", "first", image)
    with written(image) as disk:
        delete_snapshot(disk, "third")
        assert list_snapshots(disk) == []
        assert disk.read(0, SIZE) == kept["third"]


@pytest.mark.parametrize("options", ["compat=0.10", "extended_l2=on"])
def test_snapshots_of_qemu_are_gone_back_to_and_deleted(tmp_path: Path, options: str) -> None:
    words = dict([options.split("=")]) if options else {}
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE, **words)
    content, random = bytearray(SIZE), Random(options)
    kept = []
    for name in ("a", "b"):
        qemu.scatter(image, "qcow2", content, random, 5)
        qemu.qemu("qemu-img", "snapshot", "-c", name, image)
        kept.append(bytes(content))
        with written(image) as disk:
            change(disk, content, random, 5)
    with written(image) as disk:
        assert [snapshot.name for snapshot in list_snapshots(disk)] == ["a", "b"]
        assert disk.read(0, SIZE) == content
        apply_snapshot(disk, "a")
        assert disk.read(0, SIZE) == kept[0]
    assert content_of(image, "b") == kept[1]
    with written(image) as disk:
        delete_snapshot(disk, "a")
        delete_snapshot(disk, "b")
        assert disk.read(0, SIZE) == kept[0]
    assert image.stat().st_blocks * 512 < SIZE + MIB


def test_a_snapshot_of_another_size_brings_its_size_back(tmp_path: Path) -> None:
    """Also where the L1 table has become longer, and in QEMU's order of things."""
    image = tmp_path / "d.qcow2"
    create(image, MIB, "cluster-size=512")
    content = bytearray(MIB)
    with written(image) as disk:
        change(disk, content, Random(1), 10)
        create_snapshot(disk, "small")
        resize_disk(disk, 9 * MIB)
        disk.write(8 * MIB, b"far")
        create_snapshot(disk, "large")
        resize_disk(disk, MIB // 2)
        disk.write(0, b"now")
    with written(image) as disk:
        apply_snapshot(disk, "large")
        assert disk.size == 9 * MIB
        assert disk.read(8 * MIB, 4) == b"far\0"
        apply_snapshot(disk, "small")
        assert disk.read(0, disk.size) == content
    qemu.expect(image, "qcow2", content)
    qemu.qemu("qemu-img", "snapshot", "-a", "large", image)
    assert qemu.info(image, "qcow2")["virtual-size"] == 9 * MIB


def test_the_state_of_a_machine_stays_in_its_snapshot(tmp_path: Path) -> None:
    """It lies past the disk's end, and is not to appear when the disk grows."""
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", 64 * KIB)
    commands = ["write -P 7 0 64k", "write -b -P 9 0 64k"]
    qemu.qemu("qemu-io", "-f", "qcow2", *[w for c in commands for w in ("-c", c)], image)
    qemu.qemu("qemu-img", "snapshot", "-c", "with state", image)
    with written(image) as disk:
        apply_snapshot(disk, "with state")
        resize_disk(disk, 2 << 30)
        state = next(e for e in disk.map(64 * KIB, (2 << 30) - 64 * KIB))
        assert state.length == (2 << 30) - 64 * KIB
        assert state.host is None


def test_compressed_clusters_are_shared_and_given_up_with_the_last_user(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"some text " * (SIZE // 10) + bytes(SIZE % 10))
    image = tmp_path / "d.qcow2"
    qemu.qemu("qemu-img", "convert", "-c", "-O", "qcow2", plain, image)
    with written(image) as disk:
        create_snapshot(disk, "packed")
        disk.write(100, b"x" * MIB)
    assert content_of(image, "packed") == plain.read_bytes()
    with written(image) as disk:
        apply_snapshot(disk, "packed")
        disk.write(0, b"y" * SIZE)
        delete_snapshot(disk, "packed")
        assert disk.read(SIZE - 3, 3) == b"yyy"


def test_what_cannot_be_taken_or_found_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    create(image, MIB, "refcount-bits=1")
    with written(image) as disk:
        disk.write(0, b"x")
        with pytest.raises(Unsupported, match="refcounts of 1 bits"):
            create_snapshot(disk, "one bit cannot count to two")
    other = tmp_path / "o.qcow2"
    create(other, MIB)
    with written(other) as disk:
        create_snapshot(disk, "taken")
        with pytest.raises(Exists):
            create_snapshot(disk, "taken")
        for name in ("", "x\0y", "x" * 2000):
            with pytest.raises(InvalidArgument):
                create_snapshot(disk, name)
        with pytest.raises(NotFound, match="it has: taken"):
            apply_snapshot(disk, "nothing")
        with pytest.raises(NotFound):
            delete_snapshot(disk, "nothing")
    with open_image(other, writable=False) as disk, pytest.raises(ReadOnly):
        create_snapshot(disk, "new")
    with_data = tmp_path / "w.qcow2"
    create(with_data, MIB, "data-file=w.raw")
    with open_image(with_data, writable=True) as disk, pytest.raises(Unsupported, match="data f"):
        create_snapshot(disk, "new")
    with open_image(other, writable=True) as disk:  # As one that claims both would be.
        image = cast("Qcow2", disk.image)
        flags = image.header.incompatible | Incompatible.DATA_FILE
        image.header = replace(image.header, incompatible=flags)
        for change_one in (apply_snapshot, delete_snapshot):
            with pytest.raises(Unsupported, match="data file"):
                change_one(disk, "taken")
    done("create", tmp_path / "r.img", "--size", "1M")
    with open_image(tmp_path / "r.img", writable=True) as disk, pytest.raises(Unsupported):
        create_snapshot(disk, "new")


@pytest.mark.parametrize("what", ["take", "apply", "delete"])
def test_a_snapshot_that_is_cut_short_leaves_disk_and_snapshots_as_before_or_after(
    what: str,
) -> None:
    """A killed process and a loss of power, at every write of the host."""
    with host_folder("memory") as folder:
        image = folder / "d.qcow2"
        create(image, 40 * KIB, "cluster-size=1K")
        content = bytearray(40 * KIB)
        random = Random(what)
        with open_image(image, writable=True) as disk:
            change(disk, content, random, 6)
            create_snapshot(disk, "old")
            old = bytes(content)
            change(disk, content, random, 3)
        new = {"take": bytes(content), "apply": old, "delete": bytes(content)}[what]
        host = RecordingHost.recording(image)
        with open_host(host) as disk:
            if what == "take":
                create_snapshot(disk, "more")
            elif what == "apply":
                apply_snapshot(disk, "old")
            else:
                delete_snapshot(disk, "old")
            host.log.mark(None)
        crashed = folder / "crashed.qcow2"
        for count in range(len(host.log.events) + 1):
            for state in host.log.crash_states(count, random, 2):
                crashed.write_bytes(state)
                with open_image(crashed, writable=True) as disk:
                    found = disk.read(0, disk.size)
                    assert found in (bytes(content), new)
                    list(disk.repair())
                    assert list(disk.image.check()) == []
                    disk.write(0, b"goes on")
                    disk.discard(8 * KIB, 20 * KIB)
                    for snapshot in list_snapshots(disk):
                        apply_snapshot(disk, snapshot.name)
                        kept = old if snapshot.name == "old" else bytes(content)
                        assert disk.read(0, disk.size) == kept
        qemu.check(crashed, "qcow2")


@pytest.mark.parametrize("kind", ["shared with a snapshot", "compressed"])
def test_after_a_crash_what_was_copied_on_write_is_the_old_or_the_new(kind: str) -> None:
    """A killed process has lost nothing; a loss of power, nothing that was flushed."""
    with host_folder("memory") as folder:
        image = folder / "d.qcow2"
        plain = folder / "plain"
        plain.write_bytes(b"old data" * 5120)
        compress = ["-c"] if kind == "compressed" else []
        words = [*compress, "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4K"]
        qemu.qemu("qemu-img", "convert", *words, plain, image)
        random = Random(kind)
        if not compress:
            with open_image(image, writable=True) as disk:
                create_snapshot(disk, "old")
        host = RecordingHost.recording(image)
        with open_host(host) as disk:
            sectors = Sectors(disk, random)
            host.log.mark(sectors.snapshot())
            for _ in range(12):
                sectors.change(4 * KIB)
                host.log.mark(sectors.snapshot())
        crashed = folder / "crashed.qcow2"
        for (begun, before), (ended, after) in pairwise(host.log.marks):
            allowed = [old | new for old, new in zip(before[1], after[1], strict=True)]
            for count in range(begun, ended + 1):
                for number, state in enumerate(host.log.crash_states(count, random, 2)):
                    crashed.write_bytes(state)
                    found = survivors(crashed, number, False)
                    assert all(map(contains, allowed, found)), (count, number)
                    if number == 0 and count == ended:
                        assert found == after[0], "a killed process lost a write"
        if not compress:
            assert content_of(crashed, "old") == plain.read_bytes()


@pytest.mark.parametrize("what", ["take", "apply", "delete"])
def test_a_snapshot_for_which_the_host_has_no_room_changes_nothing(what: str) -> None:
    """Each change of the host in turn is refused; the disk goes on, and leaks are given back."""
    for fail_at in range(40):
        with host_folder("memory") as folder:
            image = create(folder / "d.qcow2", 40 * KIB, "cluster-size=1K")
            content = bytearray(40 * KIB)
            with open_image(image, writable=True) as disk:
                change(disk, content, Random(1), 4)
                create_snapshot(disk, "old")
                kept = bytes(content)
                change(disk, content, Random(2), 3)
            host = FailingHost.open(image, writable=True)
            with open_host(host) as disk:
                host.fail_at = fail_at
                try:
                    {"take": create_snapshot, "apply": apply_snapshot, "delete": delete_snapshot}[
                        what
                    ](disk, "new" if what == "take" else "old")
                except HostError:
                    assert host.fail_at is None
                if what == "apply" and disk.read(0, disk.size) == kept:
                    content[:] = kept
                is_through = host.fail_at is not None
                host.fail_at = None
                assert disk.read(0, disk.size) == content
                disk.write(5000, b"goes on")
                content[5000:5007] = b"goes on"
            with written(image) as disk:
                assert disk.read(0, disk.size) == content
                if "old" in [snapshot.name for snapshot in list_snapshots(disk)]:
                    apply_snapshot(disk, "old")
                    assert disk.read(0, disk.size) == kept
                else:
                    assert what == "delete"
        if is_through:
            return
    raise AssertionError("there are more changes than were refused")


class SnapshotMachine(RuleBasedStateMachine):
    """Any order of writes, snapshots, returns and deletions, against byte arrays."""

    @initialize(options=st.sampled_from(VARIANTS))
    def start(self, options: str) -> None:
        self.folder = host_folder("memory")
        self.image = self.folder.__enter__() / "d.qcow2"
        create(self.image, 200 * KIB, options)
        self.disk = open_image(self.image, writable=True)
        self.content = bytearray(200 * KIB)
        self.kept: dict[str, bytes] = {}

    @rule(seed=st.integers(0, 1000))
    def write(self, seed: int) -> None:
        change(self.disk, self.content, Random(seed), 2)

    @rule(name=st.sampled_from("abc"))
    def take(self, name: str) -> None:
        if name not in self.kept:
            create_snapshot(self.disk, name)
            self.kept[name] = bytes(self.content)

    @rule(name=st.sampled_from("abc"), apply=st.booleans())
    def use(self, name: str, apply: bool) -> None:
        if name in self.kept and apply:
            apply_snapshot(self.disk, name)
            self.content[:] = self.kept[name]
        elif name in self.kept:
            delete_snapshot(self.disk, name)
            del self.kept[name]

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.disk = open_image(self.image, writable=True)

    @rule()
    def look(self) -> None:
        assert self.disk.read(0, self.disk.size) == self.content
        assert list(self.disk.image.check()) == []

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        try:
            self.look()
            self.disk.close()
            qemu.check(self.image, "qcow2")
            for name, content in self.kept.items():
                assert content_of(self.image, name) == content
        finally:
            self.disk.close()
            self.folder.__exit__(None, None, None)


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)


def test_marks_of_a_crash_are_no_corruption(tmp_path: Path) -> None:
    """Between the counts and the table, what is wrong are leaks and flags that nothing relies on.
    """
    image = tmp_path / "d.qcow2"
    create(image, 64 * KIB, "cluster-size=4K")
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x" * 64 * KIB)
    host = RecordingHost.recording(image)
    with open_host(host) as disk:
        create_snapshot(disk, "s")
        host.log.mark(None)
    crashed = tmp_path / "crashed.qcow2"
    counts = [0, *host.log.flushes, len(host.log.events)]
    for first, last in pairwise(counts):
        for count in (first, (first + last) // 2):
            for content in host.log.crash_states(count, Random(1), 1):
                crashed.write_bytes(content)
                with open_image(crashed, writable=False) as disk:
                    if not list_snapshots(disk):
                        continue
                    kinds = {problem.kind for problem in disk.image.check()}
                    assert ProblemKind.CORRUPTION not in kinds
