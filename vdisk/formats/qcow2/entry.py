"""An L2 entry: what a guest cluster maps to, in words on disk and as a value.

A standard entry is one word, an extended one two, of which the second has two bits for each of 32
subclusters.  Here both are the same: a cluster of `subclusters` parts (1 or 32), each allocated,
zeros, or neither.

Source: QEMU, `docs/interop/qcow2.rst`, "Cluster mapping table" and "Extended L2 entries".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from vdisk.errors import Corrupt, InvalidArgument
from vdisk.formats.qcow2.header import SUBCLUSTERS, Header

COPIED = 1 << 63
"""The refcount is exactly one, so that what the entry names may be written in place."""
COMPRESSED = 1 << 62
ZERO = 1
OFFSET = ((1 << 56) - 1) & ~0x1FF
_SECTOR = 512
_RESERVED = ((1 << 62) - 1) & ~OFFSET & ~ZERO
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1


@dataclass(frozen=True, slots=True)
class Packed:
    """Compressed data: `length` bytes at `offset` of the host hold it, perhaps with more behind."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What a cluster maps to.

    `place` is its host offset, None where it has none.  `owned` says that nobody else has it, so
    that it may be written in place.  Bit n of `allocated` and of `zeros` is about part n; a part
    with neither is the parent's.  `packed` is set, and nothing else, where it is compressed.
    """

    place: int | None = None
    owned: bool = False
    allocated: int = 0
    zeros: int = 0
    packed: Packed | None = None


NOTHING = Entry()


class Entries:
    """Reads and writes the entries of one image: its header says how they look."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._extended = header.extended
        self._alignment = header.cluster_size - 1
        self._sectors_shift = 62 - (header.cluster_bits - 8)
        self.all_parts = ALL_SUBCLUSTERS if header.extended else 1

    def read(self, word: int, bitmap: int = 0) -> Entry:
        """The entry of these words.  Corrupt where they cannot be right."""
        if word & COMPRESSED:
            if self._header.has_data_file:
                raise Corrupt("a compressed cluster, where clusters lie in another file")
            return Entry(packed=self.packed(word))
        place, owned = self._place(word)
        if not self._extended:
            return self._standard(word, place, owned)
        if word & ZERO:
            raise Corrupt(f"an L2 entry {word:#x} with a bit that is reserved")
        allocated, zeros = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
        if allocated & zeros or (allocated and place is None):
            raise Corrupt(f"an L2 entry whose subclusters {bitmap:#x} contradict each other")
        return Entry(place, owned, allocated, zeros)

    def _standard(self, word: int, place: int | None, owned: bool) -> Entry:
        if word & ZERO:
            if not self._header.has_zero_flag:
                raise Corrupt("a zero cluster in an image of version 2, which has none")
            return Entry(place, owned, 0, 1)
        if place is None:
            return NOTHING
        return Entry(place, owned, 1, 0)

    def _place(self, word: int) -> tuple[int | None, bool]:
        place, owned = word & OFFSET, bool(word & COPIED)
        if place & self._alignment:
            raise Corrupt(f"an L2 entry names {place}, which is not where a cluster begins")
        if place == 0 and not (owned and self._header.has_data_file):
            return None, False
        return place, owned

    def packed(self, word: int) -> Packed:
        """Where the data of a compressed cluster is, by its word."""
        offset = word & ((1 << self._sectors_shift) - 1)
        sectors = ((word & (COMPRESSED - 1)) >> self._sectors_shift) + 1
        return Packed(offset, sectors * _SECTOR - offset % _SECTOR)

    def packed_word(self, offset: int, length: int) -> int:
        """The word that names `length` bytes of compressed data from byte `offset` of the file on.

        Raises InvalidArgument where that is further than the word reaches.
        """
        if offset >> self._sectors_shift:
            raise InvalidArgument("the image becomes larger than compressed clusters can be in")
        more = (offset + length - 1) // _SECTOR - offset // _SECTOR
        return COMPRESSED | more << self._sectors_shift | offset

    def words(self, entry: Entry) -> tuple[int, ...]:
        """The words of an entry that is not compressed."""
        assert entry.packed is None, "compressed clusters are not written"
        word = entry.place or 0
        if entry.place is not None and entry.owned:
            word |= COPIED
        if self._extended:
            return word, entry.allocated | entry.zeros << SUBCLUSTERS
        return (word | ZERO if entry.zeros else word,)


def word_runs(page: array[int], words: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(index, how many, first word) of the entries of `words` words in a table that name something.

    Neighbours of which each names the cluster of `size` bytes behind the one before, with the same
    flags, are one run.  Compressed ones are alone.
    """
    at, end = 0, len(page)
    while at < end:
        word = page[at]
        first = at
        at += words
        if word == 0:
            continue
        if word & OFFSET and not word & COMPRESSED:
            following = word + size
            while at < end and page[at] == following:
                following += size
                at += words
        yield first, (at - first) // words, word


def is_reserved(word: int) -> bool:
    """Whether a standard word has a bit that must be clear."""
    return not word & COMPRESSED and bool(word & _RESERVED)
