"""V commutes, as a machine: any disk against a plain byte array, one operation after the other.

A guest operation is done on the disk and on the byte array.  After every step the guest's state is
mapped to host bytes by `Disk.map`, those bytes are read by plain pread(2) on descriptors of the
test's own, and both states must be equal.  `Subject` is what a test hands in; every kind of disk
is tested by the same machine and by the same suite (`conformance.py`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vdisk.disk import Disk
from vdisk.errors import OutOfRange
from vdisk.extent import Extent, Kind
from vdisk.geometry import CHS, Geometry

PLACES = {"disk": Path("/var/tmp"), "memory": Path("/dev/shm")}
"""A folder on the machine's own file system, and one on tmpfs, where fallocate does less."""


@contextmanager
def host_folder(place: str) -> Iterator[Path]:
    """A new folder in one of `PLACES`, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="vdisk-test-", dir=PLACES[place]) as folder:
        yield Path(folder)


@dataclass
class Subject:
    """A disk to be tested, and what the suite has to know about it.

    `content` is what the disk must hold at the start.  `reopen(writable)` opens the same disk
    again; the suite closes the old one first.  `boundary` is a length in bytes after which the
    map may change (a sector, a cluster, a block), so that requests are made to cross it.
    `resize` resizes a disk that can be (else None: the disk must refuse), to multiples of
    `size_unit` bytes, not to nothing where that is not 1.  `sound` is asked after
    the disk is closed: the whole structure is checked there, by another program where there is one.
    """

    disk: Disk
    content: bytes
    reopen: Callable[[bool], Disk]
    boundary: int = 512
    resize: Callable[[Disk, int], None] | None = None
    size_unit: int = 1
    sound: Callable[[], None] = lambda: None


@dataclass
class HostBytes:
    """Host files by path, read through descriptors that the disk knows nothing of."""

    stack: ExitStack = field(default_factory=ExitStack)
    open: dict[Path, int] = field(default_factory=dict)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """pread(2) of `path`."""
        if path not in self.open:
            self.open[path] = os.open(path, os.O_RDONLY)
            self.stack.callback(os.close, self.open[path])
        return os.pread(self.open[path], length, offset)


def mapped(disk: Disk, hosts: HostBytes) -> bytes:
    """The guest's whole state as the host holds it: `map`, then plain reads of the host files."""
    return b"".join(mapped_extent(extent, hosts) for extent in disk.map(0, disk.size))


def mapped_extent(extent: Extent, hosts: HostBytes) -> bytes:
    """The guest bytes of one extent, from the host.  A ZERO run with a place there is zeros there.
    """
    if extent.file is None:
        assert extent.kind is Kind.ZERO
        return bytes(extent.length)
    assert extent.host_offset is not None
    if extent.unit is not None:
        unit = extent.unit
        packed = hosts.read(extent.file.path, extent.host_offset, unit.host_length)
        return unit.codec.decode(packed, unit.length)[unit.skip : unit.skip + extent.length]
    found = hosts.read(extent.file.path, extent.host_offset, extent.length)
    assert len(found) == extent.length
    if extent.kind is Kind.ZERO:
        assert found == bytes(extent.length)
    return found


def lba_of(geometry: Geometry, chs: CHS) -> int:
    """LBA of a C/H/S, by the formula of ATA-1, 7.1.2."""
    tracks = chs.cylinder * geometry.heads + chs.head
    return tracks * geometry.sectors_per_track + chs.sector - 1


