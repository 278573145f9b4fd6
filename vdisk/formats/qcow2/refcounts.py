"""The refcounts in the host: a table of blocks, and in each block a count a cluster.

`Refcounts` reads them, a block at a time and within a limit.  `Changes` are counts that are to be
others, as steps of a plan, and in memory once the plan is done.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.qcow2 import counts
from vdisk.formats.qcow2.header import Header
from vdisk.formats.qcow2.tally import PAGE, Tally
from vdisk.formats.table import Table
from vdisk.host import HostFile
from vdisk.plan import Put

_CACHE_BYTES_MAX = 8 << 20
_BLOCKS_MIN = 2


class Refcounts:
    """How often each cluster of the host file is used, as the host says it.

    Used by one thread at a time.
    """

    def __init__(self, host: HostFile, header: Header) -> None:
        self.host = host
        self.order = header.refcount_order
        self.per_block = header.counts_per_block
        self.cluster_size = header.cluster_size
        self.count_max = (1 << (1 << self.order)) - 1
        self._blocks: OrderedDict[int, array[int]] = OrderedDict()
        block_bytes = self.per_block * array(counts.code(self.order)).itemsize
        self._blocks_max = max(_CACHE_BYTES_MAX // block_bytes, _BLOCKS_MIN)
        self.take(header)

    def take(self, header: Header) -> None:
        """Go by the refcount table of `header` from now on."""
        entries = header.refcount_table_clusters * self.cluster_size // 8
        self.table = Table(
            self.host, header.refcount_table_offset, entries, width=8, byteorder="big"
        )
        self._blocks.clear()

    @property
    def clusters_max(self) -> int:
        """The clusters that the table has room to count."""
        return self.table.entries * self.per_block

    def block_at(self, number: int) -> int:
        """The host offset of block `number`, 0 where there is none.  Raises Corrupt."""
        if number >= self.table.entries:
            return 0
        offset = self.table.get(number)
        if offset % self.cluster_size or offset >= max(self.host.size(), 1):
            raise Corrupt(
                f"refcount block {number} is said to be at {offset}, where none can be",
                path=self.host.path, hint="see vdisk check",
            )
        return offset

    def block(self, number: int) -> array[int] | None:
        """The counts in block `number`, not to be changed; None where there is no such block."""
        found = self._blocks.get(number)
        if found is not None:
            self._blocks.move_to_end(number)
            return found
        offset = self.block_at(number)
        if offset == 0:
            return None
        found = counts.unpack(self.host.read(offset, self.cluster_size), self.order)
        self.keep(number, found)
        return found

    def keep(self, number: int, block: array[int]) -> None:
        """What the host has in block `number` now."""
        self._blocks[number] = block
        self._blocks.move_to_end(number)
        while len(self._blocks) > self._blocks_max:
            self._blocks.popitem(last=False)

    def get(self, cluster: int) -> int:
        """The count of a cluster; 0 for one past all that are counted."""
        number, at = divmod(cluster, self.per_block)
        block = self.block(number)
        return 0 if block is None else block[at]

    def are_one(self, first: int, count: int) -> bool:
        """Whether each of `count` clusters from `first` on is counted once."""
        for number, low, high in self.parts(first, count):
            block = self.block(number)
            if block is None or block[low:high].count(1) != high - low:
                return False
        return True

    def parts(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(block, first index, index past the last) of `count` clusters from `first` on."""
        at, end = first, first + count
        while at < end:
            number, low = divmod(at, self.per_block)
            high = min(self.per_block, low + end - at)
            yield number, low, high
            at += high - low

    def free_run(self, start: int, end: int, wanted: int, least: int = 1) -> tuple[int, int] | None:
        """(first, how many) of the first free clusters in [start, end): from `least` to `wanted`.
        """
        first = count = 0
        for at, length in self._free_parts(start, end):
            if at != first + count:
                first, count = at, 0
            count += length
            if count >= wanted:
                return first, wanted
            if count >= least and at + length < end and self.get(at + length):
                return first, count
        return (first, count) if count >= least else None

    def _free_parts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(first, how many) of free clusters, in order; a run that crosses blocks is in parts."""
        at = start
        while at < end:
            number, index = divmod(at, self.per_block)
            stop = min(self.per_block, index + end - at)
            block = self.block(number)
            if block is None:
                yield at, stop - index
            else:
                yield from _zeros(block, index, stop, number * self.per_block)
            at += stop - index


def _zeros(block: array[int], index: int, stop: int, base: int) -> Iterator[tuple[int, int]]:
    while index < stop:
        try:
            index = block.index(0, index, stop)
        except ValueError:
            return
        end = next((at for at in range(index, stop) if block[at]), stop)
        yield base + index, end - index
        index = end


class Changes:
    """Counts that are to change, by block.  Nothing is changed until `commit`."""

    def __init__(self, refcounts: Refcounts) -> None:
        self._refcounts = refcounts
        self._blocks: dict[int, array[int]] = {}
        self._spans: dict[int, tuple[int, int]] = {}  # Block -> first and last index changed.
        self._new: dict[int, int] = {}  # Block -> the host offset it is to have.

    def new_block(self, number: int, offset: int) -> None:
        """Block `number`, which there is none of, is to be at `offset`."""
        refcounts = self._refcounts
        self._blocks[number] = array(counts.code(refcounts.order), [0]) * refcounts.per_block
        self._spans[number] = (0, refcounts.per_block - 1)
        self._new[number] = offset

    def get(self, cluster: int) -> int:
        """The count of a cluster as it is to be."""
        number, at = divmod(cluster, self._refcounts.per_block)
        block = self._blocks.get(number)
        return self._refcounts.get(cluster) if block is None else block[at]

    def set(self, cluster: int, count: int) -> None:
        """Let `cluster` be counted `count` times.

        Raises Unsupported where that is more than the image's refcounts can say, Corrupt where
        there is no block for it.
        """
        self._check(count)
        self.set_run(cluster, 1, count)

    def _check(self, count: int) -> None:
        refcounts = self._refcounts
        if count > refcounts.count_max:
            raise Unsupported(
                f"its refcounts of {1 << refcounts.order} bits cannot count to {count}",
                path=refcounts.host.path,
                hint="qemu-img convert -o refcount_bits=16 makes an image that can",
            )

    def set_run(self, first: int, count: int, value: int) -> None:
        """As `set`, for `count` clusters from `first` on."""
        for number, low, high in self._refcounts.parts(first, count):
            block = self._changed(number, low, high - 1)
            block[low:high] = array(block.typecode, [value]) * (high - low)

    def _changed(self, number: int, low: int, high: int) -> array[int]:
        """Block `number`, of which indices `low` to `high` are to change."""
        block = self._blocks.get(number)
        if block is None:
            known = self._refcounts.block(number)
            if known is None:
                raise Corrupt(
                    f"clusters from {number * self._refcounts.per_block + low} on are in use, "
                    "and nothing counts them",
                    path=self._refcounts.host.path, hint="see vdisk check",
                )
            block = self._blocks[number] = known[:]
        first, last = self._spans.get(number, (low, high))
        self._spans[number] = min(first, low), max(last, high)
        return block

    def add(self, tally: Tally, page: int, difference: int) -> list[int]:
        """Count the clusters of a page of `tally` as often as that, times `difference`, more.

        The clusters that nobody uses then.  Raises as `set` does.
        """
        added = tally.page(page)
        gone: list[int] = []
        if added is None:
            return gone
        refcounts = self._refcounts
        for number, low, high in refcounts.parts(page * PAGE, PAGE):
            start = number * refcounts.per_block + low
            part = added[start % PAGE : start % PAGE + high - low]
            if any(part):
                block = self._changed(number, low, high - 1)
                old = block[low:high]
                new = [max(was + difference * n, 0) for was, n in zip(old, part, strict=True)]
                self._check(max(new))
                block[low:high] = array(block.typecode, new)
                pairs = enumerate(zip(old, new, strict=True), start)
                gone += [cluster for cluster, (was, now) in pairs if was and not now]
        return gone

    def lower(self, runs: Iterable[tuple[int, int]]) -> list[int]:
        """Take one off the count of each cluster in these runs; those that nobody uses now.

        One that is not counted, in a damaged image, stays so and is not given up.
        """
        freed: list[int] = []
        for run in runs:
            for number, low, high in self._refcounts.parts(*run):
                freed += self._lowered(number, low, high)
        return freed

    def _lowered(self, number: int, low: int, high: int) -> Iterator[int]:
        block = self._blocks.get(number) or self._refcounts.block(number)
        if block is None or not any(block[low:high]):
            return
        block = self._changed(number, low, high - 1)
        old = block[low:high]
        block[low:high] = array(block.typecode, [max(count, 1) - 1 for count in old])
        start = number * self._refcounts.per_block + low
        yield from (start + at for at, count in enumerate(old) if count == 1)

    def puts(self) -> Iterator[Put]:
        """Steps that write the counts: whole blocks where they are new, else what has changed."""
        refcounts = self._refcounts
        step = counts.per_byte(refcounts.order)
        for number, block in sorted(self._blocks.items()):
            first, last = self._spans[number]
            first, last = first // step * step, -(-(last + 1) // step) * step
            offset = self._new.get(number)
            before = None
            if offset is None:
                offset = refcounts.block_at(number)
                known = refcounts.block(number)
                assert known is not None
                before = counts.pack(known[first:last], refcounts.order)
            place = offset + counts.per_length(refcounts.order, first)
            data = counts.pack(block[first:last], refcounts.order)
            yield Put(refcounts.host, place, data, before=before)

    def table_puts(self) -> tuple[Put, ...]:
        """Steps that make the table name the new blocks."""
        table = self._refcounts.table
        return tuple(table.put(number, [at]) for number, at in sorted(self._new.items()))

    def commit(self) -> None:
        """The host has them."""
        for number, offset in self._new.items():
            self._refcounts.table.set(number, offset)
        for number, block in self._blocks.items():
            self._refcounts.keep(number, block)
