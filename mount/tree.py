"""What is shown: names, kinds, sizes and inode numbers.  No FUSE in it.

The tree holds a `DiskNode` for each disk that is shown, and `View`s for those of its parts that
have names; everything below `.vdisk/NAME/chs` is computed from the geometry and the inode number.
Everything here is quick but for `Tree.look` and `DiskNode.refresh`, which read host files and so
run in worker threads.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mount.errors import Gone
from mount.inodes import DISKS_MAX, META, PLACE_MAX, Inode, NodeKind, pack, unpack
from mount.views import Backing, View, ViewSet
from vdisk.errors import DiskError, InvalidArgument, NotFound
from vdisk.geometry import CHS, Geometry
from vdisk.image_disk import ImageDisk
from vdisk.partitions import scan_table
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

    def __init__(
        self, id_: int, name: str, store: Store, path: Path, identity: object, disk: ImageDisk
    ) -> None:
        self.id = id_
        self.name = name
        self.store = store
        self.path = path
        self.identity = identity  # The store's; it tells which file a name belongs to.
        self.disk = disk
        self.growing = False  # Created through the mount and not closed yet.
        self.removed = False
        self.nameless = False  # Its host file has no name any more; it goes when it is closed.
        self.exclusive = False  # Being removed, renamed or resized: opens wait.
        self.stale = True
        self.backing: Backing | None = None  # For passthrough; None: not asked for yet.
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
        for key, view in list(self._by_range.items()):
            if key not in ranges and not view.handles:
                del self._by_range[key]
                self.views.known.pop(view.inode, None)
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
        """The disk has a new size: its table is read anew, and no page kept of it is right."""
        self.stale = True
        self.views.forget_retained()

    def keep_backing(self, found: Backing) -> None:
        """Keep how the kernel reaches the host file, unless another open was faster."""
        if self.backing is None:
            self.backing = found
        else:
            found.close()

    def close(self) -> None:
        """Close the disk, and end what lets the kernel reach its host file."""
        backing, self.backing = self.backing, Backing()
        if backing is not None:
            backing.close()
        self.disk.close()

    def partition_view(self, place: int) -> View:
        """The view of a partition by the serial number in its inode; Gone once it is."""
        try:
            return self._by_place[place]
        except KeyError:
            raise Gone("this partition is not in the table any more") from None


class Found(NamedTuple):
    """A file that a store holds.  `identity` stays when it is renamed, unlike `path`."""

    store: Store
    path: Path
    identity: object


@dataclass(slots=True)
class Look:
    """What the stores held at one moment: name -> file, and the disks that were opened anew."""

    versions: dict[Store, object]
    files: dict[str, Found] = field(default_factory=dict)
    opened: dict[str, ImageDisk] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def add(
        self, store: Store, name: str, path: Path, known: set[tuple[Store, object]], *, keep: bool
    ) -> None:
        """Note a file, and open it unless it is in `known`.  Raises what opening it raises.

        With `keep`, what was found out or given about it is recorded with it at once.
        """
        if name in self.files:
            raise InvalidArgument(
                f"{self.files[name].path} and {path} would both be shown as {name}",
                hint="rename one of them, or mount them apart",
            )
        found = Found(store, path, store.identity(path))
        if (store, found.identity) not in known:
            disk = store.open(name)
            try:
                if keep:
                    store.keep(disk)
            except BaseException:
                disk.close()
                raise
            self.opened[name] = disk
        self.files[name] = found


class Tree:
    """Every name in the mounted folder."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        self.nodes: dict[str, DiskNode] = {}
        self.problems: dict[str, str] = {}
        self._by_id: dict[int, DiskNode] = {}
        self._next_id = 0
        self._versions: dict[Store, object] = {}
        self._failed_at = 0.0

    # Which disks there are

    def disks(self) -> list[DiskNode]:
        """Every open disk, those with no name any more as well."""
        return list(self._by_id.values())

    def known(self) -> set[tuple[Store, object]]:
        """The (store, identity) of files that are open already, for `look`."""
        return {(node.store, node.identity) for node in self.nodes.values()}

    def look(
        self, known: set[tuple[Store, object]], *, strict: bool = False, keep: bool = True
    ) -> Look:
        """Look into the stores and open what is not in `known`.  Reads host files.

        A disk that cannot be opened is left out, and `problems` says why; with `strict` it is
        raised instead.  With `keep` False nothing is changed in a host file, as long as it is not
        certain that there will be a mount; `Tree.keep` does it then.
        """
        look = Look({store: store.version() for store in self.stores})
        for store in self.stores:
            for name, path in store.names().items():
                try:
                    look.add(store, name, path, known, keep=keep)
                except DiskError as error:
                    if strict:
                        raise
                    look.problems[name] = str(error)
                    _log.warning("not shown: %s", error)
        return look

    def show(self, look: Look) -> None:
        """Name all disks as `look` found them, add those it opened and drop those that went.

        A file that was replaced is another disk, one that was renamed is the same.  A disk that
        is open loses its name like any file, and is closed when its last user is done.
        """
        self._versions, self.problems = look.versions, look.problems
        open_already = {(node.store, node.identity): node for node in self.nodes.values()}
        shown: dict[str, DiskNode] = {}
        for name, found in look.files.items():
            node = open_already.pop((found.store, found.identity), None)
            if node is None and name in look.opened:
                node = self.add(name, found, look.opened[name])
            if node is not None:
                node.name, node.path = name, found.path
                shown[name] = node
        for node in open_already.values():
            node.nameless = True
            self.drop_unused(node)
        self.nodes = shown
        if self.problems:
            self._failed_at = time.monotonic()

    def keep(self) -> list[str]:
        """Record with each disk what was found out or given about it; a warning for each failure.

        Writes to host files, so it runs in a worker thread.
        """
        told = (node.store.keep(node.disk) for node in list(self.nodes.values()))
        return [warning for warning in told if warning is not None]

    def is_current(self) -> bool:
        """Whether the stores still hold what the last scan saw (a failed open is tried again)."""
        if self.problems and time.monotonic() - self._failed_at > _RETRY_SECONDS:
            return False
        return all(self.is_unchanged(store) for store in self.stores)

    def is_unchanged(self, store: Store) -> bool:
        """Whether that store still holds what the last scan saw."""
        return store in self._versions and store.version() == self._versions[store]

    def add(self, name: str, found: Found, disk: ImageDisk) -> DiskNode:
        """Show an open disk."""
        for _ in range(DISKS_MAX):
            self._next_id = (self._next_id + 1) % DISKS_MAX
            if self._next_id not in self._by_id:
                break
        node = DiskNode(self._next_id, name, *found, disk)
        self.nodes[name] = self._by_id[node.id] = node
        return node

    def drop(self, node: DiskNode) -> None:
        """Stop showing a disk and close it."""
        node.removed = True
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
        self._by_id.pop(node.id, None)
        node.close()

    def drop_unused(self, node: DiskNode) -> None:
        """Close a disk that has no name any more, unless somebody has it open."""
        if node.nameless and not node.views.handles and not node.removed:
            self.drop(node)

    def node_of(self, inode: int) -> DiskNode:
        """The disk an inode belongs to; Gone once it is."""
        try:
            return self._by_id[unpack(inode).disk]
        except (KeyError, ValueError):
            raise Gone("no such disk any more") from None

    # Names

    def resolve(self, name: str) -> DiskNode | None:
        """The disk that `name` means: a shown name, or the host file's full name."""
        node = self.nodes.get(name)
        if node is None:
            node = next((n for n in self.nodes.values() if n.path.name == name), None)
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

