"""What every image format answers.

A format reads its tables through the host file it is handed, and moves no guest data.  It answers
where guest bytes are (`map`, and quickly for one run: `locate`), and answers what needs space, or
gives some up, with a `Plan` that `vdisk.image_disk` carries out.

Who calls when.  `map` and `locate` are called by several threads at once, also while a plan is
carried out and while its `done` runs.  `plan_…` and `check` are called by one thread at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.errors import Unsupported
from vdisk.extent import Extent, Host, Kind
from vdisk.geometry import Geometry, cover
from vdisk.host import HostFile
from vdisk.plan import Plan, Plans

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk


class ProblemKind(StrEnum):
    """How bad a problem is."""

    LEAK = "leak"
    """Space that nothing points to: wasted, and no data is in danger."""
    UNCLEAN = "unclean"
    """What a crash left behind, and the next writer sets right by itself: nothing is in danger."""
    CORRUPTION = "corruption"
    """Structures that contradict each other: data is lost already, or may be by the next write."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `check` found, and the plan that repairs it, None where none is safe."""

    kind: ProblemKind
    message: str
    repair: Plan | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of the disk that its own image keeps, by the name its user gave it.

    `id` is how the image tells it from others, whose name may be the same.  `size` is the disk's
    size then, `state_size` that of the state of the machine that ran, 0 where there is none, both
    in bytes; `created` is in seconds since 1970, None where unknown.
    """

    id: str
    name: str
    size: int
    state_size: int = 0
    created: int | None = None

    def describe(self) -> dict[str, Any]:
        """In JSON's terms."""
        created = None if self.created is None else datetime.fromtimestamp(self.created, UTC)
        return {
            "id": self.id,
            "name": self.name,
            "size_bytes": self.size,
            "vm_state_bytes": self.state_size,
            "created": None if created is None else created.isoformat(),
        }


class ImageFormat(ABC):
    """One open image: its tables and nothing else.

    `size` is the disk's size in bytes.  `header_geometry` is the geometry the image's own header
    stores, None where the format stores none or it makes no sense.  `sector_size` likewise.
    `parent` is the disk beneath an overlay, open read-only, None for an image on its own.
    """

    name: ClassVar[str]

    stores_geometry: ClassVar[bool] = False
    """Whether `plan_geometry` writes a geometry into the header; else it is kept beside it."""

    geometry_is_size: ClassVar[bool] = False
    """Whether the header's geometry says how large the disk is: resizing writes it as well."""

    size_unit: int = 1
    """The disk's size is a multiple of so many bytes, besides being whole sectors."""

    frees_on_discard: ClassVar[bool] = False
    """Whether `plan_discard` is asked about DATA as well; else that is punched in place."""

    shares_host: ClassVar[bool] = False
    """Whether its host file is that of other disks too, so that the file's attributes are not its.
    """

    size: int
    header_geometry: Geometry | None = None
    sector_size: int | None = None
    parent: ImageDisk | None = None

    unwritable: str | None = None
    """Why the image is only read, however it was opened ("is …"); None where it can be written."""

    # Where bytes are

    @abstractmethod
    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Where guest bytes [offset, offset + length) are: a map as `vdisk.extent` defines it.

        The range lies inside the disk; the first extent may begin before it and the last end after
        it, and each has a byte in it.  A DATA extent may have holes in the host file.  May read
        tables.  Raises Corrupt for a table entry that cannot be right, and HostError.
        """

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        """(kind, host, host_offset) where the range is one run, told from memory; None otherwise.

        DATA may be written in place; ZERO has no host; PARENT names the parent disk.  The range
        lies inside the disk and is not empty.  Never reads, never waits: an event loop asks.
        """
        return None

    def window(self) -> tuple[HostFile, int] | None:
        """(host, base) where guest byte g is always at host byte base + g, else None.

        Bytes are then moved without asking the format at all, so one that has something to do
        before the first write (`plan_first_write`) has none.
        """
        return None

    @abstractmethod
    def hosts(self) -> tuple[HostFile, ...]:
        """The host files of the image itself, the one it was opened by first."""

    # Changes

    def plan_write(self, offset: int, length: int) -> Plan:
        """Space for guest bytes [offset, offset + length), none of which can be written in place.

        The plan puts the request's bytes there (`Guest`), fills the rest of what it allocates
        (`Fill`), and makes the table point to it.  It may answer for the first part only
        (`Plan.length`).  Raises Corrupt, Unsupported, HostError (ENOSPC).
        """
        raise NotImplementedError(f"{self.name} maps all to data that is written in place")

    def plan_zero(self, offset: int, length: int) -> Plan:
        """Make the range, which is mapped to no zeros and not to DATA in place, read as zeros."""
        return self.plan_write(offset, length)

    def plan_discard(self, offset: int, length: int) -> Plan:
        """Make the range read as zeros and give its space up, as far as that can be done.

        Asked about what reads as no zeros and is not DATA in place; of a format that
        `frees_on_discard` about DATA too, where a part of a cluster is a `Guest` step.
        """
        return self.plan_zero(offset, length)

    @abstractmethod
    def plan_resize(self, size: int) -> Plan:
        """One step towards `size` bytes; asked again until `self.size` is that.

        What remains is kept, new bytes read as zeros.  Unsupported where it cannot be done.
        """

    def plan_geometry(self, geometry: Geometry) -> Plan:
        """Write `geometry` into the header, where the format `stores_geometry`.

        Raises InvalidArgument where its fields do not hold it.
        """
        raise Unsupported(f"{self.name} stores no geometry", path=self.hosts()[0].path)

    def fitted_geometry(self, geometry: Geometry, size: int) -> Geometry | None:
        """What becomes of the disk's `geometry` when it is `size` bytes large: what is stored then.

        The same heads and sectors per track, and the cylinders that fit; None where none does.
        """
        return cover(size, geometry.heads, geometry.sectors_per_track, geometry.sector_size)

    def plan_first_write(self) -> Plan | None:
        """What must be in the host before anything of the image is changed: in-use marks."""
        return None

    def plan_flush(self) -> Plan | None:
        """Table entries that wait in memory, and the barriers around them; None if there are none.

        After the plan all is durable: it ends with a barrier.
        """
        return None

    def plan_close(self) -> Plan | None:
        """The end of writing: what waits in memory, reservations given back, marks cleared."""
        return None

    # Overlays

    def plan_parent(
        self, parent: ImageDisk | None, name: str | None, *, any_state: bool = False
    ) -> Plan:
        """Record `parent`, in the state it is in now, as the disk beneath; None: there is none.

        With `any_state` it may be written to from now on, where the format can say so.  `name` is
        its path from the image's own folder.  Nothing waits in memory (`plan_flush`), and
        the image is asked nothing more afterwards.  What it reads as then is the caller's care.
        Raises InvalidArgument for a parent that the format cannot have.
        """
        raise Unsupported(
            f"what is beneath a {self.name} image is not changed by this version",
            path=self.hosts()[0].path, hint="qemu-img commit and qemu-img rebase know more formats",
        )

    def creation_options(self) -> dict[str, str]:
        """The options (`-o`) that make an image like this one where their defaults do not."""
        return {}

    # Giving space back

    def plan_compact(self) -> Plan | None:
        """One step towards a file with nothing in it that is not in use; None: there is no more.

        Zeros in the disk have been discarded.  Each step leaves less to do, or the next is None.
        """
        return None

    # Snapshots inside the image

    def snapshots(self) -> list[Snapshot]:
        """Those there are, in the image's order.  Unsupported where the format keeps none."""
        raise self._keeps_none()

    def plan_snapshot(self, name: str) -> Plans:
        """Keep the disk's present state as `name`, which none has yet.

        Raises InvalidArgument for what is no name, and Unsupported.
        """
        raise self._keeps_none()

    def plan_apply_snapshot(self, id: str) -> Plans:
        """Make the disk what it was at that snapshot, its size included; it stays.

        Raises NotFound and Unsupported.
        """
        raise self._keeps_none()

    def plan_delete_snapshot(self, id: str) -> Plans:
        """Forget that snapshot, and give back what only it needed.  Raises as the others do."""
        raise self._keeps_none()

    def _keeps_none(self) -> Unsupported:
        return Unsupported(
            f"a {self.name} image keeps no snapshots of its own", path=self.hosts()[0].path,
            hint="to go on in a new file, and leave this as it is: vdisk snapshot --to",
        )

    # What it is like

    def check(self) -> Iterator[Problem]:
        """Every problem in the image's structure, without end where the image is hostile.

        Reads tables, not data.  Problems come in the order in which they must be repaired.
        """
        return iter(())

    def info(self) -> dict[str, Any]:
        """What `vdisk info` adds for this format, in JSON's terms: name -> value."""
        return {}

    # For those who implement one

    def beneath(self, offset: int, length: int) -> Iterator[Extent]:
        """The map of a range that this image does not hold: the parent's bytes, then zeros."""
        return beneath(self.parent, offset, length)


