"""What is wrong with a QCOW2 image's structure: what `qemu-img check` finds."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.qcow2.census import Findings, tallies
from vdisk.formats.qcow2.entry import COPIED
from vdisk.formats.qcow2.flags import changed_words, l2_tables, plan_flags
from vdisk.formats.qcow2.header import Incompatible
from vdisk.formats.qcow2.rebuild import plan_rebuild
from vdisk.formats.qcow2.tally import PAGE, Tally
from vdisk.plan import Plan

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2


def check(image: Qcow2) -> Iterator[Problem]:
    """Tables over each other, wrong counts, wrong flags, and the marks in the header.

    All wrong counts have the same repair, which is made when the first is found.
    """
    is_bad = False
    for problem in _problems(image):
        is_bad = is_bad or problem.kind is ProblemKind.CORRUPTION
        yield problem
    header = image.header
    if Incompatible.CORRUPT in header.incompatible:
        sound = replace(header, incompatible=header.incompatible & ~Incompatible.CORRUPT)
        yield Problem(
            ProblemKind.CORRUPTION, "the image is marked as corrupt",
            None if is_bad else image.plan_header(sound),
        )


def _problems(image: Qcow2) -> Iterator[Problem]:
    findings = Findings()
    try:
        parts = [next(every := tallies(image, findings))]
        for message in findings.fatal + findings.others:
            yield Problem(ProblemKind.CORRUPTION, message)
        counts_are_right = True
        for problem in _of_counts(image, findings, parts[0], every):
            counts_are_right = False
            yield problem
        if not findings.fatal and not findings.refcount_table:
            yield from _of_flags(image, with_repair=counts_are_right)
    except (Corrupt, Unsupported) as error:
        yield Problem(ProblemKind.CORRUPTION, error.message)


def _of_counts(
    image: Qcow2, findings: Findings, first: Tally, others: Iterator[Tally]
) -> Iterator[Problem]:
    """Counts that are not as the tables have it, and the mark that says that they may be."""
    repair: Plan | None = None
    is_made = False
    for kind, message in _wrong_counts(image, findings, first, others):
        if not is_made:
            repair, is_made = _rebuild(image), True
        yield Problem(kind, message, repair)


def _rebuild(image: Qcow2) -> Plan | None:
    try:
        return plan_rebuild(image, image.header)
    except (Corrupt, Unsupported):
        return None


def _wrong_counts(
    image: Qcow2, findings: Findings, first: Tally, others: Iterator[Tally]
) -> Iterator[tuple[ProblemKind, str]]:
    if Incompatible.DIRTY in image.header.incompatible:
        yield ProblemKind.UNCLEAN, "the image was not closed, and its refcounts may be wrong"
    for message in findings.refcount_table:
        yield ProblemKind.CORRUPTION, message
    if findings.refcount_table:
        return  # What the blocks say cannot be read.
    for start, count, stored, used in _differences(image, first):
        yield _wrong(start, count, stored, used)
    for tally in others:
        for start, count, stored, used in _differences(image, tally):
            yield _wrong(start, count, stored, used)


def _wrong(start: int, count: int, stored: int, used: int) -> tuple[ProblemKind, str]:
    where = f"cluster {start} is" if count == 1 else f"clusters {start} to {start + count - 1} are"
    kind = ProblemKind.LEAK if stored > used else ProblemKind.CORRUPTION
    return kind, f"{where} counted {stored} times and used {used} times"


def differences(image: Qcow2) -> Iterator[tuple[int, int, int, int]]:
    """(first cluster, how many, count in the host, how often used) of all wrong counts."""
    for tally in tallies(image, Findings()):
        yield from _differences(image, tally)


def _differences(image: Qcow2, tally: Tally) -> Iterator[tuple[int, int, int, int]]:
    """As `differences`, in one part of the file."""
    refcounts = image.refcounts
    step = min(PAGE, refcounts.per_block)
    found: tuple[int, int, int, int] | None = None
    for start in _pieces(image, tally, step):
        block = refcounts.block(start // refcounts.per_block)
        page = tally.page(start // PAGE)
        at, inside = start % refcounts.per_block, start % PAGE
        stored = array("Q", bytes(8 * step)) if block is None else block[at : at + step]
        used = array("I", bytes(4 * step)) if page is None else page[inside : inside + step]
        if stored == used:
            continue
        for index in range(step):
            if stored[index] == used[index]:
                continue
            here = (start + index, 1, stored[index], used[index])
            if found is not None and found[0] + found[1] == here[0] and found[2:] == here[2:]:
                found = (found[0], found[1] + 1, *here[2:])
                continue
            if found is not None:
                yield found
            found = here
    if found is not None:
        yield found


def _pieces(image: Qcow2, tally: Tally, step: int) -> Iterator[int]:
    """Where the pieces of `step` clusters begin in which something is counted or used, in order."""
    per_block = image.refcounts.per_block
    counted = (
        start
        for first, page in image.refcounts.table.runs()
        for number, offset in enumerate(page, first) if offset
        for start in range(number * per_block, (number + 1) * per_block, step)
    )  # fmt: skip
    used = (
        start
        for number in tally.pages()
        for start in range(number * PAGE, (number + 1) * PAGE, step)
    )
    last = -1
    for start in merge(counted, used):
        if start != last and tally.start <= start and (tally.end is None or start < tally.end):
            yield start
        last = start


def _of_flags(image: Qcow2, *, with_repair: bool) -> Iterator[Problem]:
    """Entries whose flags do not follow the counts in the host, which are repaired first."""
    repair: Plan | None = None
    tables = [("L1", image.l1)]
    if not image.header.has_data_file:
        tables += [(f"L2 table {number}", table) for number, table in l2_tables(image, image.l1)]
    for name, table in tables:
        for first, old, new in changed_words(image, table):
            if repair is None and with_repair and not image.l2.pages_waiting:
                repair = plan_flags(image, image.l1)
            is_risky = any(was & ~now & COPIED for was, now in zip(old, new, strict=True))
            yield Problem(
                ProblemKind.CORRUPTION if is_risky else ProblemKind.UNCLEAN,
                f"entries of {name}, from {first} on, are wrong about who else has what they name",
                repair,
            )
