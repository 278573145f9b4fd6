"""A volume group as values: its physical volumes, its logical volumes and their segments.

Every value is frozen; a change makes new ones (`change`).  `extra` holds the keys of the text that
are not understood here, and goes back into the text as it came.  It is never changed in place.

Units: `extent`, `first`, `start` and `count` are extents; `extent_size`, `pe_start`, `dev_size` and
`stripe_size` are sectors of 512 bytes, as in the text; names that end in `_bytes` are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vdisk.tables.lvm2.config import Section
from vdisk.units import SECTOR

STRIPED_TYPES = ("striped", "linear")
"""The types of a segment that lies on physical volumes directly; LVM2 writes the first for both."""


@dataclass(frozen=True, slots=True)
class PvRange:
    """`count` extents of the physical volume with the key `pv`, from extent `first`."""

    pv: str
    first: int
    count: int

    @property
    def end(self) -> int:
        """The extent after the last one."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Stripe:
    """Where a segment's stripe begins: extent `first` of the physical volume with the key `pv`."""

    pv: str
    first: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a logical volume's extents, `[start, start + count)`, and where they lie.

    For `STRIPED_TYPES`, `stripes` says where; with more than one, `stripe_size` sectors go to each
    in turn.  A segment of another type has none, and all it says is in `extra`.
    """

    start: int
    count: int
    type: str = "striped"
    stripes: tuple[Stripe, ...] = ()
    stripe_size: int = 0
    tags: tuple[str, ...] = ()
    extra: Section = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The extent after the last one."""
        return self.start + self.count

    def ranges(self) -> Iterator[PvRange]:
        """The extents that its stripes occupy, a range a stripe."""
        for stripe in self.stripes:
            yield PvRange(stripe.pv, stripe.first, self.count // len(self.stripes))


def _is_writable(status: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    """Where old versions of LVM2 must not write, newer ones say so as a flag."""
    return "WRITE" in status or "WRITE_LOCKED" in flags


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume.  `segments` are in order and cover it without a gap.

    `creation_time` is in seconds since 1970.  One that is not `visible` is a part of another.
    """

    name: str
    id: str
    segments: tuple[Segment, ...]
    status: tuple[str, ...] = ("READ", "WRITE", "VISIBLE")
    flags: tuple[str, ...] = ()
    creation_time: int | None = None
    creation_host: str | None = None
    tags: tuple[str, ...] = ()
    extra: Section = field(default_factory=dict)

    @property
    def extents(self) -> int:
        """Its size in extents."""
        return self.segments[-1].end if self.segments else 0

    @property
    def visible(self) -> bool:
        """Whether it is a volume of its own."""
        return "VISIBLE" in self.status

    @property
    def is_writable(self) -> bool:
        """Whether it may be written."""
        return _is_writable(self.status, self.flags)


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A physical volume: `pe_count` extents from sector `pe_start` of its drive.

    `key` is what the text's segments call it.
    """

    key: str
    id: str
    pe_start: int
    pe_count: int
    dev_size: int | None = None
    status: tuple[str, ...] = ("ALLOCATABLE",)
    flags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    extra: Section = field(default_factory=dict)

    @property
    def is_allocatable(self) -> bool:
        """Whether new volumes may be put on it."""
        return "ALLOCATABLE" in self.status and "MISSING" not in self.flags


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group.  `seqno` is that of its last commit; `max_lv` and `max_pv` 0 for no limit.

    `lvs` has all logical volumes, the hidden ones too, in the text's order.
    """

    name: str
    id: str
    seqno: int
    extent_size: int
    pvs: tuple[PhysicalVolume, ...]
    lvs: tuple[LogicalVolume, ...] = ()
    status: tuple[str, ...] = ("RESIZEABLE", "READ", "WRITE")
    flags: tuple[str, ...] = ()
    max_lv: int = 0
    max_pv: int = 0
    metadata_copies: int = 0
    tags: tuple[str, ...] = ()
    extra: Section = field(default_factory=dict)

    @property
    def extent_bytes(self) -> int:
        """The size of an extent in bytes."""
        return self.extent_size * SECTOR

    @property
    def is_writable(self) -> bool:
        """Whether it may be changed, and its volumes written."""
        return _is_writable(self.status, self.flags)

    def extents_of(self, size_bytes: int) -> int:
        """How many extents `size_bytes` bytes take, rounded up."""
        return -(-size_bytes // self.extent_bytes)

    def lv(self, name: str) -> LogicalVolume | None:
        """The logical volume `name`, hidden ones too; None if there is none."""
        return next((lv for lv in self.lvs if lv.name == name), None)
