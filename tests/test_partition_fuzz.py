"""A damaged or hostile table is edited, or refused with a reason; what is then read is as sound."""

from __future__ import annotations

import struct
from functools import cache

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from table_edits import applied, blank_bytes, edited, geometry_of, planned
from table_images import MIB, fix_entries_crc, scan_bytes
from vdisk.errors import DiskError
from vdisk.partitioning.edits import Add, Edits

SIZE = 2 * MIB
GEOMETRY = geometry_of(SIZE, 4, 17)
SMALL = 40 << 10
LAST = SIZE // 512 - 1
ALIGN = 17 * 512

EDITS = [
    Edits(adds=(Add(SMALL),), align=ALIGN),
    Edits(adds=(Add(None),), align=512),
    Edits(logicals=(Add(SMALL), Add(SMALL)), align=ALIGN),
    Edits(extended=Add(None)),
    *(Edits(deletes=(number,)) for number in range(1, 8)),
    Edits(deletes=(1, 2, 3, 4, 5, 6, 7)),
    Edits(deletes=(5,), adds=(Add(SMALL),), align=ALIGN),
    *(Edits(types=((number, "swap"),), bootables=((number, True),)) for number in range(1, 8)),
    Edits(names=((1, "x"),)),
    Edits("mbr", adds=(Add(None),), align=512),
    Edits("gpt", adds=(Add(None),), align=512),
]


@cache
def disk(kind: str) -> bytes:
    adds = tuple(Add(SMALL) for _ in range(3))
    if kind == "gpt":
        return bytes(edited(blank_bytes(SIZE), Edits("gpt", adds=adds, align=ALIGN), GEOMETRY))
    edits = Edits("mbr", adds=adds[:2], logicals=adds, align=ALIGN)
    return bytes(edited(blank_bytes(SIZE), edits, GEOMETRY))


def records() -> list[int]:
    """The sectors that hold something on the MBR disk."""
    made = disk("mbr")
    return [at for at in range(0, SIZE, 512) if any(made[at : at + 512])]


def judge(now: bytearray, edits: Edits) -> None:
    """Edit, and see that no partition has a fault that it did not have."""
    try:
        change = planned(now, edits, GEOMETRY)
    except DiskError:
        return
    before, after = scan_bytes(now).table, scan_bytes(applied(now, change.steps)).table
    assert after is not None
    faults = set() if before is None else {
        (p.start_lba, p.sectors) for p in before.partitions if p.problem
    }
    assert {(p.start_lba, p.sectors) for p in after.partitions if p.problem} <= faults


NUMBERS = st.one_of(
    st.integers(0, LAST + 2), st.sampled_from([0, 1, 63, 2**31, 2**32 - 1, LAST, LAST + 1])
)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(
    st.lists(st.tuples(st.sampled_from(range(4)), st.integers(0, 3), st.sampled_from("ntls"),
                       NUMBERS), min_size=1, max_size=4),
    st.sampled_from(EDITS),
)  # fmt: skip
def test_any_entries_of_an_mbr_and_its_ebrs(
    changes: list[tuple[int, int, str, int]], edits: Edits
) -> None:
    now = bytearray(disk("mbr"))
    places = records()
    for which, slot, field, number in changes:
        at = places[which] + 446 + 16 * slot
        if field == "t":
            now[at + 4] = (0x05, 0x83, 0x0F, 0xEE)[number % 4]
        else:
            struct.pack_into("<I", now, at + (8 if field in "ns" else 12), number)
    judge(now, edits)


@FUZZ
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([12, 24, 32, 40, 48, 72, 80, 84]), NUMBERS),
             max_size=3),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 32, 40, 48]), NUMBERS), max_size=3),
    st.sampled_from(EDITS),
)  # fmt: skip
@example([(True, 80, 133)], [], EDITS[0])  # The array of the backup, longer, reached its header.
@example([(True, 72, 2**31)], [], EDITS[0])  # The entries of a repaired primary left the disk.
@example([(False, 12, 0)], [(2, 40, LAST - 32)], EDITS[4])  # A backup was put over a partition.
def test_any_fields_of_a_gpt_whose_sums_are_right(
    headers: list[tuple[bool, int, int]], entries: list[tuple[int, int, int]], edits: Edits
) -> None:
    now = bytearray(disk("gpt"))
    for number, offset, value in entries:
        for base in (1024, SIZE - 512 - 16384):
            struct.pack_into("<Q", now, base + number * 128 + offset, value)
    for primary, offset, value in headers:
        base = 512 if primary else SIZE - 512
        struct.pack_into("<I" if offset in (12, 80, 84) else "<Q", now, base + offset,
                         value & 0xFFFFFFFF)  # fmt: skip
    for lba in (1, LAST):
        fix_entries_crc(now, lba)
    judge(now, edits)


@FUZZ
@given(st.sampled_from(["mbr", "gpt"]), st.lists(st.tuples(st.integers(0, 33 * 512),
       st.integers(0, 255)), max_size=20), st.integers(0, 40), st.sampled_from(EDITS))  # fmt: skip
def test_any_bytes(kind: str, flips: list[tuple[int, int]], cut: int, edits: Edits) -> None:
    now = bytearray(disk(kind))
    for at, value in flips:
        now[at] = value
        now[-1 - at] = value
    judge(now[: len(now) - cut * 512 - cut], edits)
