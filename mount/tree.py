"""What is shown: names, kinds, sizes and inode numbers.  No FUSE in it.

The tree holds a `DiskNode` for each disk that is shown, and `View`s for those of its parts that
have names; everything below `.vdisk/NAME/chs` is computed from the geometry and the inode number.
Everything here is quick but for `scan`, `load` and `DiskNode.refresh`, which read host files.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from mount.inodes import DISKS_MAX, META, PLACE_MAX, Inode, NodeKind, pack, unpack
from mount.views import View, ViewSet
from vdisk.disk import ImageDisk
from vdisk.errors import DiskError, InvalidArgument, NotFound
from vdisk.geometry import CHS, Geometry
from vdisk.open import choose_geometry, scan_table
from vdisk.record import store_geometry
from vdisk.store import Store
from vdisk.tables import Scan

META_NAME = ".vdisk"
_REPORT_NAMES = {"geometry": NodeKind.GEOMETRY, "info": NodeKind.INFO, "map": NodeKind.MAP}
_RETRY_SECONDS = 1.0  # How often a disk that could not be opened is tried again.

_log = logging.getLogger(__name__)


class DiskNode:
    """A disk that is shown: the open disk, its partition table as last read, and its views.

    Invariant: `scan` is what the table's bytes said when it was read, and `stale` is True if any
    byte in `scan.regions`, or the size, may have changed since.
    """

    def __init__(self, id_: int, name: str, store: Store, disk: ImageDisk) -> None:
        self.id = id_
        self.name = name
        self.store = store
        self.disk = disk
        self.growing = False  # Created through the mount and not closed yet.
        self.removed = False
        self.stale = True
        self.scan = Scan(None, ())
        self.whole = View(pack(NodeKind.DISK, id_), disk, 0, None)
        self.views = ViewSet(self.whole)
        self.partitions: dict[str, View] = {}
        self._by_place: dict[int, View] = {}
        self._by_range: dict[tuple[int, int, int], View] = {}
        self._serial = 0
        self._region_starts: list[int] = []

    def refresh(self) -> None:
        """Read the partition table again if it may have changed.  Reads the host file."""
        if not self.stale:
            return
        self.stale = False  # First, so that a write during the look makes it stale again.
        try:
            scan = scan_table(self.disk)
        except DiskError as error:
            _log.warning("%s", error)
            self.stale = True
            return
        self._show(scan)

    def _show(self, scan: Scan) -> None:
        unit = self.disk.sector_size
        ranges = {(p.number, p.start_lba * unit, p.sectors * unit) for p in scan.slices}
        self._by_range = {
            key: view for key, view in self._by_range.items() if key in ranges or view.handles
        }
        for number, start, length in sorted(ranges - self._by_range.keys()):
            self._serial = (self._serial + 1) % PLACE_MAX
            inode = pack(NodeKind.PARTITION, self.id, self._serial)
            self._by_range[number, start, length] = View(inode, self.disk, start, length)
        self._by_place = {unpack(view.inode).place: view for view in self._by_range.values()}
        self.partitions = {
            f"p{key[0]}": self._by_range[key] for key in sorted(ranges)
        }
        self.scan = scan
        self._region_starts = [start for start, _ in scan.regions]

    def written(self, start: int, end: int) -> None:
        """Bytes [start, end) of the disk were written: the table may have changed with them."""
        if self.stale:
            return
        at = bisect_right(self._region_starts, end - 1) - 1
        if at >= 0 and self.scan.regions[at][1] > start:
            self.stale = True

    def resized(self) -> None:
        """The disk has a new size: its table is read anew, its geometry follows.

        A recorded geometry keeps its heads and sectors and gets the cylinders that fit now.
        """
        self.stale = True
        self.views.forget_retained()
        refit(self.disk)

    def partition_view(self, place: int) -> View:
        """The view of a partition by the serial number in its inode; NotFound once it is gone."""
        try:
            return self._by_place[place]
        except KeyError:
            raise NotFound("this partition is not in the table any more") from None


def refit(disk: ImageDisk) -> None:
    """Fit a disk's geometry to the size it has now, and record it if one was recorded."""
    old = disk.choice
    if disk.sectors == 0:
        disk.choice = None
        return
    if old is None or old.source not in ("given", "stored"):
        disk.choice = choose_geometry(disk)
        return
    heads, per_track = old.geometry.heads, old.geometry.sectors_per_track
    cylinders = disk.sectors // (heads * per_track)
    if cylinders == 0:
        disk.choice = choose_geometry(disk)
        return
    fitted = Geometry(cylinders, heads, per_track, disk.sector_size)
    store_geometry(disk.image.hosts()[0], fitted)
    disk.choice = choose_geometry(disk, stored=fitted)


