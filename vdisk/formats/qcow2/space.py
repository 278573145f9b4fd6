"""Clusters of the host file for the image to use, and those that it gives up.

Ordinary allocation writes no refcount and waits for nothing.  Clusters are counted ahead of need, a
chunk in one plan that ends with a barrier: from then on they are `clean`, which says that their
count is durable, that they are inside the file, and that they read as zeros whatever happens.  A
pointer to one is safe at any moment.  What is left of a chunk is given back when the disk is
closed; after a crash it is a leak, which harms nobody.

What a table does not point to any more is `freed`: its count is lowered by the next flush, after
the table is durable, so that a cluster is never given away while an old table may come back.

Source of the rules: QEMU, `docs/interop/qcow2.rst`, "Host cluster management"; the order is ours.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, NoSpace
from vdisk.formats.qcow2 import counts
from vdisk.formats.qcow2.header import REFCOUNT_TABLE_BYTES_MAX
from vdisk.formats.qcow2.refcounts import Changes
from vdisk.formats.table import big_endian
from vdisk.plan import Barrier, Grow, Plan, Punch, Put, Step, Truncate

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2

Run = tuple[int, int]
"""(first cluster, how many)."""

_CHUNK_MIN = 16
_CHUNK_MAX = 1024  # Clusters that are counted ahead at once.
_CHUNK_BYTES_MAX = 64 << 20
_SEARCHED_BLOCKS = 8  # Refcount blocks that are looked through for gaps by one plan.
_FREED_RUNS_MAX = 1024


class Space:
    """The clusters that one open image has counted and does not use, or uses no more.

    A plan is handed clusters by `take`, and `settle`s with them when it is done; those of a plan
    that failed are not clean any more, and are made so before they are handed out again.
    """

    def __init__(self, image: Qcow2) -> None:
        self._image = image
        self._host = image.host
        self._clean: list[Run] = []
        self._stale: list[Run] = []
        self._taken: list[Run] = []
        self._freed: list[Run] = []
        self._search_from = 0
        self._chunk = _CHUNK_MIN

    # Handing out

    def begin(self) -> None:
        """A new plan is made: what the last one took and did not settle for may hold anything."""
        self._stale += self._taken
        self._taken = []

    def take(self, wanted: int, least: int = 1) -> Run | None:
        """From `least` to `wanted` clean clusters in a row; None: `plan_more` has to come first."""
        for at, (first, count) in enumerate(self._clean):
            if count >= least:
                found = first, min(count, wanted)
                rest = first + found[1], count - found[1]
                self._clean[at : at + 1] = [rest] if rest[1] else []
                self._taken.append(found)
                return found
        return None

    def has_run(self, count: int) -> bool:
        """Whether `take` finds `count` clusters in a row."""
        return any(run[1] >= count for run in self._clean)

    def settle(self) -> None:
        """The plan is done: what it took is in use."""
        self._taken = []

    def give_up(self, first: int, count: int) -> None:
        """One use of each of these clusters is gone from the tables in memory."""
        if self._freed and sum(self._freed[-1]) == first:
            first, count = self._freed[-1][0], self._freed.pop()[1] + count
        self._freed.append((first, count))

    @property
    def has_freed(self) -> bool:
        """Whether clusters wait to be given up."""
        return bool(self._freed)

    @property
    def has_freed_much(self) -> bool:
        """Whether that should not wait for the guest's next flush."""
        return len(self._freed) >= _FREED_RUNS_MAX

    def held(self) -> Iterator[Run]:
        """Clusters that are counted once more than tables point to them."""
        yield from self._clean
        yield from self._stale
        yield from self._taken
        yield from self._freed

    def search_anew(self) -> None:
        """Gaps may be anywhere: counts were changed by other means."""
        self._search_from = 0

    # Counting ahead

    def plan_more(self, least: int = 1) -> Plan:
        """Have at least `least` more clean clusters in a row; asked again until there are."""
        if self._stale and least == 1:
            return self._plan_cleaning()
        refcounts = self._image.refcounts
        chunk = max(1, min(self._chunk, _CHUNK_BYTES_MAX >> self._image.header.cluster_bits))
        gap = self._find_gap(chunk) if least == 1 else None
        # Refcount blocks of its own may take the first clusters of a run.
        first, count = gap or self._find_room(max(chunk, least + least // refcounts.per_block + 2))
        if first + count > refcounts.clusters_max:
            return self._plan_larger_table(first + count)
        return self._plan_counting(first, count)

    def _find_gap(self, wanted: int) -> Run | None:
        """Free clusters inside the file, if some are found soon."""
        refcounts, end = self._image.refcounts, self._image.end_cluster
        while self._search_from < end:
            stop = min(end, self._search_from + _SEARCHED_BLOCKS * refcounts.per_block)
            gap = refcounts.free_run(max(self._search_from, 1), stop, wanted)
            self._search_from = stop if gap is None else gap[0]
            if gap is not None or not self._host.is_block:
                return gap
        return None

    def _find_room(self, wanted: int) -> Run:
        """Free clusters in a row, behind the file; in a device, wherever they are.

        Raises HostError where a device has none.
        """
        refcounts, end = self._image.refcounts, self._image.end_cluster
        start, limit = end, end + wanted + _SEARCHED_BLOCKS * refcounts.per_block
        if self._host.is_block:
            start, limit = 1, end
        found = refcounts.free_run(start, limit, wanted, wanted)
        if found is None:
            if self._host.is_block:
                self._host.grow((end + 1) * refcounts.cluster_size)  # Says that it is full.
            raise Corrupt(
                "its refcounts say that space past the end of the file is in use",
                path=self._host.path, hint="see vdisk check",
            )
        return found

    def _plan_cleaning(self) -> Plan:
        stale = self._stale[:]

        def done() -> None:
            self._clean += stale
            self._stale = []

        return Plan((*self._punches(stale), Barrier((self._host,))), done)

    def _plan_counting(self, first: int, count: int) -> Plan:
        """Count free clusters as used, once, in blocks that are there or lie among them."""
        image, refcounts, host = self._image, self._image.refcounts, self._host
        size = refcounts.cluster_size
        steps: list[Step] = []
        if first < image.end_cluster:
            what = image.metadata_in(first, count)
            if what is not None:
                return image.plan_damage(f"{what} lies in clusters that are counted as free")
            steps += self._punches([(first, count)])
        last = (first + count - 1) // refcounts.per_block
        missing = [n for n in range(first // refcounts.per_block, last + 1)
                   if refcounts.block_at(n) == 0][:count]  # fmt: skip
        changes = Changes(refcounts)
        for at, number in enumerate(missing):
            changes.new_block(number, (first + at) * size)
        changes.set_run(first, count, 1)
        sync = Barrier((host,))
        steps += (Grow(host, (first + count) * size), *changes.puts(), sync)
        if missing:
            steps += (*changes.table_puts(), sync)

        def done() -> None:
            changes.commit()
            image.note_end()
            self._clean.append((first + len(missing), count - len(missing)))
            self._clean = [run for run in self._clean if run[1]]
            self._chunk = min(2 * self._chunk, _CHUNK_MAX)

        return Plan(tuple(steps), done)

    def _plan_larger_table(self, clusters: int) -> Plan:
        """A refcount table for `clusters` clusters and more, behind all that can be counted now.

        Its own clusters are counted in new blocks before it.  The header, which names it in one
        sector, is written when all that is durable.  Raises NoSpace at the format's limit.
        """
        image, refcounts, host = self._image, self._image.refcounts, self._host
        header, size, per_block = image.header, refcounts.cluster_size, refcounts.per_block
        start = max(refcounts.clusters_max, image.end_cluster)
        blocks, table_clusters, entries = 1, 1, 0
        while entries * per_block < start + blocks + table_clusters + clusters // 8:
            end = start + blocks + table_clusters
            blocks = -(-end // per_block) - start // per_block
            wanted = -(-(end + clusters // 8) // per_block) + 1
            table_clusters = header.clusters(8 * max(wanted, refcounts.table.entries * 3 // 2))
            entries = table_clusters * size // 8
        if table_clusters * size > REFCOUNT_TABLE_BYTES_MAX:
            raise NoSpace("its refcount table is as large as it can be", path=host.path)
        end = start + blocks + table_clusters
        values = array("Q")
        for _, page in refcounts.table.runs():
            values += page
        values.frombytes(bytes(8 * (entries - len(values))))
        steps: list[Step] = [Grow(host, end * size)]
        for at in range(blocks):
            number = start // per_block + at
            values[number] = (start + at) * size
            low, high = max(start - number * per_block, 0), min(end - number * per_block, per_block)
            block = array(counts.code(refcounts.order), [0] * low + [1] * (high - low))
            block.extend([0] * (per_block - high))
            steps.append(Put(host, values[number], counts.pack(block, refcounts.order)))
        place = (start + blocks) * size
        new = replace(header, refcount_table_offset=place, refcount_table_clusters=table_clusters)
        sync = Barrier((host,))
        steps += (Put(host, place, big_endian(values)), sync, image.put_header(new), sync)

        def done() -> None:
            image.header = new
            refcounts.take(new)
            image.note_metadata()
            self.give_up(header.refcount_table_offset // size, header.refcount_table_clusters)

        return Plan(tuple(steps), done)

    # Giving up

    def release(self) -> tuple[tuple[Step, ...], Changes]:
        """Steps that lower the counts of what was given up, and give its room to the host.

        The tables that do not point there any more are durable before them.  When they are done,
        `released` is to be called.
        """
        changes = Changes(self._image.refcounts)
        gone = changes.lower(self._freed)
        return (*changes.puts(), *self._punches(runs_of(gone))), changes

    def released(self, changes: Changes) -> None:
        """The steps of `release` are done."""
        changes.commit()
        self._search_from = min([self._search_from, *(first for first, _ in self._freed)])
        self._freed = []

    def end_steps(self) -> tuple[tuple[Step, ...], Changes]:
        """As `release`, for all that is held; the file is cut where only such clusters follow."""
        self.begin()
        unused = self._clean + self._stale
        self._freed += unused
        self._clean, self._stale = [], []
        steps, changes = self.release()
        end = whole = self._image.end_cluster
        for first, count in sorted(unused, reverse=True):
            if first + count == end and all(not changes.get(n) for n in range(first, end)):
                end = first
        if end < whole and not self._host.is_block:
            steps += (Truncate(self._host, end * self._image.header.cluster_size),)
        return steps, changes

    def _punches(self, runs: Iterable[Run]) -> list[Punch]:
        """Of what lies inside the file: past its end there is nothing to give back."""
        size = self._image.header.cluster_size
        end = self._image.end_cluster
        return [
            Punch(self._host, first * size, min(count, end - first) * size)
            for first, count in runs if first < end
        ]  # fmt: skip


def runs_of(clusters: Iterable[int]) -> list[Run]:
    """`clusters` as runs: neighbours that follow each other are one."""
    found: list[Run] = []
    for cluster in clusters:
        if found and sum(found[-1]) == cluster:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((cluster, 1))
    return found
