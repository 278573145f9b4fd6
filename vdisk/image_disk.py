"""A disk in an image: the format says where, this moves the bytes and carries plans out.

Two locks.  Data I/O on places that are allocated goes on in any number of threads, inside the
`Gate`.  Plans are made and carried out one at a time, under `_plans`; one that gives places up (or
begins to share them) also waits until the gate is empty and keeps it closed, so that no I/O under
way ever meets a place that has become somebody else's.  `_plans` is taken before the gate, never
inside it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from threading import Lock

from vdisk.codec import DecodedUnits
from vdisk.disk import SIZE_MAX, Disk
from vdisk.errors import DiskError, HostError, InvalidArgument, ReadOnly
from vdisk.extent import Extent, Host, Kind, merged, pieces
from vdisk.formats.base import ImageFormat, Problem
from vdisk.gate import Gate
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.plan import (
    Barrier,
    Clear,
    Copy,
    Fill,
    Grow,
    Guest,
    Plan,
    Plans,
    Punch,
    Put,
    Step,
    Truncate,
)
from vdisk.record import forget_geometry, store_geometry, stored_geometry
from vdisk.requests import Discard, Request, Write, Zero

_log = logging.getLogger(__name__)

_LOOK_MAX = 1 << 30  # A request of a terabyte is not mapped to its end for each of its plans.
_CHUNK = 1 << 20  # As much as is held in memory of what a `Fill` or a `Copy` moves.


class ImageDisk(Disk):
    """A disk in an image file.  `image` is its format; everything else asks the disk.

    One that `is_throwaway` is not waited for: what of it a crash leaves, nobody asks.
    """

    is_throwaway = False

    def __init__(
        self, image: ImageFormat, *, address: str, sector_size: int, read_only: bool
    ) -> None:
        self.image = image
        self.address = address
        self.sector_size = sector_size
        self.read_only = read_only or image.unwritable is not None
        self._gate = Gate()
        self._plans = Lock()
        self._begun = False  # `plan_first_write` is carried out.
        self._repaired = False  # Something was changed even so.
        self._unwritable: HostError | None = None  # Why the tables in the host are not ours.
        self._decoded = DecodedUnits()

    @property
    def size(self) -> int:
        return self.image.size

    # Reading

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.check_range(offset, len(buffer))
        with self._gate:
            self._read(offset, buffer)

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        length = len(buffer)
        if not 0 < length <= self.image.size - offset or not self._gate.try_enter():
            return False
        try:
            found = self.image.locate(offset, length)
            if found is None:
                return False
            _, host, host_offset = found
            if host is not None:
                return host.try_read_into(host_offset, buffer)
            buffer[:] = bytes(length)
            return True
        finally:
            self._gate.leave()

    def _read(self, offset: int, buffer: memoryview) -> None:
        """As `read_into`, for one who is inside the gate or keeps it closed."""
        for extent, part in pieces(self.image.map(offset, len(buffer)), offset, len(buffer)):
            if extent.kind is Kind.ZERO:
                buffer[part] = bytes(extent.length)
            elif extent.unit is not None:
                buffer[part] = self._decode(extent)
            else:
                host, host_offset = extent.place
                host.read_into(host_offset, buffer[part])

    def _decode(self, extent: Extent) -> bytes:
        host, host_offset = extent.place
        unit = extent.unit
        assert unit is not None
        key = (id(host), host_offset, unit.host_length, unit.length, unit.codec)
        decoded = self._decoded.get(key)
        if decoded is None:
            packed = bytearray(unit.host_length)
            host.read_into(host_offset, memoryview(packed))
            try:
                decoded = unit.codec.decode(bytes(packed), unit.length)
            except DiskError as error:
                error.path = error.path or self.address
                raise
            self._decoded.keep(key, decoded)
        return decoded[unit.skip : unit.skip + extent.length]

    # Changing

    def check_writable(self) -> None:
        """As `Disk.check_writable`, saying why where it is the image that cannot be written."""
        if self.image.unwritable is not None:
            raise ReadOnly(
                self.image.unwritable, path=self.address,
                hint="write to an overlay of it, or to a copy in another format",
            )
        super().check_writable()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._change(Write(offset, len(data), memoryview(data)))

    def zero(self, offset: int, length: int) -> None:
        self._change(Zero(offset, length))

    def discard(self, offset: int, length: int) -> None:
        self._change(Discard(offset, length))

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        length = len(data)
        if not self._begun or self._unwritable or not 0 < length <= self.image.size - offset:
            return False
        if not self._gate.try_enter():
            return False
        try:
            found = self.image.locate(offset, length)
            if found is None or found[0] is not Kind.DATA or found[1] is None:
                return False
            return found[1].try_write(found[2], data)
        finally:
            self._gate.leave()

    def _change(self, request: Request) -> None:
        """Do what can be done in place; where it cannot, plan, and go on behind that."""
        self.check_writable()
        self.check_range(request.offset, request.length)
        self._begin()
        at = request.offset
        while at < request.end:
            with self._gate:
                at = self._change_in_place(request, at)
            if at < request.end:
                at = self._change_by_plan(request, at)

    def _change_in_place(self, request: Request, at: int) -> int:
        """Change what is in place from `at` on; where the first byte is that is not, or that was
        not looked at.
        """
        for extent in self._runs(request, at):
            if request.is_done(extent):
                continue
            if not request.in_place(self.image, extent):
                return extent.guest_offset
            request.put(extent.guest_offset, extent.length, *extent.place)
        return min(request.end, at + _LOOK_MAX)

    def _change_by_plan(self, request: Request, at: int) -> int:
        """Have the format plan for what begins at `at`; where to go on."""
        with self._plans:
            length = 0
            # Looked at again: another thread's plan may have placed it meanwhile.
            for extent in self._runs(request, at):
                if request.is_done(extent) or request.in_place(self.image, extent):
                    break
                length += extent.length
            if length == 0:
                return at
            plan = request.plan(self.image, at, length)
            assert 0 <= plan.length <= length, "a plan answers for a part of what it was asked"
            self._carry_out(plan, request)
            return at + plan.length

    def _runs(self, request: Request, at: int) -> Iterator[Extent]:
        length = min(request.end - at, _LOOK_MAX)
        return (extent for extent, _ in pieces(self.image.map(at, length), at, length))

    def _begin(self) -> None:
        """What the format wants in the host before the first change.

        Raises the HostError that left the host's tables in a state nobody knows, if one did.
        """
        if self._unwritable is not None:
            raise self._unwritable
        if self._begun:
            return
        with self._plans:
            if not self._begun:
                self._carry_out(self.image.plan_first_write())
                self._begun = True

    def allocate(self, offset: int, length: int) -> None:
        self.check_writable()
        self.check_range(offset, length)
        end = offset + length
        while offset < end:
            found = self.run(offset, end - offset)
            if found is None or not found[0].allocate(*found[1:]):
                super().allocate(offset, end - offset)  # Which refuses.
                return
            offset += found[2]

    def flush(self) -> None:
        if self._unwritable is not None:
            raise self._unwritable
        if self._begun:
            with self._plans:
                plan = self.image.plan_flush()
                if plan is not None:
                    self._carry_out(plan)
                    return
        for host in self.image.hosts():
            host.flush()

    def resize(self, size: int) -> None:
        self.check_writable()
        if not 0 <= size <= SIZE_MAX:
            raise InvalidArgument(f"cannot be {size} bytes large", path=self.address)
        self._begin()
        with self._plans:
            while self.image.size != size:
                self._carry_out(self.image.plan_resize(size))

    def recorded_geometry(self) -> Geometry | None:
        """The geometry that is kept beside the image, None where there is none.

        Raises Corrupt where the record cannot be read.
        """
        return stored_geometry(self.image.hosts()[0])

    def keep_geometry(self, geometry: Geometry | None) -> bool:
        """Keep `geometry` beside the image, or forget what is kept there (None).

        False where there is no place for it.  Raises HostError.
        """
        host = self.image.hosts()[0]
        if geometry is None:
            forget_geometry(host)
            return True
        return store_geometry(host, geometry)

    def set_geometry(self, geometry: Geometry) -> None:
        """Write `geometry` into the image's header.  Unsupported where the format has no field."""
        self.check_writable()
        self._begin()
        with self._plans:
            self._carry_out(self.image.plan_geometry(geometry))

    def carry_out(self, make: Callable[[], Plan | None]) -> None:
        """Ask `make`, a function of the format, for a plan and carry it out: a repair, a snapshot.

        Raises ReadOnly, what `make` raises, and HostError.
        """
        self.check_writable()
        self._begin()
        with self._plans:
            self._carry_out(make())

    def carry_out_all(self, plans: Plans) -> None:
        """Carry out one plan after the other, and no other in between.

        Where one fails, what those before it have left is repaired.  Raises as `carry_out` does.
        """
        self.check_writable()
        self._begin()
        try:
            with self._plans:
                while (plan := plans()) is not None:
                    self._carry_out(plan)
        except DiskError:
            with suppress(DiskError):
                deque(self.repair(), maxlen=0)
            raise

    def repair(self) -> Iterator[Problem]:
        """Carry out one repair after the other; each problem, once it is repaired.

        Ends when nothing is left that can be repaired; `image.check()` then says what is left.
        Each repair is made for the image as it is, so nothing else is planned in between, not even
        for a first write, which an image may be too damaged for.  Raises ReadOnly and HostError.
        """
        self.check_writable()
        seen: set[str] = set()
        while True:
            with self._plans:
                self._carry_out(self.image.plan_flush())  # What waits is no problem.
                problems = (p for p in self.image.check() if p.repair and p.message not in seen)
                problem = next(problems, None)
                if problem is None:
                    return
                seen.add(problem.message)  # One that its repair does not take away is left alone.
                self._repaired = True
                self._carry_out(problem.repair)
            yield problem

    # Plans.  The caller holds `_plans`.

    def _carry_out(self, plan: Plan | None, request: Request | None = None) -> None:
        if plan is None:
            return
        with self._gate.alone() if plan.exclusive else nullcontext():
            put: list[Put] = []
            try:
                for step in plan.steps:
                    if isinstance(step, Put) and step.before is not None:
                        put.append(step)
                    self._step(step, request)
            except BaseException:
                self._undo(put)
                raise
            plan.done()
        if plan.exclusive:
            self._decoded.forget()

    def _undo(self, put: list[Put]) -> None:
        """Put back what table entries were before a plan that failed."""
        try:
            for step in reversed(put):
                assert step.before is not None
                step.host.write(step.host_offset, step.before)
        except HostError as error:
            _log.error("%s: no more changes, its tables cannot be written: %s", self.address, error)
            self._unwritable = error

    def _step(self, step: Step, request: Request | None) -> None:
        match step:
            case Put(host, host_offset, data, sync, _):
                through = sync and not self.is_throwaway
                (host.write_through if through else host.write)(host_offset, data)
            case Guest(guest_offset, length, host, host_offset):
                assert request is not None, "a plan that answers no request has no guest's bytes"
                request.put(guest_offset, length, host, host_offset)
            case Fill():
                self._fill(step)
            case Copy():
                self._copy(step)
            case Clear(host, host_offset, length):
                host.zero(host_offset, length)
            case Punch(host, host_offset, length):
                host.discard(host_offset, length)
            case Grow(host, size):
                host.grow(size)
            case Truncate(host, size):
                host.truncate(size)
            case Barrier(hosts):
                for each in () if self.is_throwaway else hosts:
                    each.flush()

    def _fill(self, step: Fill) -> None:
        end = step.guest_offset + step.length
        for at in range(step.guest_offset, end, _CHUNK):
            self._fill_chunk(step, at, min(_CHUNK, end - at))

    def _fill_chunk(self, step: Fill, at: int, length: int) -> None:
        distance = step.host_offset - step.guest_offset
        for extent in self._resolved(at, length):
            place = extent.guest_offset + distance
            if extent.kind is not Kind.ZERO:
                buffer = bytearray(extent.length)
                self._read(extent.guest_offset, memoryview(buffer))
                step.host.write(place, memoryview(buffer))
            elif not step.fresh:
                step.host.discard(place, extent.length)

    def _copy(self, step: Copy) -> None:
        distance = step.host_offset - step.from_offset
        for start, end, is_data in step.host.ranges(step.from_offset, step.length):
            if not is_data:
                step.host.discard(start + distance, end - start)
                continue
            for at in range(start, end, _CHUNK):
                buffer = bytearray(min(_CHUNK, end - at))
                step.host.read_into(at, memoryview(buffer))
                step.host.write(at + distance, memoryview(buffer))

    # V

    def allocated_bytes(self) -> int:
        """Bytes that the disk takes up in its host files."""
        return sum(host.allocated_bytes() for host in self.image.hosts())

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        self.check_range(offset, length)
        return merged(self._resolved(offset, length))

    def _resolved(self, offset: int, length: int) -> Iterator[Extent]:
        """The map down to host files, with their holes."""
        for extent, _ in pieces(self.image.map(offset, length), offset, length):
            yield from resolved(extent)

    def window(self) -> tuple[HostFile, int] | None:
        return self.image.window()

    def hosts(self) -> tuple[HostFile, ...]:
        return self.image.hosts()

    def close(self) -> None:
        """As `Disk.close`; before it, the format ends its writing (`plan_close`).

        Everything is let go of even where that fails, with HostError.
        """
        try:
            if (self._begun or self._repaired) and self._unwritable is None:
                with self._plans:
                    self._begun = self._repaired = False
                    self._carry_out(self.image.plan_close())
        finally:
            close_image(self.image)


def close_image(image: ImageFormat) -> None:
    """Let go of the host files of an image, and of its parents'."""
    for host in image.hosts():
        host.close()
    if image.parent is not None:
        image.parent.close()


def resolved(extent: Extent) -> Iterator[Extent]:
    """An extent as runs of host files, with their holes; through the disk that holds it, if any."""
    if extent.kind is Kind.ZERO or extent.unit is not None:
        yield extent
        return
    host, host_offset = extent.place
    if isinstance(host, Disk):
        distance = extent.guest_offset - host_offset
        yield from (run.shifted(distance) for run in host.map(host_offset, extent.length))
        return
    yield from _with_holes(extent, host, host_offset)


def _with_holes(extent: Extent, host: Host, start: int) -> Iterator[Extent]:
    """An extent of a host file split where that has holes."""
    assert isinstance(host, HostFile)
    for low, high, is_data in host.ranges(start, extent.length):
        run = extent.cut(extent.guest_offset + low - start, extent.guest_offset + high - start)
        yield replace(run, kind=Kind.DATA if is_data else Kind.ZERO, shared=False)
