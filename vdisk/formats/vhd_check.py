"""What is wrong with the structure of a dynamic or differencing VHD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt
from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.vhd_census import take_census
from vdisk.formats.vhd_footer import FOOTER_BYTES
from vdisk.formats.vhd_header import FREE
from vdisk.formats.vhd_resize import close_gaps
from vdisk.formats.vhd_space import spacing
from vdisk.plan import Barrier, Plan, Put, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vhd import Vhd


def check(vhd: Vhd) -> Iterator[Problem]:
    """Copies of the footer that differ; places outside the file or in one another; lost space."""
    is_wrong = False
    for problem in _wrong_entries(vhd):
        is_wrong = True
        yield problem
    census = take_census(vhd.table, vhd.stride, vhd.regions(), vhd.limit)
    if census.problem is not None:
        if not is_wrong:
            yield Problem(ProblemKind.CORRUPTION, census.problem)
        return
    end = -(-census.end // SECTOR) * SECTOR
    yield from _wrong_footers(vhd, end)
    moves = close_gaps(vhd, census)
    if moves is not None:
        yield Problem(
            ProblemKind.LEAK, f"there are {len(census.gaps)} gaps between its blocks", moves
        )
    tail = vhd.footers.tail_offset
    if not vhd.is_written and tail is not None and tail - end >= spacing(vhd.block_size):
        yield Problem(
            ProblemKind.UNCLEAN,
            f"{tail - end} bytes behind the last block are set aside and not used",
            Plan(
                (
                    Put(vhd.host, end, vhd.footer.pack(), sync=True),
                    Truncate(vhd.host, end + FOOTER_BYTES),
                )
            ),
        )


def _wrong_footers(vhd: Vhd, end: int) -> Iterator[Problem]:
    footers = vhd.footers
    if not footers.head_is_good:
        yield Problem(
            ProblemKind.UNCLEAN, "the footer's copy at the beginning is damaged",
            Plan((Put(vhd.host, 0, vhd.footer.pack()), Barrier((vhd.host,)))),
        )
    if not footers.tail_is_good and not vhd.host.is_block:
        yield Problem(
            ProblemKind.UNCLEAN,
            "the footer at the end is missing, damaged or older than its copy at the beginning",
            Plan((Put(vhd.host, vhd.tail_place(end), vhd.footer.pack(), sync=True),)),
        )


def _wrong_entries(vhd: Vhd) -> Iterator[Problem]:
    for first, page in vhd.table.runs():
        for number, entry in enumerate(page):
            if entry == FREE:
                continue
            try:
                vhd.place(entry)
            except Corrupt as error:
                yield Problem(ProblemKind.CORRUPTION, f"block {first + number}: {error.message}")
