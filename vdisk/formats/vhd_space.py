"""Where the next blocks of a VHD image go, and the footer that has to make way for them.

The file ends with a footer, and the next block goes where that is.  So first a footer is written
further on, and is durable, and then the old one is written over: at any moment there is one at the
end.  It is put some blocks further than needed, and moved back when the disk is closed.

Blocks are placed so that their data begins at a multiple of 4096 bytes.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from vdisk.errors import HostError
from vdisk.formats.vhd_census import Census
from vdisk.formats.vhd_footer import FOOTER_BYTES, Footer
from vdisk.formats.vhd_header import bitmap_bytes
from vdisk.host import HostFile
from vdisk.plan import Put, Step
from vdisk.units import SECTOR

ALIGNMENT = 4096
_AHEAD = 16  # Blocks by which the footer is ahead of need.
_FILE_BYTES_MAX = ((1 << 32) - 2) * SECTOR  # The block table counts sectors in 32 bits.


def aligned(offset: int, bitmap: int) -> int:
    """The first place at or after `offset` at which the data behind `bitmap` bytes is aligned."""
    return -(-(offset + bitmap) // ALIGNMENT) * ALIGNMENT - bitmap


def spacing(block_size: int) -> int:
    """From one block that is aligned to the next one, in bytes."""
    return -(-(bitmap_bytes(block_size) + block_size) // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Run:
    """Places for `count` blocks, the first at host offset `first`, each `step` bytes further.

    `is_clean` says that the data's bytes read as zeros.
    """

    first: int
    count: int
    step: int
    end: int
    is_clean: bool
    is_gap: bool

    @property
    def places(self) -> range:
        """The host offset of each block, of its bitmap that is."""
        return range(self.first, self.first + self.count * self.step, self.step)


class Space:
    """The room in one file that is open for writing.

    `tail` is where its last footer is, None where none is known to be right.
    """

    def __init__(
        self, host: HostFile, census: Census, block_size: int, tail: int | None
    ) -> None:
        self.host = host
        self.census = census
        self.tail = tail
        self._block_size = block_size
        self._bitmap = bitmap_bytes(block_size)
        # From here on the file holds zeros, but for a footer, where no bitmap or data is yet.
        self._clean_from = host.size() if tail is None or host.is_block else tail
        self._footers: set[int] = set()
        self.is_moved = False  # The tail is perhaps further on than it has to be.
        self._trying = False

    def run(self, wanted: int) -> Run:
        """Places for 1 to `wanted` blocks: a gap, or at the end.  Raises HostError (ENOSPC)."""
        stride = self._bitmap + self._block_size
        step = spacing(self._block_size)
        if self.census.gaps:
            low, high = self.census.gaps[-1]
            first = aligned(low, self._bitmap)
            if first + stride > high:
                first = low
            return Run(first, 1, step, first + stride, is_clean=False, is_gap=True)
        first = aligned(self.census.end, self._bitmap)
        room = (_FILE_BYTES_MAX - first - FOOTER_BYTES) // step
        if room < 1:
            raise HostError(
                "the file of a VHD image cannot be larger than 2 TiB", errno=errno.ENOSPC,
                path=self.host.path,
            )
        count = min(wanted, room)
        end = first + (count - 1) * step + stride
        return Run(first, count, step, end, self._is_clean(first, count, step), is_gap=False)

    def table_place(self) -> int:
        """Where another block table can be: at the end."""
        return -(-self.census.end // SECTOR) * SECTOR

    def reserve(self, end: int, footer: Footer) -> tuple[tuple[Step, ...], int | None]:
        """The steps after which the file may be written up to `end`, and where the tail then is.

        They put the footer behind that, durable.
        """
        if self.tail is not None and end <= self.tail:
            return (), self.tail
        ahead = 0 if self._trying else _AHEAD * spacing(self._block_size)
        limit = self.host.size() if self.host.is_block else _FILE_BYTES_MAX
        place = max(min(end + ahead, limit - FOOTER_BYTES) // SECTOR * SECTOR, end)
        self._trying = True  # Should this fail, as little as can be is asked for the next time.
        self._footers.add(place)
        return (Put(self.host, place, footer.pack(), sync=True),), place

    def used(self, end: int) -> None:
        """All up to `end` may have been written to, whether or not the plan succeeds."""
        self._clean_from = max(self._clean_from, end)

    def taken(self, run: Run) -> None:
        """The places of `run` hold blocks now."""
        if run.is_gap:
            _, high = self.census.gaps.pop()
            if high - run.end >= self._bitmap + self._block_size:
                self.census.gaps.append((run.end, high))
        else:
            self.census.end = run.end
        self.census.last_block = max(self.census.last_block, run.places[-1])

    def reserved(self, tail: int | None) -> None:
        """The last footer is at `tail` now."""
        self.is_moved = self.is_moved or self.tail != tail
        self.tail = tail
        self._trying = False

    def _is_clean(self, first: int, count: int, step: int) -> bool:
        """Whether nothing was ever written where the data of these blocks will be."""
        if first < self._clean_from:
            return False
        self._footers = {place for place in self._footers if place >= self._clean_from}
        insides = [(place - first) % step for place in self._footers if first <= place]
        stride = self._bitmap + self._block_size
        return all(
            inside + FOOTER_BYTES <= self._bitmap or inside >= stride for inside in insides
        )
