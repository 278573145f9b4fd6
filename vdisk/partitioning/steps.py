"""An edit of a partition table as ordered steps, and a disk as it looks after some of them.

Editing decides and moves nothing: it answers with `Put`s and `Barrier`s, and whoever holds the disk
carries them out in their order.  What is between two barriers may reach the disk in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vdisk.tables.partition import Reader


@dataclass(frozen=True, slots=True)
class Put:
    """Write `data` at byte `offset` of the disk."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Barrier:
    """Make all that was put durable before anything else is."""


Step = Put | Barrier


class Overlay:
    """A disk with some bytes put over it, which the disk itself does not get.

    `read` is a `Reader` of the disk beneath; so is the method `read`, of what lies above it.
    """

    def __init__(self, read: Reader, steps: Iterable[Step] = ()) -> None:
        self._beneath = read
        self._puts: list[Put] = []
        for step in steps:
            if isinstance(step, Put):
                self.put(step.offset, step.data)

    def put(self, offset: int, data: bytes) -> None:
        """Show `data` at byte `offset` from now on."""
        hidden = Put(offset, data)
        self._puts = [one for one in self._puts if not _covers(hidden, one)]
        self._puts.append(hidden)

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`."""
        end = offset + length
        over = [one for one in self._puts if one.offset < end and offset < one.end]
        if any(one.offset <= offset and end <= one.end for one in over[-1:]):
            return over[-1].data[offset - over[-1].offset : end - over[-1].offset]
        seen = bytearray(self._beneath(offset, length))
        for one in over:
            low, high = max(one.offset, offset), min(one.end, end)
            seen[low - offset : high - offset] = one.data[low - one.offset : high - one.offset]
        return bytes(seen)


def _covers(one: Put, other: Put) -> bool:
    return one.offset <= other.offset and other.end <= one.end
