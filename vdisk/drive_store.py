"""A drive as a store: its volumes are the disks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vdisk.create import like
from vdisk.disk import Disk
from vdisk.disk_geometry import refit
from vdisk.drive import Drive
from vdisk.errors import HostError, NotFound
from vdisk.geometry import Geometry
from vdisk.image_disk import ImageDisk
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.store import Space, Store
from vdisk.tables.lvm2 import NewVolume, Volume, with_geometry
from vdisk.transfer import copy_disk
from vdisk.volume import VolumeDisk


class DriveStore(Store):
    """The volumes of an open drive, which is closed with the store.

    Every disk that a store opens is one of its volumes (`VolumeDisk`).
    """

    def __init__(self, drive: Drive, options: OpenOptions = NO_OPTIONS) -> None:
        self.drive = drive
        self.source = Path(drive.address)
        self.writable = not drive.read_only
        self._options = options
        self._named: tuple[Mapping[str, Volume], dict[str, Path]] | None = None

    def names(self) -> dict[str, Path]:
        volumes = self.drive.volumes()  # Another mapping after each change.
        if self._named is None or self._named[0] is not volumes:
            self._named = volumes, {name: self.source / name for name in volumes}
        return self._named[1]

    def version(self) -> object:
        return self.drive.group.vg.seqno

    def identity(self, path: Path) -> object:
        return self.drive.volume(path.name).lv.id

    def open(self, name: str) -> ImageDisk:
        return self.drive.open(name, self._options)

    def keep(self, disk: ImageDisk) -> str | None:
        return None  # A volume's format is its drive's.

    def create(self, name: str, mode: int) -> tuple[Path, ImageDisk]:
        self._check(name)
        # A geometry that was given cannot fit yet: the disk is empty and is to grow.
        disk = self.drive.begin(name, replace(self._options, chs=None, profile=None))
        return self.source / name, disk

    def finish(self, disk: ImageDisk) -> None:
        self.drive.settle(_volume(disk))
        self.idle(disk)
        refit(disk)

    def remove(self, name: str) -> None:
        self.remove_all([name])

    def remove_all(self, names: Sequence[str]) -> None:
        for name in names:
            self._check(name)
        self.drive.remove(names)

    def rename(self, old: str, new: str) -> Path:
        self._check(new)
        self.drive.rename(old, new, replace=True)
        return self.source / new

    def copy(self, source: Disk, name: str, advance: Callable[[int], None]) -> None:
        self._check(name)
        new = like(source)
        geometry = new.geometry if new.geometry_given else None
        self.drive.create([new_volume(name, new.size_bytes, geometry, source.sector_size)])
        try:
            with self.drive.open(name) as disk:
                copy_disk(source, disk, advance)
                disk.flush()
        except BaseException:
            self.drive.remove([name])
            raise

    def idle(self, disk: ImageDisk) -> None:
        self.drive.let_go(_volume(disk))

    def stat(self) -> os.stat_result:
        hosts = (host for place in self.drive.places.values() for host in place.disk.hosts())
        host = next(hosts, None)
        if host is None:
            raise NotFound("has no host file", path=self.source)
        try:
            return host.stat()
        except OSError as error:
            raise HostError.of(error, "look at", self.source) from error

    def space(self) -> Space:
        space = self.drive.space()
        return Space(space.total, space.free, space.free)

    def close(self) -> None:
        self.drive.close()


def new_volume(
    name: str, size_bytes: int, geometry: Geometry | None, sector_size: int
) -> NewVolume:
    """A volume to be made, with what is to be kept of its geometry in its tags."""
    kept = None if sector_size == 512 and geometry is None else sector_size
    return NewVolume(name, size_bytes, with_geometry((), geometry, kept))


def _volume(disk: ImageDisk) -> VolumeDisk:
    assert isinstance(disk, VolumeDisk), "a disk of another store"
    return disk
