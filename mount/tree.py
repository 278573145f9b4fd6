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
from mount.views import Backing, View, ViewSet, VolumeView
from vdisk.drive import Drive
from vdisk.errors import DiskError, InvalidArgument, NotFound
from vdisk.find_drives import DrivesFound, find_drives
from vdisk.geometry import CHS, Geometry
from vdisk.image_disk import ImageDisk
from vdisk.partitions import scan_table
from vdisk.store import Store
from vdisk.tables import Region, Scan, apart
from vdisk.tables.lvm2 import Volume, VolumeMap

META_NAME = ".vdisk"
_REPORT_NAMES = {"geometry": NodeKind.GEOMETRY, "info": NodeKind.INFO, "map": NodeKind.MAP}
_RETRY_SECONDS = 1.0  # How often a disk that could not be opened is tried again.

_log = logging.getLogger(__name__)

Stale = tuple[View, int, int]
"""A view, and bytes [start, end) of the disk that the kernel must not keep pages of under it."""


class DiskNode:
    """A disk that is shown: the open disk, its partition table as last read, and its views.

    Invariant: `scan` and `parts` are what the bytes in `regions` said when they were read, and
    `stale` is True if any of those bytes, or the size, may have changed since.
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
        self.resized_open = False  # While it was open, so that its store may hold what it gave up.
        self.nameless = False  # Its host file has no name any more; it goes when it is closed.
        self.exclusive = False  # Being removed, renamed or resized: opens wait.
        self.stale = True
        self.backing: Backing | None = None  # For passthrough; None: not asked for yet.
        self.scan = Scan(None, ())
        self.whole = View(pack(NodeKind.DISK, id_), disk, 0, None)
        self.views = ViewSet(self.whole)
        self.parts: dict[str, View] = {}  # Partitions (p1), and volumes on it (p2.root).
        self.drives: list[Drive] = []
        self.regions: tuple[Region, ...] = ()
        self._by_place: dict[int, View] = {}
        self._by_content: dict[object, View] = {}
        self._told: set[str] = set()
        self._serial = 0
        self._region_starts: list[int] = []

    def refresh(self) -> None:
        """Read the partition table again if it may have changed.  Reads the host file."""
        if not self.stale:
            return
        self.stale = False  # First, so that a write during the look makes it stale again.
        try:
            scan = scan_table(self.disk)
            found = find_drives(self.disk, scan.table)
        except DiskError as error:
            _log.warning("%s", error)
            self.stale = True
            return
        for problem in found.problems.values():
            self._tell(str(problem))
        self._show(scan, found)

    def _tell(self, problem: str) -> None:
        """Once, however often it is met."""
        if problem not in self._told:
            self._told.add(problem)
            _log.warning("%s", problem)

    def _show(self, scan: Scan, found: DrivesFound) -> None:
        shown = {**self._partitions(scan), **self._volumes(found)}
        for key, view in list(self._by_content.items()):
            if key not in shown.values() and not view.handles:
                del self._by_content[key]
                self.views.known.pop(view.inode, None)
        self._by_place = {unpack(view.inode).place: view for view in self._by_content.values()}
        self.parts = {name: self._by_content[key] for name, key in shown.items()}
        self.scan, self.drives = scan, found.drives
        self.regions = apart((*scan.regions, *found.regions))
        self._region_starts = [start for start, _ in self.regions]

    def _partitions(self, scan: Scan) -> dict[str, object]:
        """The key in `_by_content` of each partition, by its name; views are made where needed."""
        unit = self.disk.sector_size
        keys: dict[str, object] = {}
        for one in scan.slices:
            start, length = one.start_lba * unit, one.sectors * unit
            keys[f"p{one.number}"] = key = (one.number, start, length)
            if key not in self._by_content:
                self._by_content[key] = View(self._part_inode(), self.disk, start, length)
        return keys

    def _volumes(self, found: DrivesFound) -> dict[str, object]:
        """Likewise of each volume on the disk; one that cannot be opened is told of in the log."""
        keys: dict[str, object] = {}
        for drive in found.drives:
            place = next(iter(drive.places.values())).name
            for name, volume in drive.volumes().items():
                shown = f"{place}.{name}" if place else name
                try:
                    keys[shown] = self._volume(shown, drive, volume)
                except DiskError as error:
                    self._tell(f"not shown: {error}")
        return keys

    def _volume(self, shown: str, drive: Drive, volume: Volume) -> object:
        """The key of a volume, by its name and its map: with another one, it is another file."""
        if volume.problem is None:
            key = (shown, volume.lv.id, VolumeMap(drive.group.vg, volume.lv).signature)
            if key in self._by_content:
                return key
        disk = drive.open(volume.name)
        self._by_content[key] = VolumeView(self._part_inode(), disk, 0, disk.size, False)
        return key

    def _part_inode(self) -> int:
        self._serial = (self._serial + 1) % PLACE_MAX
        return pack(NodeKind.PARTITION, self.id, self._serial)

    def written(self, start: int, end: int) -> None:
        """Bytes [start, end) of the disk were written: the table may have changed with them."""
        if self.stale:
            return
        at = bisect_right(self._region_starts, end - 1) - 1
        if at >= 0 and self.regions[at][1] > start:
            self.stale = True

    def written_by(self, view: View, offset: int, length: int) -> None:
        """Bytes [offset, offset + length) of a view of the disk were written."""
        for start, end in view.ranges(offset, length):
            self.written(start, end)

    def stale_views(self, writer: View, offset: int, length: int) -> list[Stale]:
        """Cached pages that a write to that range of a view makes stale, under other views."""
        return [
            (view, start, end)
            for start, end in writer.ranges(offset, length)
            for view in self.views.overlapping_cached(writer, start, end)
        ]

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
        raised instead where its store has disks that must open.  With `keep` False nothing is
        changed in a host file, as long as it is not certain that there will be a mount; `Tree.keep`
        does it then.
        """
        look = Look({store: store.version() for store in self.stores})
        for store in self.stores:
            for name, path in store.names().items():
                try:
                    look.add(store, name, path, known, keep=keep)
                except DiskError as error:
                    if strict and store.must_open:
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

    def part_owner(self, name: str) -> tuple[DiskNode, str] | None:
        """(disk, "p1") where `name` is that of a part of a disk, or has a partition's form."""
        for node, part in self.part_owners(name):
            if part in node.parts or (part.startswith("p") and part[1:].isdecimal()):
                return node, part
        return None

    def part_owners(self, name: str) -> Iterator[tuple[DiskNode, str]]:
        """(disk, "p2.root") for each disk whose part `name` could be, if it has such a part."""
        at = name.find(".")
        while at >= 0:
            node = self.nodes.get(name[:at])
            if node is not None:
                yield node, name[at + 1 :]
            at = name.find(".", at + 1)

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

