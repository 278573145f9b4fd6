"""Refcounts made anew, from what the tables point to.

They are written into new space, where nothing that is there is in the way, however wrong the old
ones are; the header then names them, and clears its mark, in one sector.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.qcow2 import counts
from vdisk.formats.qcow2.census import Findings, tallies
from vdisk.formats.qcow2.header import REFCOUNT_TABLE_BYTES_MAX, Autoclear, Header, Incompatible
from vdisk.formats.qcow2.tally import PAGE, Tally
from vdisk.formats.table import big_endian
from vdisk.plan import Barrier, Grow, Plan, Put, Step

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2


def without_autoclear(header: Header) -> Header:
    """Without the features that are lost when somebody writes who does not keep them up."""
    return replace(header, autoclear=header.autoclear & Autoclear.RAW_DATA_FILE)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the new refcounts go: blocks `numbers` from cluster `start` on, then the table."""

    start: int
    numbers: tuple[int, ...]
    table_clusters: int

    @property
    def table_at(self) -> int:
        return self.start + len(self.numbers)

    @property
    def end(self) -> int:
        return self.table_at + self.table_clusters


def plan_rebuild(image: Qcow2, header: Header) -> Plan:
    """Count everything anew; then go by `header`, with its mark for stale refcounts cleared.

    Raises Corrupt where tables lie over each other or over data, and Unsupported where the
    refcounts cannot count that far.
    """
    findings = Findings()
    numbers: set[int] = set()
    highest = image.end_cluster - 1
    whole: Tally | None = None
    per_block = image.refcounts.per_block
    for tally in tallies(image, findings, with_refcounts=False, align=per_block):
        numbers.update(_blocks_of(image, tally))
        highest = max(highest, tally.highest)
        whole = tally if tally.end is None and tally.start == 0 else None
    if findings.fatal:
        raise Corrupt(
            f"its refcounts cannot be made anew: {findings.fatal[0]}", path=image.host.path
        )
    layout = _layout(image, numbers, highest + 1)
    new = replace(
        header,
        incompatible=header.incompatible & ~Incompatible.DIRTY,
        refcount_table_offset=layout.table_at * header.cluster_size,
        refcount_table_clusters=layout.table_clusters,
    )

    def done() -> None:
        image.header = new
        image.refcounts.take(new)
        image.space.search_anew()
        image.note_metadata()

    return Plan(_steps(image, layout, new, whole), done)


def _blocks_of(image: Qcow2, tally: Tally) -> Iterator[int]:
    """The refcount blocks that a part of the file needs.  Raises Unsupported."""
    refcounts = image.refcounts
    for cluster, count in tally:
        if tally.end is not None and cluster >= tally.end:
            return
        if count > refcounts.count_max:
            raise Unsupported(
                f"a cluster is used {count} times, to which its refcounts of "
                f"{1 << refcounts.order} bits cannot count", path=image.host.path,
            )
        yield cluster // refcounts.per_block


def _layout(image: Qcow2, numbers: set[int], start: int) -> _Layout:
    """Room for the blocks, for those that count the room itself, and for the table."""
    header, per_block = image.header, image.refcounts.per_block
    end, table_clusters = start, 0
    while True:
        numbers = numbers | set(range(start // per_block, max(end - 1, start) // per_block + 1))
        table_clusters = max(table_clusters, header.clusters(8 * (max(numbers) + 1)))
        layout = _Layout(start, tuple(sorted(numbers)), table_clusters)
        if layout.end == end:
            break
        end = layout.end
    if layout.table_clusters * header.cluster_size > REFCOUNT_TABLE_BYTES_MAX:
        raise Unsupported("its clusters lie too far apart to be counted", path=image.host.path)
    return layout


def _steps(image: Qcow2, layout: _Layout, header: Header, whole: Tally | None) -> Iterator[Step]:
    host, size = image.host, header.cluster_size
    per_block = image.refcounts.per_block
    yield Grow(host, layout.end * size)
    table = array("Q", bytes(layout.table_clusters * size))
    parts = iter((whole,)) if whole else tallies(
        image, Findings(), with_refcounts=False, align=per_block
    )
    tally = next(parts)
    for at, number in enumerate(layout.numbers):
        while tally.end is not None and number * per_block >= tally.end:
            tally = next(parts)
        table[number] = (layout.start + at) * size
        block = _block(image, tally, number, layout)
        yield Put(host, table[number], counts.pack(block, image.refcounts.order))
    yield Put(host, layout.table_at * size, big_endian(table))
    sync = Barrier((host,))
    yield from (sync, image.put_header(header), sync)


def _block(image: Qcow2, tally: Tally, number: int, layout: _Layout) -> array[int]:
    """The counts of one block, with what lies in the new room counted once."""
    per_block = image.refcounts.per_block
    block = array(counts.code(image.refcounts.order), [0]) * per_block
    start = number * per_block
    for first in range(start, start + per_block, min(PAGE, per_block)):
        page = tally.page(first // PAGE)
        if page is not None:
            part = page[first % PAGE : first % PAGE + min(PAGE, per_block)]
            block[first - start : first - start + len(part)] = array(block.typecode, part)
    for cluster in range(max(start, layout.start), min(start + per_block, layout.end)):
        block[cluster - start] = 1
    return block
