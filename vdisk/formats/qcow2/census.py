"""What an image's tables point to: how often each cluster of the file is used.

A table that is reached on several ways is read once and counts for all of them, so that the work is
in proportion to the tables that are there, whatever they say.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.qcow2.bitmaps import bitmap_runs
from vdisk.formats.qcow2.entry import COPIED, OFFSET, Entry, is_reserved, word_runs
from vdisk.formats.qcow2.l2 import open_l1
from vdisk.formats.qcow2.tally import PAGE, Tally
from vdisk.formats.table import Table

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2

_FINDINGS_MAX = 10_000
_PASSES_MAX = 64

Use = tuple[int, int, int]
"""(first cluster, how many, how often each is used)."""


@dataclass(slots=True)
class Findings:
    """What was met on the way that cannot be right.

    `fatal` are those that make it unknown what is used by what; counts cannot be set right then.
    """

    fatal: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refcount_table: list[str] = field(default_factory=list)

    @staticmethod
    def note(where: list[str], message: str) -> None:
        """Add a message, as long as there is room."""
        if len(where) < _FINDINGS_MAX:
            where.append(message)


@dataclass(slots=True)
class Walk:
    """One walk through all tables of an image."""

    image: Qcow2
    findings: Findings
    with_refcounts: bool = True
    _end: int = 0
    _metadata: Tally = field(default_factory=Tally)
    _l2_of_snapshots: Tally = field(default_factory=Tally)

    def uses(self) -> Iterator[Use]:
        """Everything that is used, in any order; some of it with a weight of 0: that lies outside
        of the file.
        """
        self._end = self.image.end_cluster
        self._note_metadata()
        yield from ((first, count, 1) for first, count in self._structures())
        yield from ((cluster, 1, weight) for cluster, weight in self._l2_of_snapshots)
        yield from ((first, count, 1) for first, count in self.image.space.held())
        yield from self._of_active()
        for cluster, weight in self._l2_of_snapshots:
            yield from self._of_words(self._table(cluster).runs(), weight, None)

    # Tables

    def _structures(self) -> Iterator[tuple[int, int]]:
        """Runs of clusters that hold what is not reached by way of L1."""
        image, header = self.image, self.image.header
        yield 0, 1
        if self.with_refcounts:
            table = header.refcount_table_offset >> header.cluster_bits
            yield table, header.refcount_table_clusters
            yield from self._refcount_blocks()
        yield self._run(header.l1_offset, 8 * header.l1_entries)
        yield self._run(header.snapshots_offset, image.snapshot_table.bytes_used)
        for snapshot in image.snapshot_table:
            yield self._run(snapshot.l1_offset, 8 * snapshot.l1_entries)
        try:
            for offset, length in bitmap_runs(image.host, header):
                yield self._run(offset, length)
        except Corrupt as error:
            Findings.note(self.findings.others, error.message)

    def _refcount_blocks(self) -> Iterator[tuple[int, int]]:
        for first, page in self.image.refcounts.table.runs():
            for at, word in enumerate(page):
                if word and self._is_place(word):
                    yield word >> self.image.header.cluster_bits, 1
                elif word:
                    Findings.note(
                        self.findings.refcount_table,
                        f"refcount block {first + at} is said to be at {word}",
                    )

    def _note_metadata(self) -> None:
        """Which clusters hold tables, each table once; two in one place are fatal."""
        for snapshot in self.image.snapshot_table:
            l1 = open_l1(self.image.host, snapshot.l1_offset, snapshot.l1_entries)
            for _, cluster in self._l2_tables(l1, f"L1 of snapshot {snapshot.id}"):
                self._l2_of_snapshots.add(cluster)
        tables = self._metadata
        for run in self._structures():
            tables.add(*run)
        for cluster, _ in self._l2_of_snapshots:
            tables.add(cluster)
        for _, cluster in self._l2_tables(self.image.l1, "L1"):
            if not self._l2_of_snapshots.get(cluster):
                tables.add(cluster)
        if tables.end is not None or self._l2_of_snapshots.end is not None:
            raise Unsupported(
                "its tables are scattered over more of the file than can be looked through",
                path=self.image.host.path,
            )
        for cluster, count in tables:
            if count > 1:
                Findings.note(self.findings.fatal, f"{count} tables lie in cluster {cluster}")

    def _l2_tables(self, l1: Table, name: str) -> Iterator[tuple[int, int]]:
        """(number, cluster) of the L2 tables that an L1 table names."""
        for first, page in l1.runs():
            for at, word in enumerate(page):
                if not word & OFFSET:
                    continue
                if self._is_place(word & OFFSET):
                    yield first + at, (word & OFFSET) >> self.image.header.cluster_bits
                else:
                    Findings.note(
                        self.findings.fatal,
                        f"{name} entry {first + at} names an L2 table at {word & OFFSET}, "
                        "where none can be",
                    )

    def _table(self, cluster: int) -> Table:
        size = self.image.header.cluster_size
        return Table(self.image.host, cluster * size, size // 8, width=8, byteorder="big")

    # Guest clusters

    def _of_active(self) -> Iterator[Use]:
        """The L2 tables of the disk itself, and what they name, as they are in memory."""
        l2, walked = self.image.l2, Tally()
        for number, cluster in self._l2_tables(self.image.l1, "L1"):
            yield cluster, 1, 1
            walked.add(cluster)
            if walked.get(cluster) > 1:
                continue  # Two of them in one place, which was told.
            start = number * l2.words_per_table
            yield from self._of_words(l2.runs(start, start + l2.words_per_table), 1, number)

    def _of_words(
        self, pages: Iterator[tuple[int, array[int]]], weight: int, number: int | None
    ) -> Iterator[Use]:
        """What the words of one L2 table name; `number` is which of the active ones it is."""
        header = self.image.header
        words, size = header.entry_words, header.cluster_size
        is_plain = not header.extended and not header.has_data_file
        odd = ~(OFFSET & -size | COPIED)
        for first, page in pages:
            if is_plain:
                runs = word_runs(page, 1, size)
            else:  # Each has a bitmap, or a place that follows from where it is.
                runs = ((at, 1, page[at]) for at in range(0, len(page), words))
            for at, count, word in runs:
                if is_plain and word & OFFSET and not word & odd:
                    yield from self._inside((word & OFFSET) // size, count, weight)
                    continue
                for index in range(at, at + count * words, words):
                    bitmap = page[index + 1] if words == 2 else 0
                    guest = (first + index) // words if number is not None else None
                    yield from self._of_entry(page[index], bitmap, weight, guest)

    def _of_entry(
        self, word: int, bitmap: int, weight: int, guest: int | None
    ) -> Iterator[Use]:
        """What one entry names, that of a `guest` cluster or, where it is None, of a snapshot."""
        header = self.image.header
        if not word | bitmap:
            return
        entry = self._entry(word, bitmap, guest)
        if header.has_data_file:
            return
        if entry is None:  # What it may mean is not to be taken for a leak.
            start, length = word & OFFSET, header.cluster_size
        elif entry.packed is not None:
            start, length = entry.packed.offset, entry.packed.length
        elif entry.place is not None:
            start, length = entry.place, header.cluster_size
        else:
            return
        first, last = start >> header.cluster_bits, start + length - 1 >> header.cluster_bits
        yield from self._inside(first, last - first + 1, weight)

    def _inside(self, first: int, count: int, weight: int) -> Iterator[Use]:
        """A run of guest clusters, the part outside of the file with a weight of 0."""
        inside = max(0, min(count, self._end - first))
        if inside:
            yield first, inside, weight
        if inside < count:
            yield first + inside, count - inside, 0
            Findings.note(
                self.findings.others,
                f"guest clusters lie at {first + inside} to {first + count - 1}, "
                "past the end of the file",
            )
        for cluster in self._metadata.counted(first, inside):
            Findings.note(
                self.findings.fatal, f"a guest cluster lies in cluster {cluster}, where a table is"
            )

    def _entry(self, word: int, bitmap: int, guest: int | None) -> Entry | None:
        where = "of a snapshot" if guest is None else f"for guest cluster {guest}"
        try:
            entry = self.image.entries.read(word, bitmap)
        except Corrupt as error:
            Findings.note(self.findings.fatal, f"{error.message}, {where}")
            return None
        if is_reserved(word):
            Findings.note(
                self.findings.others, f"an L2 entry {word:#x} has bits that are reserved, {where}"
            )
        header = self.image.header
        is_elsewhere = guest is not None and entry.place not in (None, guest << header.cluster_bits)
        if header.has_data_file and is_elsewhere:
            Findings.note(
                self.findings.fatal, f"an L2 entry names {entry.place} of the data file, {where}"
            )
        return entry

    def _is_place(self, offset: int) -> bool:
        """Whether a table can be there."""
        size = self.image.header.cluster_size
        return offset % size == 0 and size <= offset < self._end * size

    def _run(self, offset: int, length: int) -> tuple[int, int]:
        return offset >> self.image.header.cluster_bits, self.image.header.clusters(length)


def tallies(
    image: Qcow2, findings: Findings, *, with_refcounts: bool = True, align: int = PAGE
) -> Iterator[Tally]:
    """How often each cluster is used, in as few parts of the file as memory allows.

    Each part begins and ends at a multiple of `align` clusters, and of `PAGE`.  Without
    `with_refcounts` what counts them now is not counted itself.  Raises Unsupported for tables that
    would take too many parts.
    """
    align = max(align, PAGE)
    start = 0
    for _ in range(_PASSES_MAX):
        tally = Tally(start)
        for use in Walk(image, findings, with_refcounts).uses():
            tally.add(*use)
        if tally.end is None:
            yield tally
            return
        tally.end -= tally.end % align
        if tally.end == start:
            break
        yield tally
        start, findings = tally.end, Findings()  # They are the same each time.
    raise Unsupported(
        "its clusters are scattered over more of the file than can be looked through",
        path=image.host.path,
    )

