"""The order in which the records of an MBR disk are written.

A table of this kind is a tree of 512-byte records: the MBR, and the chains of EBRs that it leads
to.  A change is safe if it is made by one write to one record that counts: before it the disk has
the old table and after it the new one.  Records that nothing leads to yet do not count; they are
written first, and a barrier later the record that leads to them.

Every single edit is such a change.  Several are joined into one where that keeps it so; else they
follow one another, and a crash in between leaves the table with the earlier ones done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vdisk.partitioning.steps import Barrier, Overlay, Put, Step
from vdisk.tables.partition import Region


class Commits:
    """Changes of records, joined where they may be.

    `overlay` shows the disk with all changes made.  `live()` gives the ranges of bytes that the
    table which `overlay` shows has a use for: its records and its partitions.  A record that does
    not count yet may be written only where the table on the disk has no use for the bytes.
    """

    def __init__(self, overlay: Overlay, live: Callable[[], list[Region]]) -> None:
        self._overlay = overlay
        self._read_live = live
        self._live = live()
        self._steps: list[Step] = []
        self._fresh: dict[int, int] = {}
        self._counting: Put | None = None

    def change(self, counting: Put, fresh: Sequence[Put] = ()) -> None:
        """Change the record at `counting`, after the records `fresh`, to which only it leads."""
        if not self._may_join(counting, fresh):
            self._end_group()
        for put in (*fresh, counting):
            self._overlay.put(put.offset, put.data)
        self._fresh |= {put.offset: len(put.data) for put in fresh}
        if counting.offset not in self._fresh:
            self._counting = counting

    def steps(self) -> list[Step]:
        """All changes, in their order, with a barrier after each that counts."""
        self._end_group()
        return self._steps

    def _may_join(self, counting: Put, fresh: Sequence[Put]) -> bool:
        if any(_overlap(put, region) for put in fresh for region in self._live):
            return self._is_empty()  # Then nothing would be gained by writing it apart.
        return (
            self._counting is None
            or self._counting.offset == counting.offset
            or counting.offset in self._fresh
        )

    def _is_empty(self) -> bool:
        return self._counting is None and not self._fresh

    def _end_group(self) -> None:
        if self._is_empty():
            return
        if self._fresh:
            self._steps += [
                Put(offset, self._overlay.read(offset, length))
                for offset, length in sorted(self._fresh.items())
            ]
            self._steps.append(Barrier())
        if self._counting is not None:
            put = self._counting
            self._steps += [Put(put.offset, self._overlay.read(put.offset, len(put.data))),
                            Barrier()]
        self._fresh, self._counting = {}, None
        self._live = self._read_live()


def _overlap(put: Put, region: Region) -> bool:
    return put.offset < region[1] and region[0] < put.end
