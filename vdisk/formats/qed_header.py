"""The header of a QED image, little-endian.

Source: QEMU, `docs/interop/qed_spec.rst`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Self

from vdisk.errors import Corrupt, InvalidFormat, Unsupported
from vdisk.host import HostFile
from vdisk.units import SECTOR, SIZE_BYTES_MAX

HEADER_BYTES = 64
CLUSTER_BYTES_MIN = 1 << 12
CLUSTER_BYTES_MAX = 1 << 26
TABLE_CLUSTERS_MAX = 16
BACKING_NAME_BYTES_MAX = 1023

_FIELDS = struct.Struct("<4sIIIQQQQQII")
_MAGIC = b"QED\0"


class Feature(IntFlag):
    """What a program has to know of to use the image."""

    BACKING = 1
    """There is a backing file."""
    NEED_CHECK = 2
    """The image was not closed: entries may name what is not there."""
    BACKING_IS_RAW = 4
    """The backing file is raw, whatever it looks like."""


@dataclass(frozen=True, slots=True)
class QedHeader:
    """The fields of the header.

    `cluster`, `l1_offset` and `size` are bytes; `table` and `header` are the clusters that a table
    and the header take up.  `backing` is the backing file's name where there is one.
    """

    cluster: int
    table: int
    header: int
    features: int
    compat: int
    autoclear: int
    l1_offset: int
    size: int
    backing_offset: int = 0
    backing_length: int = 0
    backing: str | None = field(default=None, compare=False)

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The header of the image in `host`, every number in it checked against its limit.

        Raises InvalidFormat, Unsupported or Corrupt.
        """
        if host.size() < HEADER_BYTES:
            raise InvalidFormat("is too short for a QED image", path=host.path)
        magic, *numbers = _FIELDS.unpack(host.read(0, HEADER_BYTES))
        if magic != _MAGIC:
            raise InvalidFormat("is no QED image: its magic is wrong", path=host.path)
        header = cls(*numbers)
        unknown = header.features & ~sum(Feature)
        if unknown:
            raise Unsupported(f"needs the unknown QED features {unknown:#x}", path=host.path)
        header._check(host)
        if not header.features & Feature.BACKING:
            return header
        return replace(header, backing=header._backing(host))

    def _check(self, host: HostFile) -> None:
        cluster_is_possible = (
            CLUSTER_BYTES_MIN <= self.cluster <= CLUSTER_BYTES_MAX
            and not self.cluster & (self.cluster - 1)
        )
        table_is_possible = (
            1 <= self.table <= TABLE_CLUSTERS_MAX and not self.table & (self.table - 1)
        )
        checks = (
            (cluster_is_possible, f"clusters of {self.cluster} bytes"),
            (table_is_possible, f"tables of {self.table} clusters"),
            (
                self.header > 0 and self.header * self.cluster <= host.size() + self.cluster,
                f"{self.header} clusters for itself",
            ),
            (0 < self.size <= self.size_max and self.size % SECTOR == 0, f"{self.size} bytes"),
            (
                self.header * self.cluster <= self.l1_offset
                and self.l1_offset % max(self.cluster, 1) == 0
                and self.l1_offset + self.table_bytes <= host.size(),
                f"its L1 table at byte {self.l1_offset}",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the QED header says {what}", path=host.path)

    def _backing(self, host: HostFile) -> str:
        end = self.backing_offset + self.backing_length
        if not 0 < self.backing_length <= BACKING_NAME_BYTES_MAX or (
            end > min(self.header * self.cluster, host.size())
        ):
            raise Corrupt("the QED header has no room for the backing file's name",
                          path=host.path)  # fmt: skip
        return os.fsdecode(host.read(self.backing_offset, self.backing_length))

    @property
    def table_bytes(self) -> int:
        """The length of an L1 or L2 table in bytes."""
        return self.table * self.cluster

    @property
    def table_entries(self) -> int:
        """The entries of an L1 or L2 table."""
        return self.table_bytes // 8

    @property
    def size_max(self) -> int:
        """The largest disk whose clusters the L1 table can name, in bytes."""
        return min(self.table_entries**2 * self.cluster, SIZE_BYTES_MAX // SECTOR * SECTOR)

    def pack(self) -> bytes:
        """The header's fields, which lie in one sector."""
        return _FIELDS.pack(
            _MAGIC, self.cluster, self.table, self.header, self.features, self.compat,
            self.autoclear, self.l1_offset, self.size, self.backing_offset, self.backing_length,
        )
