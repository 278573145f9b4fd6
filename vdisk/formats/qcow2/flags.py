"""The flag of an entry that says that nobody else has what it names: it follows the refcount.

Wrong, it costs a copy where it is missing, and a snapshot's data where it is set.  It is correct
once refcounts have changed that the disk's own tables point to.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.formats.qcow2.entry import COMPRESSED, COPIED, OFFSET, word_runs
from vdisk.formats.table import Table, big_endian
from vdisk.plan import Barrier, Plan, Put, Step

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2


def l2_tables(image: Qcow2, l1: Table) -> Iterator[tuple[int, Table]]:
    """(number, table) of all L2 tables that an L1 table names."""
    size = image.header.cluster_size
    for first, page in l1.runs():
        for at, word in enumerate(page):
            if word & OFFSET:
                table = Table(image.host, word & OFFSET, size // 8, width=8, byteorder="big")
                yield first + at, table


def changed_words(image: Qcow2, table: Table) -> Iterator[tuple[int, array[int], array[int]]]:
    """(index of the first, old words, new words) of what has to be written so that the flags in one
    table, L1 or L2, are right; a page of it at a time.
    """
    bits = image.header.cluster_bits
    step = 1 if table is image.l1 else image.header.entry_words
    for first, page in table.runs():
        new = page[:]
        for start, length, found in word_runs(page, step, image.header.cluster_size):
            cluster = (found & OFFSET) >> bits
            if found & COMPRESSED or not found & OFFSET:
                continue
            if found & COPIED and image.refcounts.are_one(cluster, length):
                continue
            for at, word in enumerate(page[start : start + length * step : step]):
                is_owned = image.refcounts.get(cluster + at) == 1
                new[start + at * step] = word | COPIED if is_owned else word & ~COPIED
        if new != page:
            wrong = [at for at in range(len(page)) if new[at] != page[at]]
            low, high = wrong[0], wrong[-1] + 1
            yield first + low, page[low:high], new[low:high]


def plan_flags(image: Qcow2, l1: Table) -> Plan:
    """Make the flags in `l1` and its L2 tables follow the refcounts in the host.

    Nothing waits in memory.  Of the L1 table of a snapshot, only the L2 tables are changed.
    """

    def steps() -> Iterator[Step]:
        if l1 is image.l1:
            yield from _puts(image, l1)
        if not image.header.has_data_file:
            for _, table in l2_tables(image, l1):
                yield from _puts(image, table)
        yield Barrier((image.host,))

    def done() -> None:
        image.l1.forget()
        image.l2.forget()

    return Plan(steps(), done, exclusive=True)


def _puts(image: Qcow2, table: Table) -> Iterator[Put]:
    for first, _, words in changed_words(image, table):
        yield Put(image.host, table.host_offset + 8 * first, big_endian(words))
