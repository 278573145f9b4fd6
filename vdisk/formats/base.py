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
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.errors import Unsupported
from vdisk.extent import Extent, Host, Kind
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.plan import Plan

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


class ImageFormat(ABC):
    """One open image: its tables and nothing else.

    `size` is the disk's size in bytes.  `header_geometry` is the geometry the image's own header
    stores, None where the format stores none or it makes no sense.  `sector_size` likewise.
    `parent` is the disk beneath an overlay, open read-only, None for an image on its own.
    """

    name: ClassVar[str]

    stores_geometry: ClassVar[bool] = False
    """Whether `plan_geometry` writes a geometry into the header; else it is kept beside it."""

    frees_on_discard: ClassVar[bool] = False
    """Whether `plan_discard` is asked about DATA as well; else that is punched in place."""

    shares_host: ClassVar[bool] = False
    """Whether its host file is that of other disks too, so that the file's attributes are not its.
    """

    size: int
    header_geometry: Geometry | None = None
    sector_size: int | None = None
    parent: ImageDisk | None = None

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
        end = offset + length
        if self.parent is not None and offset < self.parent.size:
            middle = min(end, self.parent.size)
            yield Extent(offset, middle - offset, Kind.PARENT, self.parent, offset)
            offset = middle
        if offset < end:
            yield Extent(offset, end - offset, Kind.ZERO)


@dataclass(frozen=True, slots=True)
class ParentReference:
    """What a child knows of its parent.

    `paths` are the names it gives, tried in order and taken from the child's folder; a format's own
    way of writing (file URLs, Windows paths) is translated by the format.  Where there are none,
    all images in that folder are candidates.  Only a host file for which `matches` holds is the
    parent: it looks at the header, and takes any file.  `format` is the parent's format as the
    child records it, None where it records none: then its signature tells, and it is never raw.
    """

    paths: tuple[str, ...] = ()
    format: str | None = None
    matches: Callable[[HostFile], bool] | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What an image is opened with besides its host file.

    `open_parent` opens what a reference names, read-only, and raises NotFound, NotPermitted (it
    lies outside the folders that are allowed), Corrupt (a loop, too deep) and what opening raises.
    `open_file` opens another file that the image names as its own, in its own folder, writable
    where the image is; it raises the same.  An opener that raises closes what it has opened by
    these; once the image is open, its disk closes `hosts()` and `parent`.
    """

    open_parent: Callable[[ParentReference], ImageDisk]
    open_file: Callable[[str], HostFile]


def problem_limit(problems: Iterator[Problem], count_max: int = 10_000) -> Iterator[Problem]:
    """The first `count_max` problems: a hostile image has any number of them."""
    for _ in range(count_max):
        problem = next(problems, None)
        if problem is None:
            return
        yield problem
