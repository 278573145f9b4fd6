"""The table of internal snapshots: entries of different lengths, one after the other.

Source: QEMU, `docs/interop/qcow2.rst`, "Snapshots"; the limits are QEMU's (`block/qcow2.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from vdisk.errors import Corrupt
from vdisk.formats.base import Snapshot
from vdisk.formats.qcow2.header import L1_BYTES_MAX, Header
from vdisk.host import HostFile

TABLE_BYTES_MAX = 64 << 20
_EXTRA_BYTES_MAX = 1024
_FIXED = struct.Struct(">QIHHIIQII")
_EXTRA = struct.Struct(">QQQ")  # VM state, disk size, instruction count.
_NO_COUNT = (1 << 64) - 1
_EXTRA_BYTES_MIN = 16  # What version 3 requires.


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """One internal snapshot.

    `disk_size` is in bytes, `vm_state_size` too; `taken_ns` is in nanoseconds since 1970.  `raw`
    are the entry's bytes, kept as they are when the table is written again.
    """

    id: str
    name: str
    l1_offset: int
    l1_entries: int
    disk_size: int
    vm_state_size: int
    taken_ns: int
    raw: bytes = field(repr=False)

    @classmethod
    def new(
        cls, id: str, name: str, l1_offset: int, l1_entries: int, disk_size: int, taken_ns: int
    ) -> Self:
        """A snapshot of a disk without the state of a machine."""
        id_bytes, name_bytes = id.encode(), name.encode(errors="surrogateescape")
        seconds, nanoseconds = divmod(taken_ns, 10**9)
        extra = _EXTRA.pack(0, disk_size, _NO_COUNT)
        raw = _FIXED.pack(
            l1_offset, l1_entries, len(id_bytes), len(name_bytes), seconds & 0xFFFFFFFF,
            nanoseconds, 0, 0, len(extra),
        )  # fmt: skip
        raw += extra + id_bytes + name_bytes
        raw += bytes(-len(raw) % 8)
        return cls(id, name, l1_offset, l1_entries, disk_size, 0, taken_ns, raw)

    @property
    def snapshot(self) -> Snapshot:
        """What it is to whoever asks for the image's snapshots."""
        return Snapshot(
            self.id, self.name, self.disk_size, self.vm_state_size, self.taken_ns // 10**9
        )


class SnapshotTable:
    """The snapshots that the header names, read each time they are gone through."""

    def __init__(self, host: HostFile, header: Header) -> None:
        self._host = host
        self._header = header

    def __len__(self) -> int:
        return self._header.snapshots

    def __iter__(self) -> Iterator[SnapshotEntry]:
        """In the table's order.  Raises Corrupt for one that cannot be right, and HostError."""
        at = self._header.snapshots_offset
        limit = min(self._host.size(), at + TABLE_BYTES_MAX)
        for _ in range(len(self)):
            snapshot = self._read(at, limit)
            at += len(snapshot.raw)
            yield snapshot

    @property
    def bytes_used(self) -> int:
        """The table's length in bytes."""
        return sum(len(snapshot.raw) for snapshot in self)

    def _read(self, at: int, limit: int) -> SnapshotEntry:
        if at + _FIXED.size > limit:
            raise self._wrong("ends outside the file")
        fixed = self._host.read(at, _FIXED.size)
        (
            l1_offset, l1_entries, id_length, name_length, seconds, nanoseconds, _, state,
            extra_length,
        ) = _FIXED.unpack(fixed)
        if extra_length > _EXTRA_BYTES_MAX:
            raise self._wrong(f"has {extra_length} bytes of extra data")
        rest = extra_length + id_length + name_length
        rest += -(_FIXED.size + rest) % 8
        if at + _FIXED.size + rest > limit + 7:  # The last one's padding may be cut off.
            raise self._wrong("ends outside the file")
        raw = fixed + self._host.read(at + _FIXED.size, rest)
        names = raw[_FIXED.size + extra_length :]
        state, disk_size = self._sizes(raw, extra_length, state)
        self._check_l1(l1_offset, l1_entries)
        return SnapshotEntry(
            _text(names[:id_length]), _text(names[id_length : id_length + name_length]),
            l1_offset, l1_entries, disk_size, state, seconds * 10**9 + nanoseconds, raw,
        )

    def _sizes(self, raw: bytes, extra_length: int, state: int) -> tuple[int, int]:
        extra = raw[_FIXED.size : _FIXED.size + extra_length].ljust(_EXTRA.size, b"\0")
        long_state, disk_size, _ = _EXTRA.unpack_from(extra)
        if extra_length >= 8 and long_state:
            state = long_state
        if extra_length < _EXTRA_BYTES_MIN:
            disk_size = self._header.size
        return state, disk_size

    def _check_l1(self, offset: int, entries: int) -> None:
        size = self._header.cluster_size
        end = self._header.clusters(self._host.size()) * size
        if 8 * entries > L1_BYTES_MAX or offset % size or offset + 8 * entries > end:
            raise self._wrong(f"has an L1 table at {offset}, of {entries} entries")

    def _wrong(self, what: str) -> Corrupt:
        return Corrupt(f"an internal snapshot {what}", path=self._host.path)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