class DiskMachine(RuleBasedStateMachine):
    """Random reads, writes, zeros, discards and resizes by byte, LBA and CHS.

    A subclass makes `subject` in an `initialize` rule by calling `begin`, and undoes what it made
    in `teardown` after calling this one's.
    """

    subject: Subject | None = None

    def begin(self, subject: Subject) -> None:
        """Start with this disk."""
        self.subject = subject
        self.hosts = HostBytes()
        self.model = bytearray(subject.content)
        self.salt = 0

    @property
    def disk(self) -> Disk:
        assert self.subject is not None
        return self.subject.disk

    def fill(self, length: int) -> bytes:
        """Bytes unlike those of any other step, none of them zero."""
        self.salt += 1
        start = self.salt * 37 % 255
        return _PATTERN[start : start + length] if length <= 255 else (
            _PATTERN[start:] + _PATTERN * (length // 255)
        )[:length]

    def a_range(self, data: st.DataObject) -> tuple[int, int]:
        """An (offset, length) inside the disk, more often than not next to a boundary."""
        assert self.subject is not None
        size, unit = len(self.model), self.subject.boundary
        offset = _near(data, size, unit)
        return offset, _near(data, size - offset, unit)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, length = self.a_range(data)
        assert self.disk.read(offset, length) == self.model[offset : offset + length]

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        offset, length = self.a_range(data)
        self.change(offset, self.fill(length), self.disk.write)

    @rule(data=st.data(), discard=st.booleans())
    def zero_or_discard(self, data: st.DataObject, discard: bool) -> None:
        offset, length = self.a_range(data)
        (self.disk.discard if discard else self.disk.zero)(offset, length)
        self.model[offset : offset + length] = bytes(length)

    def change(self, offset: int, data: bytes, write: Callable[[int, bytes], None]) -> None:
        write(offset, data)
        self.model[offset : offset + len(data)] = data

    @precondition(lambda self: len(self.model) >= self.disk.sector_size)
    @rule(data=st.data(), is_write=st.booleans())
    def by_lba(self, data: st.DataObject, is_write: bool) -> None:
        unit = self.disk.sector_size
        lba = data.draw(st.integers(0, len(self.model) // unit - 1))
        sectors = data.draw(st.integers(0, min(9, len(self.model) // unit - lba)))
        if is_write:
            block = self.fill(sectors * unit)
            self.change(lba * unit, block, lambda offset, d: self.disk.write_lba(offset // unit, d))
        else:
            there = self.model[lba * unit : (lba + sectors) * unit]
            assert self.disk.read_lba(lba, sectors) == there

    @precondition(lambda self: self.disk.choice is not None)
    @rule(data=st.data(), is_write=st.booleans())
    def by_chs(self, data: st.DataObject, is_write: bool) -> None:
        geometry, unit = self.disk.geometry, self.disk.sector_size
        chs = CHS(
            data.draw(st.integers(0, geometry.cylinders - 1)),
            data.draw(st.integers(0, geometry.heads - 1)),
            data.draw(st.integers(1, geometry.sectors_per_track)),
        )
        offset = lba_of(geometry, chs) * unit
        if is_write:
            self.change(offset, self.fill(unit), lambda _, block: self.disk.write_chs(chs, block))
        else:
            assert self.disk.read_chs(chs) == self.model[offset : offset + unit]

    @precondition(lambda self: self.subject.resize is not None)
    @rule(data=st.data(), how=st.sampled_from(["byte", "lba", "chs"]))
    def resize(self, data: st.DataObject, how: str) -> None:
        assert self.subject is not None
        assert self.subject.resize is not None
        unit = self.subject.size_unit
        lowest = 0 if unit == 1 else 1
        size = unit * data.draw(st.integers(lowest, 2 * len(self.subject.content) // unit))
        if how == "lba":
            size -= size % self.disk.sector_size
        if how == "chs" and self.disk.choice is not None:
            size -= size % self.disk.geometry.cylinder_bytes
        size = max(size - size % unit, lowest * unit)
        self.subject.resize(self.disk, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        choice = self.disk.choice
        assert choice is None or choice.geometry.size_bytes <= size

    @rule(data=st.data(), operation=st.sampled_from(["read", "zero", "discard", "write", "map"]))
    def past_the_end(self, data: st.DataObject, operation: str) -> None:
        """Refused, and (as the invariant then shows) nothing is done, not even the part inside."""
        offset = data.draw(st.integers(0, len(self.model)))
        length = len(self.model) - offset + data.draw(st.integers(1, 1000))
        argument = self.fill(length) if operation == "write" else length
        with pytest.raises(OutOfRange):
            getattr(self.disk, operation)(offset, argument)

    @rule(writable=st.just(True))
    def close_and_reopen(self, writable: bool) -> None:
        assert self.subject is not None
        if self.model:  # An empty image is refused when it is opened again.
            self.subject.disk.flush()
            self.subject.disk.close()
            self.subject.disk = self.subject.reopen(writable)

    @invariant()
    def guest_mapped_is_host(self) -> None:
        if self.subject is not None:
            assert self.disk.size == len(self.model)
            assert mapped(self.disk, self.hosts) == self.model

    def teardown(self) -> None:
        if self.subject is not None:
            self.disk.close()
            self.hosts.stack.close()
            self.subject.sound()


_PATTERN = bytes(range(1, 256)) * 2


def _near(data: st.DataObject, limit: int, unit: int) -> int:
    """A number from 0 to `limit`, often a multiple of `unit` or one byte beside one."""
    if limit <= 0:
        return 0
    near = st.builds(
        lambda count, beside: min(max(count * unit + beside, 0), limit),
        st.integers(0, limit // unit), st.sampled_from([0, -1, 1]),
    )
    return data.draw(st.one_of(near, st.integers(0, limit)))
