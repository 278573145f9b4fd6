"""QCOW2: where a guest's clusters are, and what changes it.

The header names an L1 table, that names L2 tables, and those name clusters.  Every cluster of the
file has a refcount: it may be shared with an internal snapshot, and is then copied before it is
written to.

The order of writes is told where it is decided: `write` for guest clusters, `space` for refcounts,
`resize` and `snapshots` for the rest.  An image that is no overlay has its entries in the host when
a write is acknowledged, so that a killed process loses nothing; an overlay's wait in memory until
the guest flushes.

Source: QEMU, `docs/interop/qcow2.rst`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.codec import Codec, Deflate, Zstd
from vdisk.errors import Corrupt
from vdisk.extent import Extent, Host, Kind, Unit, merged
from vdisk.formats.base import ImageFormat, Problem, Snapshot
from vdisk.formats.qcow2 import backing, check, rebuild, resize, snapshots, write
from vdisk.formats.qcow2.entry import COMPRESSED, COPIED, OFFSET, ZERO, Entries, Entry
from vdisk.formats.qcow2.header import SUBCLUSTERS, Compatible, Header, Incompatible
from vdisk.formats.qcow2.l2 import L2, open_l1
from vdisk.formats.qcow2.refcounts import Refcounts
from vdisk.formats.qcow2.snapshot_table import SnapshotTable
from vdisk.formats.qcow2.space import Space
from vdisk.host import HostFile
from vdisk.plan import Barrier, Copy, Grow, Plan, Plans, Put, Step

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk

_SNAPSHOTS_SHOWN = 1000
_WAITING_PAGES_MAX = 256  # An overlay's entries that wait are written when there are more.


class Qcow2(ImageFormat):
    """An open QCOW2 image.  `data` holds the guest's clusters: `host`, or the external data file.

    `damage` says why nothing is written to any more, None where nothing is known to be wrong.
    """

    name: ClassVar[str] = "qcow2"
    frees_on_discard: ClassVar[bool] = True

    def __init__(
        self, host: HostFile, header: Header, parent: ImageDisk | None, data: HostFile | None
    ) -> None:
        self.host = host
        self.data = data or host
        self.parent = parent
        self.damage: str | None = None
        self.waits = parent is not None
        self.entries = Entries(header)
        self.refcounts = Refcounts(host, header)
        self.space = Space(self)
        self._bits = header.cluster_bits
        self._inside = header.cluster_size - 1
        self._codec: Codec = Zstd() if header.compression else Deflate(-15)
        self.take(header)
        self.note_end()

    def take(self, header: Header) -> None:
        """Go by `header` from now on, which the host has already: its size and its L1 table."""
        self.header = header
        self.size = header.size
        self.is_clear_past_end = False  # No entry past the disk's end has a place.
        self.l1 = open_l1(self.host, header.l1_offset, header.l1_entries)
        self.l2 = L2(self.host, header, self.l1)
        self.snapshot_table = SnapshotTable(self.host, header)
        self.note_metadata()

    def note_metadata(self) -> None:
        """Remember where the tables are that a guest's cluster can never be in."""
        header = self.header
        self.fixed = (
            ("the header", 0, header.cluster_size),
            ("the L1 table", header.l1_offset, header.l1_offset + 8 * header.l1_entries),
            ("the refcount table", header.refcount_table_offset, header.refcount_table_offset
             + header.refcount_table_clusters * header.cluster_size),
            ("the table of snapshots", header.snapshots_offset,
             header.snapshots_offset + min(header.snapshots, 1)),
        )  # fmt: skip

    def note_end(self) -> None:
        """Remember where the host file ends: no guest cluster is past that."""
        self._end = self.header.clusters(self.host.size()) << self._bits

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.host,) if self.data is self.host else (self.host, self.data)

    @property
    def written_hosts(self) -> tuple[Host, ...]:
        """What a barrier is about."""
        return self.hosts()

    @property
    def end_cluster(self) -> int:
        """The first cluster past the end of the host file."""
        return self.header.clusters(self.host.size())

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        return merged(self._runs(offset, length))

    def _runs(self, offset: int, length: int) -> Iterator[Extent]:
        index, end = offset >> self._bits, -(-(offset + length) >> self._bits)
        per_table = self.header.l2_entries
        while index < end:
            number = index // per_table
            if self.l2.table_at(number) == 0:
                stop = min(end, (number + 1) * per_table)
                start = max(index << self._bits, offset)
                yield from self.beneath(start, (stop << self._bits) - start)
                index = stop
                continue
            count, entry = self._same(index, end)
            for extent in self._extents(entry, index << self._bits, count << self._bits, offset):
                if extent.guest_offset < offset + length:  # Not all subclusters of the last one.
                    yield extent
            index += count

    def _same(self, index: int, end: int) -> tuple[int, Entry]:
        """The entry of a cluster, and how many there are from it on that continue it."""
        if self.header.extended:
            return 1, self.entry(index)
        get = self.l2.get
        word = get(index)
        entry = self._entry(word)
        count = 1
        if entry.packed is None:
            step = 0 if entry.place is None else 1 << self._bits
            while index + count < end and get(index + count) == word + step * count:
                count += 1
        return count, entry

    def entry_runs(self, index: int, end: int) -> Iterator[tuple[int, Entry]]:
        """(how many, the first one's entry) of guest clusters [index, end), those in one run that
        continue each other.
        """
        while index < end:
            count, entry = self._same(index, end)
            yield count, entry
            index += count

    def _extents(self, entry: Entry, at: int, length: int, offset: int) -> Iterator[Extent]:
        """The map of `length` bytes from `at` on, which `entry` says."""
        if entry.packed is not None:
            self._check_place(entry.packed.offset, 1)
            unit = Unit(entry.packed.length, length, self._codec)
            yield Extent(at, length, Kind.COMPRESSED, self.host, entry.packed.offset, unit=unit)
            return
        if entry.place is not None and entry.allocated:
            self._check_place(entry.place, length)
        if not self.header.extended:
            yield from self._part(entry, 0, at, at, length, offset)
            return
        unit_size = self.header.unit
        first = 0
        while first < SUBCLUSTERS:
            bits = entry.allocated >> first & 1, entry.zeros >> first & 1
            last = first + 1
            while last < SUBCLUSTERS and bits == (
                entry.allocated >> last & 1, entry.zeros >> last & 1
            ):
                last += 1
            start = at + first * unit_size
            if offset < at + last * unit_size:
                yield from self._part(entry, first, at, start, (last - first) * unit_size, offset)
            first = last

    def _part(
        self, entry: Entry, part: int, at: int, start: int, length: int, offset: int
    ) -> Iterator[Extent]:
        """The map of parts of a cluster at `at` that are all like `part`, which begins at `start`.
        """
        if entry.allocated >> part & 1:
            assert entry.place is not None
            place = entry.place + start - at
            yield Extent(start, length, Kind.DATA, self.data, place, not entry.owned)
        elif entry.zeros >> part & 1:
            yield Extent(start, length, Kind.ZERO)
        else:
            # The parent may end inside the first cluster, before the request begins.
            first = max(start, offset)
            yield from self.beneath(first, start + length - first)

    def entry(self, index: int) -> Entry:
        """What guest cluster `index` maps to.  Raises Corrupt and HostError."""
        if not self.header.extended:
            return self._entry(self.l2.get(index))
        # Another thread may be setting the two words, the first one first.
        bitmap = self.l2.get(2 * index + 1)
        while True:
            word = self.l2.get(2 * index)
            again = self.l2.get(2 * index + 1)
            if again == bitmap:
                return self._entry(word, bitmap)
            bitmap = again

    def _entry(self, word: int, bitmap: int = 0) -> Entry:
        try:
            return self.entries.read(word, bitmap)
        except Corrupt as error:
            error.path = error.path or str(self.host.path)
            raise

    def _check_place(self, place: int, length: int) -> None:
        """Raise Corrupt for clusters that lie outside the file, or where tables are."""
        if self.header.has_data_file:
            return
        if place + length > self._end:
            self.note_end()
        what = None
        if place + length > self._end:
            what = "past the end of the file"
        for name, start, end in self.fixed:
            if place < end and place + length > start:
                what = f"over {name}"
        if what is not None:
            raise Corrupt(
                f"a guest cluster is said to be at {place}, {what}", path=self.host.path,
                hint="see vdisk check",
            )

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        index, inside = offset >> self._bits, offset & self._inside
        if inside + length > self._inside + 1:
            return None
        if self.header.extended:
            return self._locate_parts(index, inside, offset, length)
        word = self.l2.peek(index)
        if word is None or word & COMPRESSED:
            return None
        if word & ZERO:
            return (Kind.ZERO, None, 0) if self.header.has_zero_flag else None
        if word & COPIED:
            return self._located(word & OFFSET, inside)
        return self._nothing(offset, length) if word & OFFSET == 0 else None

    def _located(self, place: int, inside: int) -> tuple[Kind, Host | None, int] | None:
        if self.header.has_data_file:
            return Kind.DATA, self.data, place + inside
        if place & self._inside or place + self._inside >= self._end:
            return None
        for _, start, end in self.fixed:
            if start <= place < end:
                return None
        return Kind.DATA, self.data, place + inside

    def _locate_parts(
        self, index: int, inside: int, offset: int, length: int
    ) -> tuple[Kind, Host | None, int] | None:
        bitmap, word = self.l2.peek(2 * index + 1), self.l2.peek(2 * index)
        if bitmap is None or word is None or word & COMPRESSED:
            return None
        mask = write.parts(self, inside, inside + length)
        if bitmap & mask == mask and word & COPIED:
            return self._located(word & OFFSET, inside)
        if bitmap >> SUBCLUSTERS & mask == mask:
            return Kind.ZERO, None, 0
        return None if (bitmap | bitmap >> SUBCLUSTERS) & mask else self._nothing(offset, length)

    def _nothing(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        if self.parent is None:
            return Kind.ZERO, None, 0
        if offset + length <= self.parent.size:
            return Kind.PARENT, self.parent, offset
        return None

    def is_hole(self, place: int, length: int) -> bool:
        """Whether the data file has nothing there, so that it reads as zeros."""
        return not any(is_data for _, _, is_data in self.data.ranges(place, length))

    def data_grow(self, end: int) -> Grow:
        """The step that makes the data file as large as what is written to it, and no larger."""
        return Grow(self.data, min(end, self.size) if self.header.data_file_is_raw else end)

    def metadata_in(self, first: int, count: int) -> str | None:
        """What lies in `count` clusters from `first` on that are said to be free, if anything does.
        """
        start, end = first << self._bits, first + count << self._bits
        for name, low, high in self.fixed:
            if low < end and high > start:
                return name
        for name, table in (("an L2 table", self.l1), ("a refcount block", self.refcounts.table)):
            for _, page in table.runs():
                if any(start <= word & OFFSET < end for word in page if word):
                    return name
        return None

    # Changes

    def prepare(self, index: int) -> Plan | None:
        """What has to be done before the entry of guest cluster `index` is changed, if anything.

        Begins a new plan.  Raises Corrupt where the image is not to be written to.
        """
        self.check_sound()
        self.space.begin()
        if self.l2.pages_waiting > _WAITING_PAGES_MAX or self.space.has_freed_much:
            return self.plan_flush()
        number = index // self.header.l2_entries
        return None if self.l2.is_owned(number) else self._plan_table(number)

    def check_sound(self) -> None:
        """Raise Corrupt where the image is not to be written to."""
        if self.damage is not None:
            raise Corrupt(self.damage, path=self.host.path, hint="see vdisk check")

    def _plan_table(self, number: int) -> Plan:
        """An L2 table of our own: a clean cluster, or a copy of the one a snapshot has too."""
        taken = self.space.take(1)
        if taken is None:
            return self.space.plan_more()
        old, new = self.l2.table_at(number), taken[0] << self._bits
        steps: list[Step] = []
        if old:
            steps += (Copy(self.host, old, new, self._inside + 1), Barrier((self.host,)))
        steps.append(self.l1.put(number, [new | COPIED]))

        def done() -> None:
            self.space.settle()
            self.l1.set(number, new | COPIED)
            if old:
                self.space.give_up(old >> self._bits, 1)

        return Plan(tuple(steps), done)

    def plan_write(self, offset: int, length: int) -> Plan:
        return write.allocate(self, offset, length)

    def plan_zero(self, offset: int, length: int) -> Plan:
        return write.clear(self, offset, length)

    def plan_discard(self, offset: int, length: int) -> Plan:
        return write.clear(self, offset, length)

    def plan_resize(self, size: int) -> Plan:
        self.check_sound()
        return resize.plan_resize(self, size)

    def plan_first_write(self) -> Plan | None:
        """Refcounts that may be wrong are made anew; features of which we know nothing are off."""
        if Incompatible.CORRUPT in self.header.incompatible:
            raise Corrupt(
                "is marked as corrupt: it can be read, and not be written to",
                path=self.host.path, hint="vdisk check --repair may help",
            )
        if Incompatible.DIRTY in self.header.incompatible:
            return rebuild.plan_rebuild(self, rebuild.without_autoclear(self.header))
        new = rebuild.without_autoclear(self.header)
        return None if new == self.header else self.plan_header(new)

    def plan_flush(self) -> Plan | None:
        if not self.has_waiting:
            return None
        self.check_sound()
        self.space.begin()
        return self._plan_end(*self.space.release())

    @property
    def has_waiting(self) -> bool:
        """Whether something is in memory that the host has not yet."""
        return bool(self.l2.pages_waiting) or self.space.has_freed

    def plan_close(self) -> Plan | None:
        return None if self.damage is not None else self._plan_end(*self.space.end_steps())

    def _plan_end(self, released: tuple[Step, ...], changes: Any) -> Plan:
        """Write what waits, then give up what that was the last to point to.

        What the counts say after that need not be durable: they are too high at worst.
        """
        sync = Barrier(self.written_hosts)
        waiting = tuple(self.l2.waiting_puts())
        steps: tuple[Step, ...] = (sync, *waiting, sync) if waiting else (sync,)

        def done() -> None:
            self.l2.written()
            self.space.released(changes)

        return Plan((*steps, *released), done, exclusive=bool(released))

    # The header

    def put_header(self, header: Header) -> Put:
        """The step that writes another header."""
        return Put(self.host, 0, header.pack(), before=self.header.pack())

    def plan_header(self, header: Header) -> Plan:
        """Write a header that changes neither the size nor where anything is; durable when done."""

        def done() -> None:
            self.header = header

        return Plan((self.put_header(header), Barrier((self.host,))), done)

    def plan_damage(self, what: str) -> Plan:
        """Mark the image as corrupt; from then on nothing is written to it."""
        bits = self.header.incompatible
        if self.header.version >= 3:
            bits |= Incompatible.CORRUPT
        header = replace(self.header, incompatible=bits)

        def done() -> None:
            self.header = header
            self.damage = f"its tables contradict each other: {what}"

        return Plan((self.put_header(header), Barrier((self.host,))), done)

    # What is beneath

    def plan_parent(
        self, parent: ImageDisk | None, name: str | None, *, any_state: bool = False
    ) -> Plan:
        return backing.plan_parent(self, parent, name)

    def creation_options(self) -> dict[str, str]:
        header = self.header
        return {
            "cluster-size": str(header.cluster_size),
            "compat": "1.1" if header.version >= 3 else "0.10",
            "extended-l2": "on" if header.extended else "off",
            "refcount-bits": str(1 << header.refcount_order),
            "lazy-refcounts": "on" if header.compatible & Compatible.LAZY_REFCOUNTS else "off",
            "compression-type": "zstd" if header.compression else "zlib",
        }

    # Snapshots

    def snapshots(self) -> list[Snapshot]:
        return [entry.snapshot for entry in self.snapshot_table]

    def plan_snapshot(self, name: str) -> Plans:
        return snapshots.plan_taking(self, name)

    def plan_apply_snapshot(self, id: str) -> Plans:
        return snapshots.plan_applying(self, id)

    def plan_delete_snapshot(self, id: str) -> Plans:
        return snapshots.plan_deleting(self, id)

    # What it is like

    def check(self) -> Iterator[Problem]:
        return check.check(self)

    def info(self) -> dict[str, Any]:
        header = self.header
        found: dict[str, Any] = {
            "version": header.version,
            "cluster_size": header.cluster_size,
            "refcount_bits": 1 << header.refcount_order,
            "compression": "zstd" if header.compression else "zlib",
            "extended_l2": header.extended,
            "lazy_refcounts": bool(header.compatible & Compatible.LAZY_REFCOUNTS),
            "dirty": Incompatible.DIRTY in header.incompatible,
            "corrupt": Incompatible.CORRUPT in header.incompatible,
            "snapshots": [],
        }
        try:
            for entry in islice(self.snapshot_table, _SNAPSHOTS_SHOWN):
                found["snapshots"].append(entry.snapshot.describe())
        except Corrupt as error:
            found["problem"] = error.message
        if header.backing is not None:
            found["backing_file"] = header.backing
            found["backing_format"] = header.backing_format
        if header.data_file is not None:
            found["data_file"] = header.data_file
            found["data_file_is_raw"] = header.data_file_is_raw
        return found
