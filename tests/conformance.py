"""What every disk must do, whatever it lies in: one suite for raw images, partitions, slices …

Use: a class that inherits from `DiskConformance` and has a fixture `subject` which gives a
`model.Subject`.  Each test then runs on that disk; the structure is checked after each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model import HostBytes, Subject, lba_of, mapped, mapped_extent
from vdisk.disk import Disk, Slice
from vdisk.errors import (
    Busy,
    DiskError,
    InvalidArgument,
    NotPermitted,
    OutOfRange,
    ReadOnly,
    Unsupported,
)
from vdisk.extent import Extent, merged
from vdisk.geometry import CHS


def some_bytes(length: int, salt: int = 1) -> bytes:
    """Bytes without a zero in them, others for another `salt`."""
    return (_PATTERN * (length // len(_PATTERN) + 2))[salt * 251 % len(_PATTERN) :][:length]


# As long as 255 turns of 251 bytes, so that no two sectors of a disk of this size are the same.
_PATTERN = bytes((index * 7 + index // 251) % 255 + 1 for index in range(251 * 255))


def named_ranges(size: int, unit: int) -> dict[str, tuple[int, int]]:
    """(offset, length) of the cases that splitting a request by `unit` gets wrong."""
    assert size >= 4 * unit, "the suite needs a disk of at least four units"
    return {
        "nothing at the start": (0, 0),
        "nothing at the end": (size, 0),
        "first byte": (0, 1),
        "last byte": (size - 1, 1),
        "one byte before a boundary": (unit - 1, 1),
        "one byte after a boundary": (unit, 1),
        "across one boundary": (unit - 1, 2),
        "up to a boundary, unaligned start": (unit + 3, unit - 3),
        "from a boundary, unaligned end": (unit, unit - 5),
        "exactly one unit": (unit, unit),
        "across two boundaries, both ends unaligned": (unit - 3, unit + 7),
        "exactly two units": (unit, 2 * unit),
        "inside one unit": (2 * unit + 5, unit - 9),
        "up to the last byte, unaligned": (size - unit - 1, unit + 1),
        "everything": (0, size),
    }


def refused_ranges(size: int) -> list[tuple[int, int]]:
    """(offset, length) that do not lie inside a disk of `size` bytes."""
    return [(-1, 1), (-1, 0), (0, -1), (size, 1), (size - 1, 2), (size + 1, 0), (0, size + 1),
            (2**63, 1), (2**64, 0)]  # fmt: skip


class DiskConformance:
    """The suite.  Subclasses are named Test… and have the fixture `subject`."""

    @pytest.fixture(autouse=True)
    def _checked_at_the_end(self, subject: Subject) -> Iterator[None]:
        yield
        subject.disk.close()
        subject.sound()

    def reopen(self, subject: Subject, *, writable: bool = True) -> Disk:
        subject.disk.flush()
        subject.disk.close()
        subject.disk = subject.reopen(writable)
        return subject.disk

    def expect(self, subject: Subject, content: bytes) -> None:
        """`content` is there: by reading, by the map and plain reads, and after opening anew."""
        hosts = HostBytes()
        with hosts.stack:
            assert subject.disk.read(0, len(content)) == content
            assert mapped(subject.disk, hosts) == content
            again = self.reopen(subject)
            assert again.size == len(content)
            assert again.read(0, len(content)) == content

    def test_holds_what_it_was_made_with(self, subject: Subject) -> None:
        assert subject.disk.size == len(subject.content)
        self.expect(subject, subject.content)

    def test_reads_are_exact_at_every_named_range(self, subject: Subject) -> None:
        for name, (offset, length) in self.ranges(subject).items():
            assert subject.disk.read(offset, length) == self.part(subject, offset, length), name

    def test_writes_change_their_range_and_nothing_else(self, subject: Subject) -> None:
        model = bytearray(subject.content)
        for salt, (name, (offset, length)) in enumerate(self.ranges(subject).items()):
            block = some_bytes(length, salt)
            subject.disk.write(offset, memoryview(block) if salt % 2 else block)
            model[offset : offset + length] = block
            assert subject.disk.read(0, len(model)) == model, name
        self.expect(subject, bytes(model))

    @pytest.mark.parametrize("operation", ["zero", "discard"])
    def test_zero_and_discard_clear_their_range_and_nothing_else(
        self, subject: Subject, operation: str
    ) -> None:
        full = some_bytes(len(subject.content))
        for name, (offset, length) in self.ranges(subject).items():
            subject.disk.write(0, full)
            getattr(subject.disk, operation)(offset, length)
            model = full[:offset] + bytes(length) + full[offset + length :]
            assert subject.disk.read(0, len(model)) == model, name
        self.expect(subject, bytes(len(full)))

    @pytest.mark.parametrize("operation", ["read", "write", "zero", "discard", "map"])
    def test_a_range_outside_is_refused_at_once_and_nothing_is_done(
        self, subject: Subject, operation: str
    ) -> None:
        for offset, length in refused_ranges(subject.disk.size):
            if operation == "write":
                if not 0 <= length < 2**32:
                    continue
                with pytest.raises(OutOfRange):
                    subject.disk.write(offset, bytes(length))
                continue
            with pytest.raises(OutOfRange):
                getattr(subject.disk, operation)(offset, length)
        self.expect(subject, subject.content)

    def test_lba_and_byte_are_the_same_bytes(self, subject: Subject) -> None:
        disk, unit = subject.disk, subject.disk.sector_size
        assert disk.sectors == len(subject.content) // unit
        last = disk.sectors - 1
        for lba, sectors in ((0, 1), (1, 2), (last, 1), (last - 1, 2), (0, disk.sectors)):
            assert disk.read_lba(lba, sectors) == self.part(subject, lba * unit, sectors * unit)
        block = some_bytes(unit, 99)
        disk.write_lba(last, block)
        assert disk.read(last * unit, unit) == block
        with pytest.raises(OutOfRange):
            disk.read_lba(last, 2)
        with pytest.raises(InvalidArgument, match="not whole sectors"):
            disk.write_lba(0, bytes(unit - 1))

    def test_chs_and_lba_are_the_same_sectors(self, subject: Subject) -> None:
        disk, geometry, unit = subject.disk, subject.disk.geometry, subject.disk.sector_size
        ends = CHS(geometry.cylinders - 1, geometry.heads - 1, geometry.sectors_per_track)
        for chs in (CHS(0, 0, 1), CHS(0, geometry.heads - 1, 1), CHS(ends.cylinder, 0, 1), ends):
            offset = lba_of(geometry, chs) * unit
            block = some_bytes(unit, offset)
            disk.write_chs(chs, block)
            assert disk.read(offset, unit) == disk.read_chs(chs) == block
        for chs in (
            CHS(geometry.cylinders, 0, 1),
            CHS(0, geometry.heads, 1),
            CHS(0, 0, geometry.sectors_per_track + 1),
        ):
            with pytest.raises(OutOfRange):
                disk.read_chs(chs)
            with pytest.raises(OutOfRange):
                disk.write_chs(chs, bytes(unit))

    def test_the_map_is_ordered_gapless_and_as_short_as_can_be(self, subject: Subject) -> None:
        subject.disk.discard(0, len(subject.content))
        subject.disk.write(subject.boundary, some_bytes(subject.boundary))
        for offset, length in self.ranges(subject).values():
            extents = list(subject.disk.map(offset, length))
            assert [extent.guest_offset for extent in extents] == _starts(offset, extents)
            assert sum(extent.length for extent in extents) == length
            assert all(extent.length > 0 for extent in extents)
            assert list(merged(extents)) == extents

    def test_a_part_of_the_map_names_the_same_host_bytes(self, subject: Subject) -> None:
        hosts = HostBytes()
        subject.disk.flush()
        with hosts.stack:
            for offset, length in self.ranges(subject).values():
                extents = subject.disk.map(offset, length)
                found = b"".join(mapped_extent(extent, hosts) for extent in extents)
                assert found == self.part(subject, offset, length)

    def test_the_window_is_where_the_map_says(self, subject: Subject) -> None:
        window = subject.disk.window()
        if window is None:
            return  # A format without one: nothing is promised.
        host, base = window
        for extent in subject.disk.map(0, subject.disk.size):
            assert (extent.host, extent.host_offset) == (host, base + extent.guest_offset)

    def test_read_only_refuses_every_change(self, subject: Subject) -> None:
        disk = self.reopen(subject, writable=False)
        assert disk.read_only
        with pytest.raises(ReadOnly):
            disk.write(0, b"x")
        with pytest.raises(ReadOnly):
            disk.zero(0, 1)
        with pytest.raises(ReadOnly):
            disk.discard(0, 1)
        with pytest.raises((ReadOnly, NotPermitted)):
            disk.resize(disk.size + 512)
        assert disk.read(0, disk.size) == subject.content

    def test_one_writer_or_many_readers(self, subject: Subject) -> None:
        with pytest.raises(Busy):
            subject.reopen(True)
        with pytest.raises(Busy):
            subject.reopen(False)
        self.reopen(subject, writable=False)
        subject.reopen(False).close()
        with pytest.raises(Busy):
            subject.reopen(True)
        assert subject.disk.read(0, 1) == subject.content[:1]

    def test_closing_twice_is_harmless_and_frees_the_disk(self, subject: Subject) -> None:
        subject.disk.close()
        subject.disk.close()
        subject.disk = subject.reopen(True)
        assert subject.disk.read(0, subject.disk.size) == subject.content

    def test_as_a_slice_it_is_the_same_bytes(self, subject: Subject) -> None:
        unit = subject.boundary
        part = Slice(subject.disk, unit - 1, 2 * unit, address="part")
        assert part.read(0, part.size) == self.part(subject, unit - 1, 2 * unit)
        part.write(unit, b"inside")
        model = bytearray(subject.content)
        model[2 * unit - 1 : 2 * unit + 5] = b"inside"
        for operation in (part.zero, part.discard, part.read):
            with pytest.raises(OutOfRange):
                operation(part.size, 1)
        with pytest.raises(OutOfRange):
            part.write(part.size - 1, b"xx")
        self.expect(subject, bytes(model))

    def test_resize_keeps_what_remains_and_adds_zeros(self, subject: Subject) -> None:
        size = len(subject.content)
        if subject.resize is None:
            with pytest.raises((NotPermitted, Unsupported)):
                subject.disk.resize(size + subject.disk.sector_size)
            self.expect(subject, subject.content)
            return
        unit = subject.size_unit
        for new in (size + unit, size + 3 * subject.boundary, size - unit, 2 * subject.boundary,
                    size):
            before = subject.disk.read(0, min(subject.disk.size, new))
            subject.resize(subject.disk, new)
            self.expect(subject, before + bytes(new - len(before)))

    @pytest.mark.parametrize("size", [-1, 2**63])
    def test_an_absurd_size_is_refused_and_nothing_is_changed(
        self, subject: Subject, size: int
    ) -> None:
        with pytest.raises(DiskError):
            subject.disk.resize(size)
        self.expect(subject, subject.content)

    def ranges(self, subject: Subject) -> dict[str, tuple[int, int]]:
        return named_ranges(len(subject.content), subject.boundary)

    def part(self, subject: Subject, offset: int, length: int) -> bytes:
        return subject.content[offset : offset + length]


def _starts(offset: int, extents: list[Extent]) -> list[int]:
    """Where each extent must start so that there is neither gap nor overlap."""
    starts = []
    for extent in extents:
        starts.append(offset)
        offset += extent.length
    return starts
