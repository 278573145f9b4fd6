"""Writing a whole disk as a QCOW2 image of compressed clusters, from its start to its end.

Clusters of the file are given out one after the other; compressed data fills them byte by byte, as
QEMU does it.  Each L2 table comes behind what it names, each refcount block when nothing that it
counts changes any more.  The L1 table, for which there is room in front, and the header come last:
until they are there, it is no QCOW2 image.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace

from vdisk.codec import Codec, Deflate, Zstd
from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Piece
from vdisk.formats.packing import Packed, packed_units
from vdisk.formats.qcow2 import counts
from vdisk.formats.qcow2.create import new_header, room_for_counts
from vdisk.formats.qcow2.entry import ALL_SUBCLUSTERS, COPIED, Entries
from vdisk.formats.qcow2.header import Header
from vdisk.formats.table import big_endian
from vdisk.host import HostFile

_WINDOW_BITS = -12  # What every reader has room for; bare, with no header (docs/interop/qcow2.rst).


def write_compressed(creation: Creation, pieces: Iterator[Piece]) -> None:
    """Write all of a disk, as a `CompressedWriter` does.

    A cluster that does not get smaller is stored as it is.  Raises InvalidArgument for what such an
    image cannot be.
    """
    header = new_header(creation)
    path = creation.host.path
    if header.has_data_file:
        raise InvalidArgument("with a data file nothing is compressed", path=path)
    if creation.options["preallocation"] != "off":
        raise InvalidArgument("what is compressed cannot be allocated before", path=path)
    codec: Codec = Zstd() if header.compression else Deflate(_WINDOW_BITS)
    stream = _Stream(creation.host, header)
    for cluster in packed_units(pieces, header.cluster_size, codec.encode):
        stream.add(cluster)
    stream.end()


class _Stream:
    """An image that is being written.  `_given` is how many clusters of the file are given out."""

    def __init__(self, host: HostFile, header: Header) -> None:
        self._host = host
        self._size = header.cluster_size
        self._entries = Entries(header)
        self._header = replace(header, l1_offset=self._size)
        self._counts = _Counts(header)
        self._l1 = array("Q", bytes(8 * header.l1_entries))
        self._part = -1  # The L2 table that is being filled.
        self._l2 = array("Q")
        self._at = self._room_end = 0  # Where the next compressed data may go, and up to where.
        self._given = 0
        self._take(1 + header.clusters(8 * header.l1_entries))

    def add(self, cluster: Packed) -> None:
        """The next cluster of the disk."""
        words = self._header.entry_words
        part, index = divmod(cluster.offset // self._size, self._header.l2_entries)
        if part != self._part:
            self._finish_l2()
            self._part = part
            self._l2 = array("Q", bytes(self._size))
        if len(cluster.packed) < self._size:
            self._l2[words * index] = self._pack(cluster.packed)
        else:
            place = self._append(cluster.data)
            self._l2[words * index] = place | COPIED
            if self._header.extended:
                self._l2[words * index + 1] = ALL_SUBCLUSTERS
        self._write_blocks()

    def end(self) -> None:
        """All that is still missing, the header last."""
        self._finish_l2()
        self._write_blocks()
        missing, table = room_for_counts(
            self._header, self._given, self._host.path, written=len(self._counts.places)
        )
        first = self._take(missing + table)
        for place, (index, block) in enumerate(sorted(self._counts.open.items()), first):
            self._counts.places[index] = place * self._size
            self._host.write(place * self._size, self._counts.pack(block))
        places = big_endian(self._counts.placed())
        self._host.write((first + missing) * self._size, places.ljust(table * self._size, b"\0"))
        self._host.write(self._size, big_endian(self._l1[:]))
        self._host.truncate(self._given * self._size)
        header = replace(
            self._header,
            refcount_table_offset=(first + missing) * self._size, refcount_table_clusters=table,
        )
        self._host.write(0, header.first_cluster())

    def _pack(self, packed: bytes) -> int:
        """Place compressed data; the L2 entry for it."""
        length = len(packed)
        is_last = self._room_end == self._given * self._size
        room = self._room_end - self._at
        fits = room and (length <= room or is_last)
        if not fits or self._counts.is_full(self._at // self._size):
            self._at = self._take(1) * self._size
            self._room_end = self._at + self._size
        else:
            self._counts.add(self._at // self._size)
        place, self._at = self._at, self._at + length
        if self._at > self._room_end:  # On into the cluster behind, which is given out for it.
            self._take(1)
            self._room_end += self._size
        self._host.write(place, packed)
        return self._entries.packed_word(place, length)

    def _append(self, data: bytes) -> int:
        """Place a whole cluster; its host offset."""
        place = self._take(1) * self._size
        self._host.write(place, data)
        return place

    def _take(self, count: int) -> int:
        """Give out `count` clusters; the first one."""
        first, self._given = self._given, self._given + count
        for cluster in range(first, self._given):
            self._counts.add(cluster)
        return first

    def _finish_l2(self) -> None:
        if self._part >= 0:
            self._l1[self._part] = self._append(big_endian(self._l2)) | COPIED

    def _write_blocks(self) -> None:
        """Write the refcount blocks in which nothing changes any more."""
        per_block = self._counts.per_block
        for index in list(self._counts.open):
            if index in (self._at // self._size // per_block, self._given // per_block):
                continue
            place = self._take(1)
            self._counts.places[index] = place * self._size
            self._host.write(place * self._size, self._counts.pack(self._counts.open.pop(index)))


class _Counts:
    """Refcounts: the blocks that are `open`, by their numbers, and the `places` of the others."""

    def __init__(self, header: Header) -> None:
        self.per_block = header.counts_per_block
        self._order = header.refcount_order
        self._most = min((1 << (1 << self._order)) - 1, (1 << 63) - 1)
        self.open: dict[int, array[int]] = {}
        self.places: dict[int, int] = {}

    def add(self, cluster: int) -> None:
        """One more that is in that cluster."""
        index, at = divmod(cluster, self.per_block)
        block = self.open.get(index)
        if block is None:
            block = array(counts.code(self._order), [0]) * self.per_block
            self.open[index] = block
        block[at] += 1

    def is_full(self, cluster: int) -> bool:
        """Whether no more can be counted in that cluster, which is in an open block."""
        index, at = divmod(cluster, self.per_block)
        return self.open[index][at] >= self._most

    def pack(self, block: array[int]) -> bytes:
        """The block as it is in the file."""
        return counts.pack(block, self._order)

    def placed(self) -> array[int]:
        """Where each block is, in their order."""
        return array("Q", [self.places[index] for index in range(len(self.places))])