class Tree:
    """Every name in the mounted folder."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        self.nodes: dict[str, DiskNode] = {}
        self.problems: dict[str, str] = {}
        self._by_id: dict[int, DiskNode] = {}
        self._next_id = 0
        self._versions: list[object] = []
        self._failed_at = 0.0

    # Which disks there are

    def scan(self, *, strict: bool = False) -> None:
        """Open disks that appeared in the stores and drop those that went.  Reads host files.

        A disk that cannot be opened is left out, and `problems` says why; with `strict` it is
        raised instead.
        """
        self._versions = [store.version() for store in self.stores]
        self.problems = {}
        shown: set[str] = set()
        for store in self.stores:
            for name, path in store.names().items():
                shown.add(name)
                self._load(store, name, path, strict=strict)
        for name in [n for n in self.nodes if n not in shown]:
            node = self.nodes[name]
            if not node.views.handles and not node.growing:
                self.drop(node)
        if self.problems:
            self._failed_at = time.monotonic()

    def _load(self, store: Store, name: str, path: Path, *, strict: bool) -> None:
        node = self.nodes.get(name)
        if node is not None:
            if node.store is store:
                return
            raise InvalidArgument(
                f"{path} and {node.disk.address} would both be shown as {name}",
                hint="rename one of them, or mount them apart",
            )
        try:
            self.add(store, name, store.open(name))
        except DiskError as error:
            if strict:
                raise
            self.problems[name] = str(error)
            _log.warning("not shown: %s", error)

    def is_current(self) -> bool:
        """Whether the stores still hold what the last scan saw (a failed open is tried again)."""
        if self.problems and time.monotonic() - self._failed_at > _RETRY_SECONDS:
            return False
        return self._versions == [store.version() for store in self.stores]

    def saw_own_change(self) -> None:
        """A change to the stores came through this mount, and the tree knows it already."""
        self._versions = [store.version() for store in self.stores]

    def add(self, store: Store, name: str, disk: ImageDisk) -> DiskNode:
        """Show an open disk."""
        for _ in range(DISKS_MAX):
            self._next_id = (self._next_id + 1) % DISKS_MAX
            if self._next_id not in self._by_id:
                break
        node = DiskNode(self._next_id, name, store, disk)
        self.nodes[name] = self._by_id[node.id] = node
        return node

    def drop(self, node: DiskNode) -> None:
        """Stop showing a disk and close it."""
        node.removed = True
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
        self._by_id.pop(node.id, None)
        node.disk.close()

    def renamed(self, node: DiskNode, name: str) -> None:
        """Show `node` under another name."""
        del self.nodes[node.name]
        node.name = name
        self.nodes[name] = node

    def node_of(self, inode: int) -> DiskNode:
        """The disk an inode belongs to; NotFound once it is gone."""
        try:
            return self._by_id[unpack(inode).disk]
        except (KeyError, ValueError):
            raise NotFound("no such disk any more") from None

    # Names

    def resolve(self, name: str) -> DiskNode | None:
        """The disk that `name` means: a shown name, or the host file's full name."""
        node = self.nodes.get(name)
        if node is None:
            for store in self.stores:
                shown = store.resolve(name)
                if shown is not None:
                    return self.nodes.get(shown)
        return node

    def partition_owner(self, name: str) -> tuple[DiskNode, str] | None:
        """(disk, "p1") where `name` has the form of a partition of a disk that is shown."""
        base, dot, part = name.rpartition(".")
        node = self.nodes.get(base)
        if not dot or node is None or not part.startswith("p") or not part[1:].isdecimal():
            return None
        return node, part

    def lookup_below(self, parent: int, name: str) -> int:
        """The inode of `name` in a folder below the root.  NotFound where there is none."""
        if parent == META:
            node = self.nodes.get(name)
            if node is None:
                raise NotFound("no such disk", path=name)
            return pack(NodeKind.META_DISK, node.id)
        node = self.node_of(parent)
        found = _child(unpack(parent), name, node.disk)
        if found is None:
            raise NotFound("no such name", path=name)
        return found

    def entries_below(self, inode: int, start: int) -> Iterator[tuple[str, int, int]]:
        """(name, inode, next start) of a folder below the root, from position `start` on."""
        if inode == META:
            named = list(self.nodes.items())
            for at in range(start, len(named)):
                yield named[at][0], pack(NodeKind.META_DISK, named[at][1].id), at + 1
            return
        node = self.node_of(inode)
        yield from _children(unpack(inode), start, node.disk)

    def view(self, inode: int) -> tuple[DiskNode, View]:
        """The disk and view of an inode that holds guest bytes."""
        node = self.node_of(inode)
        kind, _, place = unpack(inode)
        if kind is NodeKind.DISK:
            return node, node.whole
        if kind is NodeKind.PARTITION:
            return node, node.partition_view(place)
        existing = node.views.known.get(inode)
        if existing is not None:
            return node, existing
        start, length = placed(kind, place, node.disk.geometry)
        node.disk.check_range(start, length)
        return node, View(inode, node.disk, start, length, cacheable=False)


