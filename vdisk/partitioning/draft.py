"""A partition table while it is edited: what both kinds share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from vdisk.errors import Corrupt, InvalidArgument, NotFound
from vdisk.geometry import Geometry
from vdisk.partitioning.edits import Edits
from vdisk.partitioning.placing import Place
from vdisk.partitioning.steps import Step
from vdisk.tables import Partition, Reader, Scan, read_table
from vdisk.tables.soundness import LbaRange
from vdisk.tables.source import Source
from vdisk.units import format_size


@dataclass(frozen=True, slots=True)
class Target:
    """The disk whose table is edited.

    `random(count)` gives so many random bytes, for ids.
    """

    read: Reader
    size_bytes: int
    geometry: Geometry
    random: Callable[[int], bytes] = os.urandom

    @property
    def sector_size(self) -> int:
        """Bytes per sector."""
        return self.geometry.sector_size

    @property
    def sectors(self) -> int:
        """Whole sectors of the disk."""
        return self.size_bytes // self.sector_size

    def source(self, read: Reader | None = None) -> Source:
        """The disk to look at, or the same with other bytes."""
        return Source(read or self.read, self.size_bytes, self.sector_size)

    def scan(self, read: Reader | None = None) -> Scan:
        """The partition table of the disk, or of the same with other bytes."""
        return read_table(read or self.read, self.size_bytes, self.sector_size)

    def new_guid(self) -> UUID:
        """A random GUID (RFC 4122, version 4)."""
        return UUID(bytes=self.random(16), version=4)


class Draft(ABC):
    """A table being edited.  Nothing is written; `steps` says what would be.

    `notes` are what was done besides what was asked for, a sentence each.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.notes: list[str] = []

    @abstractmethod
    def partitions(self) -> Sequence[Partition]:
        """The partitions as they are now, each with its problem if it has one."""

    @abstractmethod
    def check_addable(self) -> None:
        """Raise Corrupt where the table is in a state that leaves free places in doubt."""

    @abstractmethod
    def delete(self, number: int) -> list[Partition]:
        """Take partition `number` out, and all that is in it; what went.

        Raises NotFound, NotPermitted.
        """

    @abstractmethod
    def add_all(self, edits: Edits) -> list[LbaRange]:
        """Add what `edits` adds; what was added.

        Raises InvalidArgument where something does not fit.
        """

    @abstractmethod
    def set_type(self, number: int, text: str) -> None:
        """Give partition `number` the type that `text` stands for."""

    @abstractmethod
    def set_name(self, number: int, name: str) -> None:
        """Give partition `number` a name.  Raises NotPermitted where the table has none."""

    @abstractmethod
    def set_bootables(self, flags: Iterable[tuple[int, bool]]) -> None:
        """Set the bootable flag of each partition that is named."""

    @abstractmethod
    def steps(self) -> list[Step]:
        """What makes the disk's table this one, in a safe order."""

    def partition(self, number: int) -> Partition:
        """Partition `number`.  Raises NotFound, with the numbers that there are."""
        partitions = self.partitions()
        for one in partitions:
            if one.number == number:
                return one
        numbers = ", ".join(str(one.number) for one in partitions) or "none"
        raise NotFound(f"has no partition {number}", hint=f"it has: {numbers}")

    def check_sound(self) -> None:
        """Raise Corrupt for the first partition that has a problem."""
        for one in self.partitions():
            if one.problem is not None:
                raise Corrupt(
                    f"partition {one.number}: {one.problem}; nothing is added to such a table",
                    hint=f"take it out in the same command: --delete {one.number}",
                )

    def wanted_sectors(self, size_bytes: int | None) -> int | None:
        """A size in whole sectors, rounded up; None stays None.  Raises InvalidArgument for 0."""
        if size_bytes is None:
            return None
        if size_bytes == 0:
            raise InvalidArgument("a partition needs at least one sector")
        return -(-size_bytes // self.target.sector_size)

    def no_room(self, size_bytes: int | None, largest: Place | None) -> InvalidArgument:
        """The error for a partition that fits nowhere."""
        if largest is None:
            return InvalidArgument("there is no free place for another partition")
        wanted = "" if size_bytes is None else f" of {format_size(size_bytes)}"
        room = format_size(largest.sectors * self.target.sector_size)
        return InvalidArgument(
            f"no free place has room for a partition{wanted}",
            hint=f"the largest has {room}, {largest.sectors} sectors; `rest` takes all of it",
        )


def ranges(partitions: Iterable[Partition]) -> list[LbaRange]:
    """The sectors that each partition has."""
    return [(one.start_lba, one.end_lba) for one in partitions]
