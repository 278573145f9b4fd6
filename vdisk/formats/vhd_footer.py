"""The footer of a VHD image, big-endian, and which of its copies is believed.

Every image ends with one; a dynamic or differencing image has a copy at its beginning as well.
Very old programs wrote the last 511 of its 512 bytes only.

A tail that says "fixed" is believed whatever the file begins with, for that is the guest's to
write.  Otherwise the copy at the beginning is: it never moves, and so is never half of an old and
half of a new one, as the tail may be after a loss of power.

Sources: "Virtual Hard Disk Image Format Specification" 1.0, "Hard Disk Footer Format"; QEMU,
`block/vpc.c`; libvhdi's documentation.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self
from uuid import UUID, uuid4

from vdisk.errors import Corrupt, DiskError, InvalidArgument, InvalidFormat, Unsupported
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.image_geometry import VhdFooter, VhdSizeRule, vhd_virtual_size
from vdisk.translation import Counts
from vdisk.units import SECTOR

FOOTER_BYTES = 512
FOOTER_BYTES_OLD = 511
COOKIE = b"conectix"
_VERSION = 0x00010000
_FIXED_OFFSET = (1 << 64) - 1
_EPOCH = 946684800  # 2000-01-01 00:00 UTC, in Unix seconds.
# At 0: cookie, features, version, data offset, time, creator, its version, host, original size,
# current size, C/H/S, type, checksum, UUID, saved state.
_FIELDS = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_CHECKSUM_AT = 64
_FEATURES = 2  # "Reserved", which is always set.

CREATOR = b"vdsk"
CREATOR_BY_CURRENT_SIZE = b"qem2"
"""The creator whose images are as large as their current size, to every version of QEMU."""
CYLINDERS_MAX, HEADS_MAX, SECTORS_PER_TRACK_MAX = 65535, 255, 255


class VhdType(IntEnum):
    """How the disk's blocks lie in the file."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