def placed(kind: NodeKind, place: int, geometry: Geometry) -> tuple[int, int]:
    """(start, length) in bytes of a sector, track or cylinder file."""
    unit = {
        NodeKind.SECTOR: geometry.sector_size,
        NodeKind.TRACK: geometry.track_bytes,
        NodeKind.CYLINDER: geometry.cylinder_bytes,
    }[kind]
    return place * unit, unit


def _has_chs(disk: ImageDisk) -> bool:
    return disk.choice is not None and disk.choice.geometry.sectors <= PLACE_MAX


def _number(name: str, low: int, count: int) -> int | None:
    """`name` as a number in [low, low + count), written the one canonical way."""
    if not name.isascii() or not name.isdecimal() or len(name) > 20:
        return None
    number = int(name)
    return number if str(number) == name and low <= number < low + count else None


def _child(parent: Inode, name: str, disk: ImageDisk) -> int | None:
    kind, id_, place = parent
    if kind is NodeKind.META_DISK:
        if name == "chs" and _has_chs(disk):
            return pack(NodeKind.CHS, id_)
        report = _REPORT_NAMES.get(name)
        return None if report is None else pack(report, id_)
    if not _has_chs(disk):
        return None
    geometry = disk.geometry
    if kind is NodeKind.CHS:
        cylinder = _number(name, 0, geometry.cylinders)
        return None if cylinder is None else pack(NodeKind.CYLINDER_FOLDER, id_, cylinder)
    if kind is NodeKind.CYLINDER_FOLDER:
        if name == "cylinder":
            return pack(NodeKind.CYLINDER, id_, place)
        head = _number(name, 0, geometry.heads)
        track = None if head is None else place * geometry.heads + head
        return None if track is None else pack(NodeKind.HEAD_FOLDER, id_, track)
    if kind is NodeKind.HEAD_FOLDER:
        if name == "track":
            return pack(NodeKind.TRACK, id_, place)
        sector = _number(name, 1, geometry.sectors_per_track)
        if sector is not None:
            return pack(NodeKind.SECTOR, id_, geometry.lba(_address(place, sector, geometry)))
    return None


def _address(track: int, sector: int, geometry: Geometry) -> CHS:
    cylinder, head = divmod(track, geometry.heads)
    return CHS(cylinder, head, sector)


def _children(parent: Inode, start: int, disk: ImageDisk) -> Iterator[tuple[str, int, int]]:
    """The names in a folder under `.vdisk/NAME`; position 0 is the one that is not a number."""
    kind, id_, _ = parent
    if kind is NodeKind.META_DISK:
        names = [*_REPORT_NAMES, "chs"] if _has_chs(disk) else [*_REPORT_NAMES]
        for at in range(start, len(names)):
            inode = _child(parent, names[at], disk)
            assert inode is not None
            yield names[at], inode, at + 1
        return
    if not _has_chs(disk):
        return
    geometry = disk.geometry
    if kind is NodeKind.CHS:
        for cylinder in range(start, geometry.cylinders):
            yield str(cylinder), pack(NodeKind.CYLINDER_FOLDER, id_, cylinder), cylinder + 1
        return
    if kind is NodeKind.CYLINDER_FOLDER:
        first, count, low = "cylinder", geometry.heads, 0
    else:
        first, count, low = "track", geometry.sectors_per_track, 1
    for at in range(start, count + 1):
        name = first if at == 0 else str(at - 1 + low)
        inode = _child(parent, name, disk)
        assert inode is not None
        yield name, inode, at + 1

