"""Internal snapshots of a QCOW2 image: taken, gone back to, and deleted.

A snapshot is a copy of the L1 table; what it reaches is counted once more.  Each change is a series
of plans, every one of which leaves a sound image: counts go up before anything relies on them, the
header's sector names the new tables when all is durable, and counts go down after that.  What a
crash leaves is counts that are too high, and flags that say "shared" of what is not.

`plan_…` answer with a series of plans, for `ImageDisk.carry_out_all`.

Source: QEMU, `docs/interop/qcow2.rst`, "Snapshots"; `block/qcow2-snapshot.c`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument, NotFound, Unsupported
from vdisk.formats.qcow2.entry import COMPRESSED, COPIED, OFFSET, word_runs
from vdisk.formats.qcow2.flags import l2_tables, plan_flags
from vdisk.formats.qcow2.header import SNAPSHOTS_MAX
from vdisk.formats.qcow2.l2 import open_l1
from vdisk.formats.qcow2.refcounts import Changes
from vdisk.formats.qcow2.snapshot_table import TABLE_BYTES_MAX, SnapshotEntry, SnapshotTable
from vdisk.formats.qcow2.space import runs_of
from vdisk.formats.qcow2.tally import Tally
from vdisk.formats.table import Table, big_endian
from vdisk.plan import Barrier, Plan, Plans, Punch, Put, Step

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2

_NAME_BYTES_MAX = 1023


def plan_taking(image: Qcow2, name: str) -> Plans:
    """Keep the disk as it is now under `name`.

    Raises InvalidArgument for what is no name, and Unsupported where there is a data file.  What
    refcounts of one bit cannot count is told, by Unsupported, when the first plan is asked for.
    """
    _check(image)
    path = image.host.path
    if not name or "\0" in name or len(name.encode(errors="surrogateescape")) > _NAME_BYTES_MAX:
        raise InvalidArgument(f"{name!r} is not a name of a snapshot", path=path)
    taken = list(image.snapshot_table)
    if len(taken) >= SNAPSHOTS_MAX:
        raise Unsupported("has as many snapshots as there can be", path=path)
    return _Taking(image, _new_id(taken), name).plan


def plan_applying(image: Qcow2, id: str) -> Plans:
    """Make the disk what it was when that snapshot was taken, its size included.

    What the disk holds now is lost, unless it is in a snapshot.  Raises NotFound and Unsupported.
    """
    _check(image)
    return _Applying(image, _found(image, id)).plan


def plan_deleting(image: Qcow2, id: str) -> Plans:
    """Remove a snapshot, and give up what only it had.  Raises NotFound and Unsupported."""
    _check(image)
    return _Deleting(image, _found(image, id)).plan


def _check(image: Qcow2) -> None:
    if image.header.has_data_file:  # What a guest's clusters are in has no counts.
        raise Unsupported("has a data file, and so no internal snapshots", path=image.host.path)


def _found(image: Qcow2, id: str) -> SnapshotEntry:
    entry = next((entry for entry in image.snapshot_table if entry.id == id), None)
    if entry is None:
        raise NotFound(f"has no snapshot {id!r}", path=image.host.path)
    return entry


def _new_id(taken: list[SnapshotEntry]) -> str:
    """One more than the highest number that is one."""
    numbers = [int(s.id) for s in taken if s.id.isascii() and s.id.isdigit() and len(s.id) < 20]
    return str(max(numbers, default=0) + 1)


class _Change:
    """A series of plans, made by the generator `stages`, each when the one before it is done."""

    def __init__(self, image: Qcow2) -> None:
        self.image = image
        self._plans = self.stages()

    def plan(self) -> Plan | None:
        """The next plan, None after the last."""
        image = self.image
        image.check_sound()
        image.space.begin()
        # Each stage reads tables in the host, or points there: nothing is to wait.
        if image.l2.pages_waiting:
            return image.plan_flush()
        return next(self._plans, None)

    def stages(self) -> Iterator[Plan]:
        raise NotImplementedError

    def room(self, length: int) -> Iterator[Plan]:
        """Plans until `take` finds clean clusters in a row for `length` bytes."""
        count = self.image.header.clusters(length)
        while not self.image.space.has_run(count):
            yield self.image.space.plan_more(count)

    def take(self, length: int) -> int:
        """The host offset of clean clusters for `length` bytes."""
        count = self.image.header.clusters(length)
        found = self.image.space.take(count, count)
        assert found is not None, "there is room"
        return found[0] * self.image.header.cluster_size

    def give_up(self, offset: int, length: int) -> None:
        """The clusters of a table that the header names no more."""
        size = self.image.header.cluster_size
        if length:
            self.image.space.give_up(offset // size, self.image.header.clusters(length))

    # The table of snapshots

    def table_with(self, entries: bytes, count: int) -> Iterator[Plan]:
        """Plans that make `entries`, which are `count`, the table of snapshots."""
        image, old = self.image, self.image.header
        used = image.snapshot_table.bytes_used
        yield from self.room(len(entries))
        place = self.take(len(entries)) if entries else 0
        new = replace(old, snapshots=count, snapshots_offset=place)

        def finished() -> None:
            image.space.settle()
            image.header = new
            image.snapshot_table = SnapshotTable(image.host, new)
            image.note_metadata()
            self.give_up(old.snapshots_offset, used)

        sync = Barrier((image.host,))
        written = (Put(image.host, place, entries),) if entries else ()
        yield Plan((*written, sync, image.put_header(new), sync), finished, exclusive=True)

    # Counts

    def count(self, l1: Table, difference: int) -> Plan:
        """Count what an L1 table reaches once more or less; what nobody uses then is given back."""
        image = self.image
        used = reached(image, l1)
        changes = Changes(image.refcounts)
        gone = [cluster for page in used.pages() for cluster in changes.add(used, page, difference)]
        size = image.header.cluster_size
        punches = (Punch(image.host, first * size, n * size) for first, n in runs_of(gone))
        steps: tuple[Step, ...] = (*changes.puts(), *punches, Barrier((image.host,)))

        def done() -> None:
            changes.commit()
            if gone:
                image.space.search_anew()

        return Plan(steps, done, exclusive=True)


class _Taking(_Change):
    def __init__(self, image: Qcow2, id: str, name: str) -> None:
        super().__init__(image)
        self._id = id
        self._name = name

    def stages(self) -> Iterator[Plan]:
        image = self.image
        yield self.count(image.l1, 1)
        yield plan_flags(image, image.l1)
        length = 8 * image.header.l1_entries
        yield from self.room(length)
        place = self.take(length)
        yield Plan(tuple(_l1_copy(image, image.l1, image.l1.entries, place)), image.space.settle)
        entry = SnapshotEntry.new(
            self._id, self._name, place, image.header.l1_entries, image.size, time.time_ns()
        )
        entries = b"".join(each.raw for each in image.snapshot_table) + entry.raw
        if len(entries) > TABLE_BYTES_MAX:
            raise Unsupported("its table of snapshots is full", path=image.host.path)
        yield from self.table_with(entries, image.header.snapshots + 1)


class _Applying(_Change):
    def __init__(self, image: Qcow2, snapshot: SnapshotEntry) -> None:
        super().__init__(image)
        self._snapshot = snapshot

    def stages(self) -> Iterator[Plan]:
        image, snapshot = self.image, self._snapshot
        # The state of a machine, which lies past the disk's end, stays the snapshot's.
        entries = min(image.header.l1_entries_for(snapshot.disk_size), snapshot.l1_entries)
        theirs = open_l1(image.host, snapshot.l1_offset, entries)
        needed = max(image.header.l1_entries_for(snapshot.disk_size), 1)
        yield self.count(theirs, 1)
        yield plan_flags(image, theirs)
        yield from self.room(8 * needed)
        place = self.take(8 * needed)
        yield from self._switch(theirs, place, needed)

    def _switch(self, theirs: Table, place: int, entries: int) -> Iterator[Plan]:
        image, old = self.image, self.image.header
        new = replace(old, size=self._snapshot.disk_size, l1_offset=place, l1_entries=entries)
        before = image.l1
        sync = Barrier((image.host,))

        def done() -> None:
            image.space.settle()
            image.take(new)
            self.give_up(old.l1_offset, 8 * old.l1_entries)

        copy = tuple(_l1_copy(image, theirs, theirs.entries, place))
        yield Plan((*copy, sync, image.put_header(new), sync), done, exclusive=True)
        yield self.count(before, -1)


class _Deleting(_Change):
    def __init__(self, image: Qcow2, snapshot: SnapshotEntry) -> None:
        super().__init__(image)
        self._snapshot = snapshot

    def stages(self) -> Iterator[Plan]:
        image, snapshot = self.image, self._snapshot
        kept = [each.raw for each in image.snapshot_table if each != snapshot]
        theirs = open_l1(image.host, snapshot.l1_offset, snapshot.l1_entries)
        length = 8 * snapshot.l1_entries
        yield from self.table_with(b"".join(kept), len(kept))
        yield self.count(theirs, -1)
        self.give_up(snapshot.l1_offset, length)
        yield plan_flags(image, image.l1)


def reached(image: Qcow2, l1: Table) -> Tally:
    """How often the clusters of the tables and data are reached from an L1 table.

    Raises Unsupported for more than memory holds.
    """
    bits, words = image.header.cluster_bits, image.header.entry_words
    tally = Tally(pages_max=1 << 14)
    for _, table in l2_tables(image, l1):
        tally.add(table.host_offset >> bits)
        for _, page in table.runs():
            for _, count, word in word_runs(page, words, image.header.cluster_size):
                if word & COMPRESSED:
                    packed = image.entries.packed(word)
                    first, last = packed.offset >> bits, packed.offset + packed.length - 1 >> bits
                    tally.add(first, last - first + 1)
                elif word & OFFSET:
                    tally.add((word & OFFSET) >> bits, count)
    if tally.end is not None:
        raise Unsupported(
            "is too large for internal snapshots", path=image.host.path,
            hint="an overlay in a file of its own is a snapshot too",
        )
    return tally


def _l1_copy(image: Qcow2, l1: Table, entries: int, place: int) -> Iterator[Put]:
    """Steps that write entries of an L1 table elsewhere; nothing in it belongs to it alone."""
    for first, page in l1.runs(0, entries):
        shared = array("Q", [word & ~COPIED for word in page])
        yield Put(image.host, place + 8 * first, big_endian(shared))