def beneath(parent: ImageDisk | None, offset: int, length: int) -> Iterator[Extent]:
    """The map of a range of `parent` and past its end: its bytes, then zeros."""
    end = offset + length
    if parent is not None and offset < parent.size:
        middle = min(end, parent.size)
        yield Extent(offset, middle - offset, Kind.PARENT, parent, offset)
        offset = middle
    if offset < end:
        yield Extent(offset, end - offset, Kind.ZERO)


@dataclass(frozen=True, slots=True)
class ParentReference:
    """What a child knows of its parent.

    `paths` are the names it gives, tried in order and taken from the child's folder; a format's own
    way of writing (file URLs, Windows paths) is translated by the format.  Where there are none,
    or none is the parent and it is to be `searched`, all images in that folder are candidates.
    Only a host file for which `matches` holds is the parent: it looks at the header, and takes any
    file.  `format` is the parent's format as the child records it, None where it records none: then
    its signature tells, and it is never raw.
    """

    paths: tuple[str, ...] = ()
    format: str | None = None
    matches: Callable[[HostFile], bool] | None = None
    searched: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """What an image is opened with besides its host file.

    `open_parent` opens what a reference names, read-only, and raises NotFound, NotPermitted (it
    lies outside the folders that are allowed), Corrupt (a loop, too deep) and what opening raises.
    `open_file` opens another file that the image names as its own, in its own folder, writable
    where the image is; it raises the same.  `make_file` makes another such file, empty and locked,
    whose name outlives a loss of power; it raises Exists and HostError.  An opener that raises
    closes what it has opened by these; once the image is open, its disk closes `hosts()` and
    `parent`.  With `any_state` the parent is taken whatever state the child says it was in.
    """

    open_parent: Callable[[ParentReference], ImageDisk]
    open_file: Callable[[str], HostFile]
    make_file: Callable[[str], HostFile]
    any_state: bool = False


def problem_limit(problems: Iterator[Problem], count_max: int = 10_000) -> Iterator[Problem]:
    """The first `count_max` problems: a hostile image has any number of them."""
    for _ in range(count_max):
        problem = next(problems, None)
        if problem is None:
            return
        yield problem
