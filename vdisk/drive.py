"""A drive: a volume group on open disks, its volumes as disks, and its metadata changed.

One `Drive` serves all volumes of a group in this process.  Whoever opens the disks beneath for
writing has locked their host files, so there is no other writer; that nobody else wrote all the
same is looked at before each commit.

What a volume gives up is held (`VolumeDisk.held`) as long as it may still be read or written there,
and only then given back to the host and to other volumes.  What a volume is given reads as zeros
before the commit that gives it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TypedDict

from vdisk.disk import Disk
from vdisk.disk_geometry import settle_geometry
from vdisk.drive_steps import carry_out
from vdisk.errors import Busy, DiskError, HostError, NotFound, NotPermitted, ReadOnly, Unsupported
from vdisk.extent import Kind
from vdisk.geometry import Geometry
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.tables import lvm2
from vdisk.tables.lvm2 import (
    Barrier,
    Group,
    LogicalVolume,
    NewVolume,
    PvRange,
    Volume,
    VolumeGroup,
    VolumeMap,
    with_geometry,
)
from vdisk.units import GIB, SECTOR
from vdisk.volume import Place, VolumeDisk, VolumeImage

Advance = Callable[[int], None]
"""Called with the bytes done since it was called last."""

_BLANK_BYTES = 64 << 20  # As much is made zeros before somebody is told how far it is.
_AHEAD_BYTES_MAX = GIB  # As much as a growing volume is given at most before it needs it.

_log = logging.getLogger(__name__)


def _nobody(count: int) -> None:
    """Nobody is told how far it is."""


class Drive:
    """An open volume group.  `address` names it to a person.

    Volumes are told by name.  Everything may be called by several threads.  Every change raises
    ReadOnly, NotPermitted (the group cannot be changed, and why), Busy (another program changed
    it), NoSpace and HostError besides what is said; then nothing is changed, unless it was
    a HostError in the midst of a commit: then nothing more can be until it is opened again.
    """

    def __init__(
        self, group: Group, places: Mapping[str, Place], *, address: str, owned: Disk | None = None
    ) -> None:
        """`places` are by the UUID of the physical volume.

        `owned` is a disk to be closed with the drive, once no volume is open either.
        """
        self.address = address
        self.places = dict(places)
        self.read_only = any(place.disk.read_only for place in places.values())
        self._lock = RLock()
        self._open: dict[str, VolumeDisk] = {}  # By the volume's UUID.
        self._owned = owned
        self._in_use = True  # By whoever opened it.
        self._broken: HostError | None = None
        self._install(group)

    def _install(self, group: Group) -> None:
        self._group = group
        self._volumes = {volume.name: volume for volume in group.volumes()}

    # What there is

    @property
    def group(self) -> Group:
        """The volume group as it is now."""
        return self._group

    def volumes(self) -> dict[str, Volume]:
        """The volumes by name, in the order of their making; those too that cannot be opened."""
        return self._volumes

    def volume(self, name: str) -> Volume:
        """The volume `name`.  NotFound."""
        try:
            return self._volumes[name]
        except KeyError:
            raise NotFound(
                f"there is no volume {name!r} on it", path=self.address,
                hint=f"vdisk drive info {self.address} lists them",
            ) from None

    def space(self) -> lvm2.Space:
        """Bytes in all, and those that a volume can be given now."""
        with self._lock:
            return lvm2.space(self._group.vg, self._held())

    def logical_volume(self, disk: VolumeDisk) -> LogicalVolume:
        """The logical volume that is open as `disk`.  NotFound once it is removed."""
        found = next((lv for lv in self._group.vg.lvs if lv.id == disk.id), None)
        if found is None:
            raise NotFound("was removed", path=disk.address)
        return found

    def allocated_bytes(self, disk: VolumeDisk) -> int:
        """Bytes that the host has for the extents of an open volume."""
        return sum(
            extent.length
            for place, offset, length in self._places_of(lvm2.ranges_of(self.logical_volume(disk)))
            for extent in place.disk.map(offset, length)
            if extent.kind is not Kind.ZERO
        )

    # Opening and closing

    def open(self, name: str, options: OpenOptions = NO_OPTIONS) -> VolumeDisk:
        """Open a volume.  There is one open disk of it at a time: Busy.

        Raises NotFound, Unsupported for a kind of volume that is not mapped here or lies on
        drives that are not there, and what choosing a geometry raises.
        """
        with self._lock:
            volume = self.volume(name)
            address = f"{self.address}/{name}"
            if volume.problem is not None:
                raise Unsupported(volume.problem, path=address)
            if volume.lv.id in self._open:
                raise Busy("is open already", path=address)
            disk = self._open_disk(volume)
            self._open[disk.id] = disk
        try:
            settle_geometry(disk, options)
        except BaseException:
            disk.close()
            raise
        return disk

    def _open_disk(self, volume: Volume) -> VolumeDisk:
        vg, lv = self._group.vg, volume.lv
        facts = {"drive": vg.name, "volume_uuid": lv.id, "segments": len(lv.segments)}
        image = VolumeImage(VolumeMap(vg, lv), self.places, facts)
        why = volume.read_only
        if why is None and self.read_only:
            why = "is open read-only"
        return VolumeDisk(self, lv, image, read_only=why)

    def close(self) -> None:
        """The end of its use by whoever opened it; volumes that are open stay so."""
        self._in_use = False
        self._close_unused()

    def closed(self, disk: VolumeDisk) -> None:
        """`disk` is not used any more: what it held is given back."""
        if self._open.get(disk.id) is not disk:
            return
        with suppress(DiskError):  # It is free; that the host still has it is no loss.
            self.let_go(disk)
        with self._lock:
            del self._open[disk.id]
        self._close_unused()

    def _close_unused(self) -> None:
        if not self._in_use and not self._open and self._owned is not None:
            owned, self._owned = self._owned, None
            owned.close()

    def flush(self) -> None:
        """Make every write that has returned durable, of whatever volume."""
        for place in self.places.values():
            place.host.flush()

    # Changes

    def create(self, wanted: Sequence[NewVolume], advance: Advance = _nobody) -> None:
        """Make volumes, all in one commit or none; they read as zeros.

        Raises Exists and InvalidArgument, naming the one in question.
        """
        with self._changing():
            before = self._group.vg
            vg = lvm2.create(before, wanted, **_stamp(), forbidden=self._held())
            made = vg.lvs[len(before.lvs) :]
            self._blank((one for lv in made for one in lvm2.ranges_of(lv)), advance)
            self._commit(vg)

    def begin(self, name: str, options: OpenOptions = NO_OPTIONS) -> VolumeDisk:
        """Make an empty volume, which grows as it is written until `settle`; it is open.

        Raises what `create` and `open` raise.
        """
        with self._changing():
            self.create([NewVolume(name, 1)])
            disk = self.open(name, options)
            disk.growing = True
            disk.choice = None
            disk.carry_out(lambda: disk.image.plan_resize(0))
        return disk

    def remove(self, names: Iterable[str]) -> None:
        """Remove volumes, all in one commit.  NotFound, or Unsupported where LVM2 itself must."""
        with self._changing():
            gone = [self.volume(name).lv for name in names]
            self._commit(lvm2.remove(self._group.vg, [lv.name for lv in gone]))
            self._removed(gone)

    def rename(self, name: str, new_name: str, *, replace: bool = False) -> None:
        """Rename a volume; with `replace`, in place of one that has the new name, in one commit.

        Raises NotFound, Exists, InvalidArgument (no name for a volume) and Unsupported.
        """
        with self._changing():
            vg, gone = self._group.vg, []
            lv = self.volume(name).lv
            if replace and new_name in self._volumes and new_name != name:
                gone.append(self.volume(new_name).lv)
                vg = lvm2.remove(vg, [new_name])
            self._commit(lvm2.rename(vg, name, new_name))
            self._removed(gone)
            if lv.id in self._open:
                self._open[lv.id].address = f"{self.address}/{new_name}"

    def resize(self, disk: VolumeDisk, size: int) -> None:
        """Make an open volume `size` bytes, rounded up to whole extents.

        One that is growing shows `size` bytes exactly and has extents for more, as writes would
        otherwise be a commit each; `settle` ends that.
        """
        with self._changing():
            if not disk.growing:
                self._give(disk, size)
                disk.carry_out(lambda: disk.image.plan_resize(disk.image.capacity))
                return
            if size > disk.image.capacity:
                self._give_ahead(disk, size)
            elif size < disk.size:
                disk.discard(size, disk.size - size)  # To be zeros when it grows again.
            disk.carry_out(lambda: disk.image.plan_resize(size))

    def settle(self, disk: VolumeDisk) -> None:
        """A volume grows no more by being written: it keeps the extents that it shows."""
        with self._changing():
            disk.growing = False
            self.resize(disk, max(disk.size, 1))

    def keep_geometry(self, disk: VolumeDisk, geometry: Geometry | None) -> None:
        """Keep a geometry in the tags of an open volume, or take the tags away."""
        with self._changing():
            lv = self.logical_volume(disk)
            tags = with_geometry(lv.tags, geometry, None)
            if tags != lv.tags:
                self._commit(lvm2.set_tags(self._group.vg, lv.name, tags))

    def let_go(self, disk: VolumeDisk) -> None:
        """What `disk` gave up is read there no more: it goes back to the host and is free."""
        if disk.removed:
            empty = VolumeMap(self._group.vg, LogicalVolume(disk.address, disk.id, ()))
            disk.carry_out(lambda: disk.image.plan_map(empty, 0))
        with self._lock:
            held = list(disk.held)
        self._give_back(held)
        with self._lock:
            disk.held = [one for one in disk.held if one not in held]

    # How

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time; errors name the drive."""
        with self._lock:
            if self.read_only:
                raise ReadOnly("is open read-only", path=self.address)
            if self._broken is not None:
                raise NotPermitted(
                    f"is not changed any more, since a change failed midway: {self._broken}",
                    path=self.address, hint="close it and open it again",
                )
            problem = self._group.change_problem()
            if problem is not None:
                raise NotPermitted(problem, path=self.address)
            try:
                yield
            except DiskError as error:
                error.path = error.path or self.address  # The rules of LVM2 know no file.
                raise

    def _commit(self, vg: VolumeGroup) -> None:
        before = self._group
        if vg == before.vg:
            return
        commit = before.commit(vg, **_stamp())
        self._check_unchanged()
        prepared = commit.steps.index(Barrier()) + 1
        carry_out(commit.steps[:prepared], self.places)  # Nothing of this counts yet.
        try:
            carry_out(commit.steps[prepared:], self.places)
        except HostError as error:
            self._broken = error
            raise
        self._install(commit.group)

    def _check_unchanged(self) -> None:
        for pv in self._group.pvs:
            read = self.places[pv.label.pv_id].disk.read
            if not all(lvm2.is_unchanged(read, area) for area in pv.areas):
                raise Busy(
                    "was changed by another program since it was opened", path=self.address,
                    hint="close it and open it again",
                )

    def _give(self, disk: VolumeDisk, size: int) -> None:
        """Give or take extents, so that the volume has as many as `size` bytes need."""
        vg, lv = self._group.vg, self.logical_volume(disk)
        changed = lvm2.resize(vg, lv.name, size, forbidden=self._held())
        before, after = lvm2.ranges_of(lv), lvm2.ranges_of(changed.lv(lv.name))
        self._blank(lvm2.difference(after, before), _nobody)
        self._commit(changed)
        found = self.logical_volume(disk)
        volume_map = VolumeMap(self._group.vg, found)
        shown = min(disk.size, volume_map.size)
        disk.held += lvm2.difference(before, after)
        disk.carry_out(lambda: disk.image.plan_map(volume_map, shown))

    def _give_ahead(self, disk: VolumeDisk, size: int) -> None:
        capacity = disk.image.capacity
        ahead = min(2 * capacity, capacity + _AHEAD_BYTES_MAX)
        most = capacity + self.space().free
        self._give(disk, max(size, min(ahead, most)))

    def _removed(self, gone: Iterable[LogicalVolume]) -> None:
        for lv in gone:
            disk = self._open.get(lv.id)
            if disk is None:
                self._give_back(lvm2.ranges_of(lv))
            else:
                disk.removed = True
                disk.held += lvm2.ranges_of(lv)

    def _held(self) -> list[PvRange]:
        return [one for disk in self._open.values() for one in disk.held]

    def _blank(self, ranges: Iterable[PvRange], advance: Advance) -> None:
        """Make extents read as zeros, durably where they did not."""
        for place, offset, length in self._places_of(ranges):
            changed = False
            for at in range(offset, offset + length, _BLANK_BYTES):
                part = min(_BLANK_BYTES, offset + length - at)
                for extent in place.disk.map(at, part):
                    if extent.kind is not Kind.ZERO:
                        place.disk.discard(extent.guest_offset, extent.length)
                        changed = True
                advance(part)
            if changed:
                place.host.flush()

    def _give_back(self, ranges: Iterable[PvRange]) -> None:
        """Let the host have the space of extents that nobody needs any more."""
        for place, offset, length in self._places_of(ranges):
            try:
                place.give_back(offset, length)
            except DiskError as error:
                _log.warning("%s: the space of a volume is not given back: %s", self.address, error)

    def _places_of(self, ranges: Iterable[PvRange]) -> Iterator[tuple[Place, int, int]]:
        """(place, offset in its disk, length) of ranges of extents, in order, joined."""
        vg = self._group.vg
        pvs = {pv.key: pv for pv in vg.pvs}
        for one in lvm2.joined(ranges):
            pv = pvs[one.pv]
            start = pv.pe_start * SECTOR + one.first * vg.extent_bytes
            yield self.places[pv.id], start, one.count * vg.extent_bytes


class _Stamp(TypedDict):
    time: int
    host: str


def _stamp() -> _Stamp:
    """When and where a change is made, as LVM2 notes it."""
    return {"time": int(time.time()), "host": socket.gethostname()}