def checksum(data: bytes, at: int) -> int:
    """The ones' complement of the sum of all bytes but the four of the checksum itself, at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def vhd_time(unix_seconds: float) -> int:
    """A time as VHD headers hold it: seconds since 2000, 0 for any before."""
    return max(0, min(int(unix_seconds) - _EPOCH, 0xFFFFFFFF))


@dataclass(frozen=True, slots=True)
class Footer:
    """The fields of a footer.  Sizes and `data_offset` are bytes.

    `raw` are the 512 bytes it was read from: what is not a field here is kept as it was.
    """

    type: VhdType
    data_offset: int
    current_size: int
    counts: Counts
    creator: bytes = CREATOR
    uuid: UUID = field(default_factory=uuid4)
    timestamp: int = field(default_factory=lambda: vhd_time(time.time()))
    saved_state: bool = False
    original_size: int = 0
    raw: bytes = field(default=bytes(FOOTER_BYTES), repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """The footer in 512 or 511 bytes.  Raises InvalidFormat, Corrupt or Unsupported."""
        raw = raw.ljust(FOOTER_BYTES, b"\0")
        fields = _FIELDS.unpack_from(raw)
        cookie, _, version, data_offset, timestamp, creator = fields[:6]
        if cookie != COOKIE:
            raise InvalidFormat("is no VHD image: it has no footer")
        if fields[14] != checksum(raw, _CHECKSUM_AT):
            raise Corrupt("the checksum of its footer is wrong")
        if version >> 16 != _VERSION >> 16:
            raise Unsupported(f"is a VHD image of version {version >> 16}.{version & 0xFFFF}")
        if fields[13] not in list(VhdType):
            raise Unsupported(f"is a VHD image of type {fields[13]}")
        return cls(
            VhdType(fields[13]), data_offset, fields[9], Counts(*fields[10:13]), creator,
            UUID(bytes=fields[15]), timestamp, bool(fields[16]), fields[8], raw,
        )

    def pack(self) -> bytes:
        """The footer's 512 bytes: one sector, which a disk writes wholly or not at all."""
        raw = bytearray(self.raw)
        old = _FIELDS.unpack_from(raw)
        features, version, made_by, host = old[1], old[2], old[6], old[7]
        if not version:  # A new one.
            version, made_by, host = _VERSION, _VERSION, b"Wi2k"
        data_offset = _FIXED_OFFSET if self.type is VhdType.FIXED else self.data_offset
        _FIELDS.pack_into(
            raw, 0, COOKIE, features | _FEATURES, version, data_offset, self.timestamp,
            self.creator, made_by, host, self.original_size, self.current_size, *self.counts,
            self.type, 0, self.uuid.bytes, self.saved_state,
        )
        struct.pack_into(">I", raw, _CHECKSUM_AT, checksum(bytes(raw), _CHECKSUM_AT))
        return bytes(raw)

    # The two sizes

    @property
    def geometry(self) -> Geometry | None:
        """The geometry it stores, None where that is none."""
        return self.counts.geometry()

    @property
    def chs_size(self) -> int:
        """The disk's size by the geometry, in bytes; 0 where there is none."""
        cylinders, heads, sectors = self.counts
        return cylinders * heads * sectors * SECTOR

    def size(self, room: int, rule: str | None = None) -> tuple[int, str]:
        """The disk's size in bytes, and why it is that.

        `room` is how many bytes there can be, by the file or the block table.  `rule` is "chs" or
        "current" where the user says which of the two it is; else the creator tells, as QEMU from
        10.0 on has it, unless there is no room for that size and there is for the other one.
        Raises Corrupt where there is not.
        """
        sizes = {"chs": self.chs_size, "current": self.current_size // SECTOR * SECTOR}
        names = {"chs": "the geometry", "current": "the current size"}
        if rule is not None:
            chosen, why = rule, "as it was asked for"
        else:
            told = vhd_virtual_size(self._said, VhdSizeRule.QEMU_10)
            chosen = "current" if told == self.current_size else "chs"
            why = f"the rule for creator {self.creator.decode('latin-1').strip(chr(0))!r}"
            if not 0 < sizes[chosen] <= room:
                chosen, why = "chs" if chosen == "current" else "current", "the other has no room"
        if not 0 < sizes[chosen] <= room:
            raise Corrupt(
                f"the footer says {sizes[chosen]} bytes by {names[chosen]}, "
                f"and the file has room for {room}"
            )
        if sizes["chs"] == sizes["current"]:
            return sizes[chosen], "the geometry and the current size agree"
        return sizes[chosen], f"{names[chosen]} ({why})"

    def sized(self, size: int, geometry: Geometry) -> Footer:
        """This footer for a disk of `size` bytes with that geometry, which every reader believes.

        Where the geometry is that of a smaller disk, the creator has to be one by whose images the
        current size is believed.  Raises InvalidArgument where the fields do not hold `geometry`.
        """
        counts = Counts(geometry.cylinders, geometry.heads, geometry.sectors_per_track)
        if (
            geometry.sector_size != SECTOR or geometry.cylinders > CYLINDERS_MAX
            or geometry.heads > HEADS_MAX or geometry.sectors_per_track > SECTORS_PER_TRACK_MAX
        ):
            raise InvalidArgument(
                f"a VHD footer has no room for the geometry {geometry} "
                f"in sectors of {geometry.sector_size} bytes",
                hint=f"at most {CYLINDERS_MAX}/{HEADS_MAX}/{SECTORS_PER_TRACK_MAX}, 512 bytes",
            )
        new = replace(self, current_size=size, counts=counts)
        if size != self.current_size or not self.original_size:
            new = replace(new, original_size=size)  # Which libvhdi takes for the disk's size.
        if all(vhd_virtual_size(new._said, rule) == size for rule in VhdSizeRule):
            return new
        return replace(new, creator=CREATOR_BY_CURRENT_SIZE)

    @property
    def _said(self) -> VhdFooter:
        return VhdFooter(self.counts, self.current_size, self.creator)


@dataclass(frozen=True, slots=True)
class Footers:
    """The copies of the footer in a file: the one believed, and which of them are as it is.

    `tail_offset` is where the tail begins in bytes, None where there is none.
    """

    footer: Footer
    tail_offset: int | None
    head_is_good: bool
    tail_is_good: bool

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """Look at all copies.  Raises what `Footer.parse` does where none can be believed."""
        size = host.size()
        tail_offset, tail, failure = None, None, None
        for length in (FOOTER_BYTES, FOOTER_BYTES_OLD):
            if size >= length and host.read(size - length, len(COOKIE)) == COOKIE:
                tail_offset = size - length
                tail, failure = _parsed(host.read(tail_offset, length))
                break
        if tail is not None and tail.type is VhdType.FIXED:
            return cls(tail, tail_offset, True, True)
        head = None
        if size >= FOOTER_BYTES:
            head, why = _parsed(host.read(0, FOOTER_BYTES))
            failure = failure or why
        if head is not None and head.type is VhdType.FIXED:
            head, failure = None, failure or InvalidFormat("is no VHD image: its footer is missing")
        believed = head or tail
        if believed is None:
            error = failure or InvalidFormat("is no VHD image: it is too short")
            error.path = str(host.path)
            raise error
        packed = believed.raw
        return cls(
            believed, tail_offset, head is not None, tail is not None and tail.raw == packed
        )


def _parsed(raw: bytes) -> tuple[Footer | None, DiskError | None]:
    try:
        return Footer.parse(raw), None
    except DiskError as error:
        return None, error
