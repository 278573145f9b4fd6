"""The bytes of an MBR's and an EBR's entries, with the C/H/S addresses that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.geometry import Geometry, cover, pack_lba
from vdisk.packed_chs import PACKED_CYLINDER_MAX, PACKED_HEAD_MAX, PACKED_SECTOR_MAX
from vdisk.partitioners import FDISK_HEADS, FDISK_SECTORS
from vdisk.partitioning.placing import Place
from vdisk.tables.entry import ENTRY_BYTES, MbrEntry, entry_offset, pack_entry
from vdisk.tables.partition import Partition
from vdisk.tables.source import MBR_BYTES

LINK_TYPE = 0x05
BOOT_CODE_BYTES = 440
_SIGNATURE = b"\x55\xaa"


@dataclass(frozen=True, slots=True)
class MbrAddresses:
    """C/H/S addresses in a geometry that an MBR can hold; `notes` say if it is not the disk's."""

    geometry: Geometry
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, geometry: Geometry) -> MbrAddresses:
        """Those of `geometry`; or, past 256 heads or 63 sectors, of fdisk's 255 and 63."""
        heads, sectors = geometry.heads, geometry.sectors_per_track
        if heads <= PACKED_HEAD_MAX + 1 and sectors <= PACKED_SECTOR_MAX:
            return cls(geometry)
        size, unit = geometry.size_bytes, geometry.sector_size
        other = cover(size, FDISK_HEADS, FDISK_SECTORS, unit)
        other = other or Geometry(1, FDISK_HEADS, FDISK_SECTORS, unit)
        return cls(other, (
            f"an MBR cannot hold the C/H/S addresses of {geometry}: it gets those of {other}, "
            "as fdisk would write",
        ))  # fmt: skip

    def entry(self, type_code: int, place: Place, base_lba: int) -> MbrEntry:
        """A partition at `place`, in a record whose starts are distances from `base_lba`."""
        return MbrEntry(
            boot_flag=0,
            start_chs=pack_lba(place.start, self.geometry),
            type=type_code,
            end_chs=pack_lba(place.end - 1, self.geometry),
            start=place.start - base_lba,
            sectors=place.sectors,
        )

    def link(self, place: Place, extended_lba: int) -> MbrEntry:
        """The link to the EBR of the logical partition at `place`: from there to its end."""
        assert place.record_lba is not None
        return self.entry(LINK_TYPE, Place(place.record_lba, place.end), extended_lba)

    def is_past_reach(self, lba: int) -> bool:
        """Whether `lba` is past the last cylinder that an MBR can name."""
        return lba // self.geometry.sectors_per_cylinder > PACKED_CYLINDER_MAX

    def are_those_of(self, partition: Partition) -> bool:
        """Whether an MBR's partition has the addresses that this geometry gives it."""
        if partition.sectors == 0:
            return True
        ends = (partition.start_lba, partition.end_lba - 1)
        ours = [pack_lba(lba, self.geometry) for lba in ends]
        return ours == [partition.start_chs, partition.end_chs]


@dataclass(frozen=True, slots=True)
class EbrWriter:
    """New extended boot records, padded with zeros to whole sectors."""

    addresses: MbrAddresses
    sector_size: int

    def empty(self) -> bytes:
        """The first record of an extended partition that holds nothing."""
        return self.of(None)

    def of(self, entry: MbrEntry | None) -> bytes:
        """The record of one logical partition, which leads to no other."""
        sector = bytes(MBR_BYTES - len(_SIGNATURE)) + _SIGNATURE
        sector = sector if entry is None else with_entry(sector, 0, entry)
        return sector.ljust(max(MBR_BYTES, self.sector_size), b"\0")


def with_entry(sector: bytes, index: int, entry: MbrEntry | None) -> bytes:
    """`sector`, a record, with entry `index` put in; or, for None, with its 16 bytes zero."""
    offset = entry_offset(index)
    packed = bytes(ENTRY_BYTES) if entry is None else pack_entry(entry)
    return sector[:offset] + packed + sector[offset + ENTRY_BYTES :]


def new_mbr(old: bytes, signature: int, *, keep_boot: bool) -> bytes:
    """An MBR without partitions, with the disk signature `signature`; the boot code is `old`'s."""
    code = old[:BOOT_CODE_BYTES] if keep_boot else bytes(BOOT_CODE_BYTES)
    rest = MBR_BYTES - BOOT_CODE_BYTES - 4 - len(_SIGNATURE)
    return code + signature.to_bytes(4, "little") + bytes(rest) + _SIGNATURE
