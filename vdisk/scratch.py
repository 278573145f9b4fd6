"""A layer over a disk that takes all its changes and is forgotten with it.

The disk beneath is open read-only and stays as it is.  What is written lies in a sparse file that
has no name, at the same offset as in the disk, in units of a page; which units are there is known
in memory only, by a byte a unit, and only for those parts of the disk that were changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from vdisk.errors import HostError
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.plan import Fill, Grow, Guest, Plan, Punch, Step

UNIT = 4096
"""What is written to a page of a guest's, or of the kernel's cache, needs nothing copied first."""

_BYTES_AT_ONCE = 1 << 20  # Where the host is full, as much is written in vain, and takes space up.
_PER_PAGE = 1 << 12  # Units whose states are in one page of them: 16 MiB of the disk.
_PARENT, _DATA, _ZERO = 0, 1, 2
_KINDS = {_PARENT: Kind.PARENT, _DATA: Kind.DATA, _ZERO: Kind.ZERO}


class Changes:
    """Which units of a disk of `size` bytes were written (`_DATA`) or made zeros (`_ZERO`).

    Of the disk beneath, bytes [0, `shown`) are seen where neither is so.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.shown = size
        self._pages: dict[int, bytearray] = {}

    def run(self, unit: int, end: int) -> tuple[int, int]:
        """(state, end of the run) of the units from `unit` on that have one state, up to `end`."""
        number, at = divmod(unit, _PER_PAGE)
        page = self._pages.get(number)
        state = _PARENT if page is None else page[at]
        while unit < end:
            number, at = divmod(unit, _PER_PAGE)
            page = self._pages.get(number)
            stop = min(_PER_PAGE, at + end - unit)
            if page is not None:
                rest = page[at:stop].lstrip(bytes([state]))
                if rest:
                    return state, unit + stop - at - len(rest)
            elif state != _PARENT:
                break
            unit += stop - at
        return state, unit

    def set(self, first: int, end: int, state: int) -> None:
        """Units [first, end) have that state from now on."""
        while first < end:
            number, at = divmod(first, _PER_PAGE)
            stop = min(_PER_PAGE, at + end - first)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(_PER_PAGE)
            page[at:stop] = bytes([state]) * (stop - at)
            first += stop - at

    def forget_from(self, size: int) -> None:
        """Forget all from byte `size` on; it reads as zeros if the disk grows again."""
        first = -(-size // UNIT)
        for number in [number for number in self._pages if number * _PER_PAGE >= first]:
            del self._pages[number]
        if self._pages:
            self.set(first, (max(self._pages) + 1) * _PER_PAGE, _PARENT)
        self.size, self.shown = size, min(self.shown, size)


class Scratch(ImageFormat):
    """The layer as the image of a disk.  `host` takes what is written, `changes` says where."""

    name: ClassVar[str] = "scratch"

    def __init__(self, host: HostFile, parent: ImageDisk, changes: Changes) -> None:
        self._host = host
        self.parent: ImageDisk = parent
        self.sector_size = parent.sector_size
        self._changes = changes
        self.size = changes.size

    def hosts(self) -> tuple[HostFile, ...]:
        return (self._host,)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        unit, end = offset // UNIT, -(-(offset + length) // UNIT)
        while unit < end:
            state, stop = self._changes.run(unit, end)
            at, run_end = unit * UNIT, min(stop * UNIT, self.size)
            match _KINDS[state]:
                case Kind.DATA:
                    yield Extent(at, run_end - at, Kind.DATA, self._host, at)
                case Kind.ZERO:
                    yield Extent(at, run_end - at, Kind.ZERO)
                case _:
                    yield from self._beneath(max(at, offset), run_end)
            unit = stop

    def _beneath(self, start: int, end: int) -> Iterator[Extent]:
        """As `beneath`; but what was once cut off is not seen any more."""
        middle = min(max(self._changes.shown, start), end)
        if start < middle:
            yield Extent(start, middle - start, Kind.PARENT, self.parent, start)
        if middle < end:
            yield Extent(middle, end - middle, Kind.ZERO)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        end = offset + length
        last = -(-end // UNIT)
        state, stop = self._changes.run(offset // UNIT, last)
        if stop < last:
            return None
        if state == _DATA:
            return Kind.DATA, self._host, offset
        if state == _ZERO:
            return Kind.ZERO, None, 0
        return (Kind.PARENT, self.parent, offset) if end <= self._changes.shown else None

    # Changes

    def plan_write(self, offset: int, length: int) -> Plan:
        length = min(length, _BYTES_AT_ONCE)
        end = offset + length
        first, last = offset // UNIT, -(-end // UNIT)
        before, after = first * UNIT, min(last * UNIT, self.size)
        steps: list[Step] = [Grow(self._host, last * UNIT)]
        if before < offset:
            steps.append(Fill(before, offset - before, self._host, before))
        steps.append(Guest(offset, length, self._host, offset))
        if end < after:
            steps.append(Fill(end, after - end, self._host, end))
        return Plan(tuple(steps), lambda: self._changes.set(first, last, _DATA), length)

    def plan_zero(self, offset: int, length: int) -> Plan:
        first, end = -(-offset // UNIT), offset + length
        last = -(-end // UNIT) if end == self.size else end // UNIT
        if offset % UNIT or last <= first:
            return self.plan_write(offset, min(length, UNIT - offset % UNIT))
        done = min(last * UNIT, end) - offset
        punch = Punch(self._host, offset, done)  # Of a write that failed there may be bytes.
        return Plan((punch,), lambda: self._changes.set(first, last, _ZERO), done)

    def plan_resize(self, size: int) -> Plan:
        def done() -> None:
            if size < self.size:
                self._changes.forget_from(size)
            self._changes.size = self.size = size

        end = self._host.size()
        cut = (Punch(self._host, size, end - size),) if size < min(self.size, end) else ()
        return Plan(cut, done, exclusive=True)

    def plan_flush(self) -> Plan:
        return Plan()  # Nobody will ask for it after a crash.

    def info(self) -> dict[str, Any]:
        return {"kept_in": str(self._host.path.parent), "changed": self._host.allocated_bytes()}


def scratch_disk(base: ImageDisk) -> ImageDisk:
    """`base`, which is open read-only, as a disk that can be written and forgets that when closed.

    Closing it closes `base`.  Raises HostError where no temporary file can be made.
    """
    host = _unnamed_file()
    _look_like(host, base.image.hosts()[0])
    disk = ImageDisk(
        Scratch(host, base, Changes(base.size)), address=base.address,
        sector_size=base.sector_size, read_only=False,
    )
    disk.choice = base.choice
    disk.is_throwaway = True
    return disk


def scratch_folder() -> Path:
    """Where scratch files are kept: TMPDIR; else /var/tmp, since /tmp may be memory."""
    chosen = os.environ.get("TMPDIR") or "/var/tmp"
    return Path(chosen if os.path.isdir(chosen) else tempfile.gettempdir())


def _unnamed_file() -> HostFile:
    folder = scratch_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fd = os.dup(file.fileno())
    except OSError as error:
        raise HostError.of(error, "make a temporary file in", folder) from error
    os.set_inheritable(fd, False)
    return HostFile(fd, folder / "vdisk-snapshot", writable=True)


def _look_like(host: HostFile, other: HostFile) -> None:
    """Mode and times are what `stat` shows of the mounted disk."""
    status = other.stat()
    with suppress(OSError):
        os.fchmod(host.fd, status.st_mode & 0o666)
        os.fchown(host.fd, status.st_uid, status.st_gid)
    with suppress(OSError):
        os.utime(host.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
