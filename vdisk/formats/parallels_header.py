"""The header of a Parallels expandable image, little-endian, version 2.

Source: QEMU, `docs/interop/parallels.rst`, "Header".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Self

from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.units import SECTOR, SIZE_BYTES_MAX

BAT_OFFSET = 64
"""Where the table begins: directly behind the header."""
ENTRIES_MAX = 1 << 26
"""64 TiB in clusters of 1 MiB."""
CLUSTER_SECTORS_MAX = 1 << 17
"""64 MiB.  Parallels makes 2048 sectors, older versions 63, 504 and 512."""

_FIELDS = struct.Struct("<16sIIIIIQIIIQ")
_MAGIC = b"WithoutFreeSpace"
_MAGIC_CLUSTERS = b"WithouFreSpacExt"  # Whose table counts clusters, not sectors.
_VERSION = 2
_IN_USE, _CLOSED, _OLD = 0x746F6E59, 0x312E3276, 0
_EMPTY = 1
_USUAL_SECTORS_PER_TRACK = (32, 63)


@dataclass(frozen=True, slots=True)
class ParallelsHeader:
    """The fields of the header.

    `sectors` and `entries` are of the disk and of the table; `cluster` and `data`, the length of a
    cluster and where the first one can be, are in sectors.
    """

    heads: int
    cylinders: int
    cluster: int
    entries: int
    sectors: int
    in_use: bool
    data: int
    extension: int
    counts_clusters: bool
    flags: int = 0

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The header of the image in `host`, every number in it checked against its limit.

        Raises InvalidFormat, Unsupported or Corrupt.
        """
        if host.size() < BAT_OFFSET:
            raise InvalidFormat("is too short for a Parallels image", path=host.path)
        (magic, version, heads, cylinders, cluster, entries, sectors, in_use, data, flags,
         extension) = _FIELDS.unpack(host.read(0, BAT_OFFSET))  # fmt: skip
        if magic not in (_MAGIC, _MAGIC_CLUSTERS):
            raise InvalidFormat("is no Parallels image: its magic is wrong", path=host.path)
        if version != _VERSION:
            raise Unsupported(f"is a Parallels image of version {version}", path=host.path)
        if flags & _EMPTY:
            raise Unsupported("is marked as empty, whatever its table says", path=host.path)
        if in_use not in (_IN_USE, _CLOSED, _OLD):
            raise Corrupt(f"the Parallels header says {in_use:#x} of its use", path=host.path)
        counts_clusters = magic == _MAGIC_CLUSTERS
        if not counts_clusters:
            sectors &= 0xFFFFFFFF
        if not data and not counts_clusters:
            data = -(-(BAT_OFFSET + 4 * entries) // SECTOR)
        header = cls(heads, cylinders, cluster, entries, sectors, in_use == _IN_USE, data,
                     extension, counts_clusters, flags)  # fmt: skip
        header._check(host)
        return header

    def _check(self, host: HostFile) -> None:
        checks = (
            (0 < self.cluster <= CLUSTER_SECTORS_MAX, f"clusters of {self.cluster} sectors"),
            (0 < self.entries <= ENTRIES_MAX, f"{self.entries} clusters"),
            (
                0 < self.sectors <= self.entries * self.cluster and self.size <= SIZE_BYTES_MAX,
                f"{self.sectors} sectors in {self.entries} clusters",
            ),
            (
                BAT_OFFSET + 4 * self.entries <= self.data * SECTOR
                and (not self.counts_clusters or self.data % max(self.cluster, 1) == 0),
                f"its clusters from sector {self.data} on",
            ),
            (
                BAT_OFFSET + 4 * self.entries <= host.size(),
                "a table that ends past the end of the file",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the Parallels header says {what}", path=host.path)

    @property
    def size(self) -> int:
        """The disk's size in bytes."""
        return self.sectors * SECTOR

    @property
    def sectors_per_track(self) -> int:
        """Which the header does not say: what the others leave, a usual number if it fits."""
        tracks = self.heads * self.cylinders
        if tracks == 0:
            return 0
        for usual in _USUAL_SECTORS_PER_TRACK:
            if self.cylinders == self.sectors // (self.heads * usual):
                return usual
        return self.sectors // tracks

    @property
    def geometry(self) -> Geometry | None:
        """The geometry, None where it makes no sense."""
        try:
            return Geometry(self.cylinders, self.heads, self.sectors_per_track)
        except InvalidArgument:
            return None

    def resized(self, size: int) -> ParallelsHeader:
        """The header for a disk of `size` bytes, with as many cylinders as there are then."""
        sectors, per_cylinder = size // SECTOR, self.heads * self.sectors_per_track
        return replace(
            self, sectors=sectors, entries=-(-sectors // self.cluster),
            cylinders=sectors // per_cylinder if per_cylinder else self.cylinders,
        )

    def pack(self) -> bytes:
        """The header's bytes, which lie in one sector."""
        return _FIELDS.pack(
            _MAGIC_CLUSTERS if self.counts_clusters else _MAGIC, _VERSION, self.heads,
            self.cylinders, self.cluster, self.entries, self.sectors,
            _IN_USE if self.in_use else _CLOSED, self.data, self.flags, self.extension,
        )
