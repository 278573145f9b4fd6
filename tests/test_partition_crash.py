"""Whenever an edit is cut short, the disk has the old table or the new one.

A crash is every prefix of the sectors that are written, and of what lies between two barriers any
subset.  What is then on the disk is read by vdisk's own reader, which falls back to the other copy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from table_edits import (
    applied,
    blank_bytes,
    edited,
    geometry_of,
    planned,
    seen_after_crashes,
    table_of,
)
from table_images import MIB, disk_of, entry, flip, record, scan_bytes
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.steps import Barrier, Put

SIZE = 8 * MIB
SMALL = 100 << 10
TRACK = 63 * 512

MBR = Edits("mbr", adds=(Add(SMALL), Add(SMALL)), extended=Add(4 * MIB),
            logicals=(Add(SMALL), Add(SMALL), Add(SMALL)), align=TRACK)  # fmt: skip
GPT = Edits("gpt", adds=(Add(SMALL, "esp", "one"), Add(SMALL), Add(SMALL)), align=TRACK)

SINGLE = {
    "add a primary": Edits(adds=(Add(SMALL),), align=TRACK),
    "delete a primary": Edits(deletes=(1,)),
    "delete the extended one": Edits(deletes=(3,)),
    "delete the first logical": Edits(deletes=(5,)),
    "delete a logical": Edits(deletes=(6,)),
    "delete the last logical": Edits(deletes=(7,)),
    "add a logical": Edits(logicals=(Add(SMALL),), align=TRACK),
    "add three logicals": Edits(logicals=(Add(SMALL), Add(SMALL), Add(None)), align=TRACK),
    "type of a primary": Edits(types=((1, "b"),)),
    "type of a logical": Edits(types=((6, "b"),)),
    "bootable": Edits(bootables=((2, True),)),
    "much, all in the MBR": Edits(deletes=(1,), adds=(Add(SMALL), Add(SMALL)), types=((2, "7"),),
                                  bootables=((2, True),), align=TRACK),
}  # fmt: skip


def check_old_or_new(
    disk: bytes | bytearray, edits: Edits, geometry: Any = None
) -> list[tuple[Any, ...] | None]:
    """The tables that crashes leave, which must be the one before and the one after."""
    change = planned(disk, edits, geometry)
    sector_size = 512 if geometry is None else geometry.sector_size
    seen = seen_after_crashes(disk, change.steps, sector_size)
    before = table_of(scan_bytes(disk, sector_size))
    after = table_of(scan_bytes(applied(disk, change.steps), sector_size))
    assert before != after
    assert seen == [before, after]
    return seen


@pytest.mark.parametrize("name", SINGLE)
def test_an_edit_of_an_mbr_is_done_or_not(name: str) -> None:
    check_old_or_new(edited(blank_bytes(SIZE), MBR), SINGLE[name])


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("edits", [MBR, GPT], ids=["mbr", "gpt"])
def test_a_whole_new_table_is_there_or_not(edits: Edits, sector_size: int) -> None:
    geometry = geometry_of(SIZE, sector_size=sector_size)
    check_old_or_new(blank_bytes(SIZE), replace(edits, align=63 * sector_size), geometry)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(
    "edits",
    [
        Edits(adds=(Add(SMALL),)), Edits(deletes=(1, 3)), Edits(names=((2, "x"),)),
        Edits(deletes=(2,), adds=(Add(MIB), Add(None)), bootables=((1, True),)),
    ],
    ids=["add", "delete", "name", "all of it"],
)  # fmt: skip
def test_an_edit_of_a_gpt_is_done_or_not(edits: Edits, sector_size: int) -> None:
    geometry = geometry_of(SIZE, sector_size=sector_size)
    check_old_or_new(edited(blank_bytes(SIZE), GPT_ALIGNED[sector_size], geometry), edits, geometry)


GPT_ALIGNED = {
    size: Edits("gpt", adds=(Add(SMALL, "esp", "one"), Add(SMALL), Add(SMALL)), align=63 * size)
    for size in (512, 4096)
}


@pytest.mark.parametrize("place", [512, 512 + 60, 1024, -512, -512 - 16384])
def test_a_copy_that_is_damaged_is_repaired_safely(place: int) -> None:
    # The copy that is sound must not be touched before the other is.
    disk = flip(edited(blank_bytes(SIZE), GPT), place)
    check_old_or_new(disk, Edits(names=((1, "x"),)))


@pytest.mark.parametrize("damage", [None, 1024])
@pytest.mark.parametrize("more", [512, 4096, 32 * 512, MIB])
def test_the_backup_moves_safely(damage: int | None, more: int) -> None:
    disk = edited(blank_bytes(SIZE), GPT) + bytearray(more)
    if damage is not None:
        flip(disk, damage)
    check_old_or_new(disk, Edits(names=((1, "x"),)))


@pytest.mark.parametrize("new", ["mbr", "gpt"])
@pytest.mark.parametrize("old", [MBR, GPT], ids=["mbr", "gpt"])
def test_a_new_table_replaces_an_old_one_or_does_not(old: Edits, new: Any) -> None:
    # The new one's records do not lie where the old one's are or its partitions.
    disk = edited(blank_bytes(SIZE), old)
    seen = check_old_or_new(disk, Edits(new, adds=(Add(SMALL),), align=TRACK))
    assert seen[1] is not None
    assert seen[1][0] == new


def test_an_mbr_over_another_in_the_same_place_has_no_logicals_in_between() -> None:
    # The new EBRs lie where the old table has its own: it must be gone before they are written.
    disk = edited(blank_bytes(SIZE), MBR)
    change = planned(disk, MBR)
    seen = seen_after_crashes(disk, change.steps)
    tables = [table for table in seen if table is not None]
    assert len(tables) == 3
    before, between, after = tables
    assert between[1] == after[1] != before[1]
    assert [row[0] for row in between[2]] == [1, 2]
    assert set(between[2]) < set(after[2])


def test_edits_that_no_single_write_can_make_are_done_one_after_another() -> None:
    # Two records that count: each partition is as before or as after, and nothing is wrong.
    disk = edited(blank_bytes(SIZE), MBR)
    edits = Edits(deletes=(1, 6), logicals=(Add(SMALL), Add(2 * SMALL)), types=((5, "b"),),
                  align=TRACK)  # fmt: skip
    change = planned(disk, edits)
    seen = seen_after_crashes(disk, change.steps)
    gone = {row[1:3] for row in table_rows(seen[0]) if row[0] in (1, 6)}
    before = {row[1:3] for row in table_rows(seen[0])}
    after = {row[1:3] for row in table_rows(table_of(scan_bytes(applied(disk, change.steps))))}
    assert seen[-1] == table_of(scan_bytes(applied(disk, change.steps)))
    assert 2 < len(seen) <= 6
    for table in seen:
        rows = table_rows(table)
        assert {row[1:3] for row in rows} <= before | after
        assert before - gone <= {row[1:3] for row in rows}
        assert all(row[-1] is None for row in rows)


def table_rows(table: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert table is not None
    rows: tuple[Any, ...] = table[2]
    return rows


def test_data_of_a_deleted_partition_is_whole_until_it_is_deleted() -> None:
    # An EBR for a new partition may lie in what a deleted one had: not before it is gone.
    disk = edited(blank_bytes(SIZE), MBR)
    change = planned(disk, Edits(deletes=(5, 6, 7), logicals=(Add(2 * SMALL), Add(SMALL)),
                                 align=TRACK))  # fmt: skip
    parts = {p.number: (p.start_lba * 512, p.end_lba * 512) for p in scan_bytes(disk).slices}
    now = bytearray(disk)
    for step in change.steps:
        if isinstance(step, Put):
            alive = [(p.start_lba * 512, p.end_lba * 512) for p in scan_bytes(now).slices]
            assert not any(step.offset < high and low < step.end for low, high in alive)
            now[step.offset : step.end] = step.data
    assert len(parts) == 5


def test_an_old_primary_is_not_brought_back_by_a_protective_mbr() -> None:
    # A disk that had a GPT, and whose sector 0 was cleared: the header at LBA 1 is still sound.
    disk = edited(blank_bytes(SIZE), GPT)
    disk[:512] = bytes(512)
    change = planned(disk, Edits("gpt", adds=(Add(MIB),)))
    for table in seen_after_crashes(disk, change.steps)[:-1]:
        assert table_rows(table) == ()


def test_every_write_is_followed_by_a_barrier_before_the_one_that_leads_to_it() -> None:
    disk = disk_of({0: record(entry(0x83, 2048, 2048), entry(5, 8192, 8192)), 8192: record()})
    steps = planned(disk, Edits(logicals=(Add(SMALL), Add(SMALL)), align=TRACK)).steps
    kinds = ["put" if isinstance(step, Put) else "barrier" for step in steps]
    # The second EBR, then the first, which leads to it.
    assert kinds == ["put", "barrier", "put", "barrier"]
    assert isinstance(steps[2], Put)
    assert steps[2].offset == 8192 * 512
    assert isinstance(steps[-1], Barrier)
