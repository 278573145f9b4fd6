"""The log of a VHDX image, written: no table changes before the log has the change.

The first entry comes under a new GUID, which the headers get only when it is durable; at each flush
they get none again, when everything is.  So the log is either whole or not looked at.

An entry counts until what it describes is durable in its place, which it is after the next
barrier: then the ring is empty again.

Source: [MS-VHDX] 2.3, "Log"; QEMU, `block/vhdx-log.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from uuid import UUID, uuid4

from vdisk.formats.vhdx_header import NO_GUID, Header, Headers, with_crc32c
from vdisk.formats.vhdx_log import (
    DATA_DESCRIPTOR,
    DATA_SECTOR,
    ENTRY_HEAD,
    SECTOR_BYTES,
    descriptor_sectors,
)
from vdisk.host import HostFile
from vdisk.plan import Barrier, Put, Step
from vdisk.units import MIB

_SECTORS_AT_ONCE = 64  # Data sectors of one entry: with its head a quarter of the smallest log.
_DESCRIPTORS_AT = 64


@dataclass(frozen=True, slots=True)
class _Ring:
    """Where the next entry goes, how much before that still counts, and its number."""

    guid: UUID = NO_GUID
    write: int = 0
    used: int = 0
    sequence: int = 1


class Journal:
    """The log of one open image, and its headers, which say whether it counts.

    A plan is made by `logged` or `ended`, whose steps are made as they are carried out; `done` of
    the plan calls `commit` with what they came to.
    """

    def __init__(self, host: HostFile, headers: Headers) -> None:
        self.host = host
        self.headers = headers
        self.flushed = host.size()  # The file is at least so large whatever happens.
        self._ring = _Ring()
        self._next = _Ring()
        self._next_headers = headers

    @property
    def is_begun(self) -> bool:
        """Whether the headers say that the log counts."""
        return self.headers.current.log_guid != NO_GUID

    def logged(self, puts: Iterable[Put], last: Callable[[], int]) -> Iterator[Step]:
        """The steps that make these changes to tables, each in the log before it is in its place.

        `last` says how large the file is by then, in bytes.
        """
        self._next, self._next_headers = self._ring, self.headers
        pending = iter(puts)
        for batch in iter(lambda: _batch(pending), []):
            yield from self._entry(batch, last())
            yield from batch

    def ended(self, header: Header | None = None, *, then: bool = False) -> Iterator[Step]:
        """The steps after which the log does not count; all before them is durable then.

        `header` has what changes in the header besides that.  With `then` they come after those of
        `logged` in the same plan.
        """
        if not then:
            self._next_headers = self.headers
        self._next = _Ring(sequence=self._ring.sequence)
        yield Barrier((self.host,))
        current = header or self._next_headers.current
        yield from self._header_puts(replace(current, log_guid=NO_GUID))

    def commit(self) -> None:
        """What the last steps came to holds."""
        self._ring, self.headers = self._next, self._next_headers

    def settled(self) -> None:
        """All that was written is durable: no entry counts any more."""
        self._ring = replace(self._ring, used=0)
        self.flushed = self.host.size()

    def _header_puts(self, header: Header) -> tuple[Put, Put]:
        new = self._next_headers.updated(header)
        puts = self._next_headers.puts(self.host, new)
        self._next_headers = new
        return puts

    def _entry(self, puts: list[Put], last: int) -> Iterator[Step]:
        """The steps that put an entry for these changes into the log."""
        ring = self._next
        guid = ring.guid if ring.guid != NO_GUID else uuid4()
        sectors = _sectors(self.host, puts)
        length = (descriptor_sectors(len(sectors)) + len(sectors)) * SECTOR_BYTES
        if ring.used + length > self._log_length:
            yield Barrier((self.host,))
            ring = replace(ring, used=0)
        entry = self._packed(ring, guid, sectors, length, last)
        yield from self._ring_puts(ring.write, entry)
        if ring.guid == NO_GUID:
            yield from self._header_puts(replace(self._next_headers.current, log_guid=guid))
        self._next = _Ring(
            guid, (ring.write + length) % self._log_length, ring.used + length, ring.sequence + 1
        )

    @property
    def _log_length(self) -> int:
        return self.headers.current.log_length

    def _ring_puts(self, position: int, entry: bytes) -> Iterator[Put]:
        """An entry may go round the end of the ring."""
        start, split = self.headers.current.log_offset, self._log_length - position
        for at, part in ((position, entry[:split]), (0, entry[split:])):
            if part:
                before = self.host.read(start + at, len(part))
                yield Put(self.host, start + at, part, sync=True, before=before)

    def _packed(
        self, ring: _Ring, guid: UUID, sectors: dict[int, bytes], length: int, last: int
    ) -> bytes:
        raw = bytearray(length)
        tail = (ring.write - ring.used) % self._log_length
        ENTRY_HEAD.pack_into(
            raw, 0, b"loge", 0, length, tail, ring.sequence, len(sectors), 0, guid.bytes_le,
            self.flushed // MIB * MIB, -(-last // MIB) * MIB,
        )
        at = descriptor_sectors(len(sectors)) * SECTOR_BYTES
        for number, (offset, data) in enumerate(sectors.items()):
            DATA_DESCRIPTOR.pack_into(
                raw, _DESCRIPTORS_AT + number * DATA_DESCRIPTOR.size,
                b"desc", data[-4:], data[:8], offset, ring.sequence,
            )
            DATA_SECTOR.pack_into(
                raw, at, b"data", ring.sequence >> 32, data[8:-4], ring.sequence & 0xFFFFFFFF
            )
            at += SECTOR_BYTES
        return with_crc32c(raw)


def _batch(puts: Iterator[Put]) -> list[Put]:
    """As many of the next changes as one entry describes; none at the end."""
    found: list[Put] = []
    sectors = 0
    for put in islice(puts, _SECTORS_AT_ONCE):
        found.append(put)
        sectors += len(put.data) // SECTOR_BYTES + 2
        if sectors >= _SECTORS_AT_ONCE // 2:
            break
    return found


def _sectors(host: HostFile, puts: list[Put]) -> dict[int, bytes]:
    """The whole 4 KiB sectors that these changes lie in, as they will be, by offset."""
    found: dict[int, bytearray] = {}
    for put in puts:
        end = put.host_offset + len(put.data)
        for at in range(put.host_offset // SECTOR_BYTES * SECTOR_BYTES, end, SECTOR_BYTES):
            sector = found.get(at)
            if sector is None:
                sector = found[at] = bytearray(host.read(at, SECTOR_BYTES))
            low, high = max(at, put.host_offset), min(at + SECTOR_BYTES, end)
            sector[low - at : high - at] = put.data[low - put.host_offset : high - put.host_offset]
    return {at: bytes(sector) for at, sector in sorted(found.items())}
