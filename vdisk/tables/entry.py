"""The 16-byte entry that an MBR and an extended boot record are made of."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.tables.partition_types import EXTENDED_TYPES

_ENTRIES_OFFSET = 446
_ENTRY = struct.Struct("<B3sB3sII")
BOOTABLE = 0x80
"""The boot flag of a partition that is started from; 0 is that of any other."""

ENTRY_BYTES = _ENTRY.size


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """An entry as it is stored; `start` counts sectors from wherever its record says it does."""

    boot_flag: int
    start_chs: bytes
    type: int
    end_chs: bytes
    start: int
    sectors: int

    @property
    def is_used(self) -> bool:
        """Whether anything is in this slot: the kernel looks at the size, sfdisk at the type."""
        return self.type != 0 or self.sectors != 0

    @property
    def is_extended(self) -> bool:
        """Whether it holds logical partitions, or links to the next record of their chain."""
        return self.type in EXTENDED_TYPES

    @property
    def bootable(self) -> bool:
        """Whether it carries the active flag, 0x80."""
        return self.boot_flag == BOOTABLE

    def uuid(self, signature: int, number: int) -> str:
        """Its PARTUUID, as libblkid forms it; "" on a disk without a signature."""
        return f"{signature:08x}-{number:02x}" if signature else ""


def has_signature(sector: bytes) -> bool:
    """Whether bytes 510 and 511 are 55 AA."""
    return sector[510:512] == b"\x55\xaa"


def unpack_entries(sector: bytes) -> tuple[MbrEntry, ...]:
    """The four entries of a 512-byte record."""
    return tuple(
        MbrEntry(*_ENTRY.unpack_from(sector, _ENTRIES_OFFSET + index * _ENTRY.size))
        for index in range(4)
    )


def entry_offset(index: int) -> int:
    """Where in a record entry `index`, 0 to 3, begins."""
    return _ENTRIES_OFFSET + index * ENTRY_BYTES


def pack_entry(entry: MbrEntry) -> bytes:
    """The 16 bytes of `entry`."""
    return _ENTRY.pack(
        entry.boot_flag, entry.start_chs, entry.type, entry.end_chs, entry.start, entry.sectors
    )
