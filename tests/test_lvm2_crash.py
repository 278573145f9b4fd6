"""A crash at any byte of any write of a commit leaves the old volume group or the new one.

Between two barriers writes may reach the drive in any order, so every one is cut short with none
and with all of the others done.  With one metadata area, with two, with text that goes round the
ring's end, and starting from areas that are damaged, outdated or empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lvm2
from lvm2_images import HOST, MIB, TIME, Memory, memory_drive, with_volumes, writes
from vdisk.tables.lvm2 import Group, NewVolume, Put, Step, VolumeGroup, create, new_drive, read_pv
from vdisk.tables.lvm2.area import Header, Location, pack_header
from vdisk.tables.lvm2.label import pack_label
from vdisk.tables.lvm2.layout import checksum
from vdisk.tables.lvm2.ring import placed

SECTOR = 512


def two_areas() -> Memory:
    memory = memory_drive(4 * MIB)
    group = memory.group()
    wanted = [NewVolume("old", 1), *(NewVolume(f"v{n}", 1, ("tag" * 30,)) for n in range(3))]
    memory.do(group.commit(create(group.vg, wanted, time=TIME, host=HOST), time=1, host=HOST).steps)
    return memory


def one_area() -> Memory:
    """As LVM2 makes a drive unless it is asked for two."""
    memory = two_areas()
    label = memory.pv().label
    label = replace(label, metadata_areas=label.metadata_areas[:1])
    memory.write(Put("", SECTOR, pack_label(label)))
    return memory


def at_the_end(memory: Memory, room: int) -> Memory:
    """Moves the text of every area so that it ends `room` bytes before the ring does."""
    group = memory.group()
    length = len(group.text)
    for found in group.pvs[0].areas:
        area = found.header.area
        start = (area.length - room - length) // SECTOR * SECTOR
        location = Location(start, length, checksum(group.text))
        for offset, data in placed(area, location, group.text):
            memory.write(Put("", offset, data))
        memory.write(Put("", area.offset, pack_header(Header(area, location))))
    return memory


def damaged(memory: Memory, number: int, at: int, length: int) -> Memory:
    """Overwrites bytes of area `number`, counted from where it begins."""
    area = memory.pv().label.metadata_areas[number]
    memory.write(Put("", area.offset + at, bytes(length)))
    return memory


def outdated(number: int) -> Memory:
    """Area `number` missed the last commit."""
    memory = two_areas()
    area = memory.pv().label.metadata_areas[number]
    kept = memory.read(area.offset, area.length)
    group = memory.group()
    memory.do(group.commit(with_volumes(group.vg, x=1), time=1, host=HOST).steps)
    memory.write(Put("", area.offset, kept))
    return memory


def torn_alone() -> Memory:
    """The only area's header was cut short while it was committed: slot 1 has the text."""
    memory = one_area()
    group = memory.group()
    *_, header = group.commit(with_volumes(group.vg, x=1), time=1, host=HOST).steps[:-1]
    assert isinstance(header, Put)
    memory.do(group.commit(with_volumes(group.vg, x=1), time=1, host=HOST).steps[:-2])
    memory.write(Put("", header.offset, header.data[:50]))
    return memory


SITUATIONS: dict[str, Callable[[], Memory]] = {
    "two areas": two_areas,
    "one area": one_area,
    "two areas, the new text goes round": lambda: at_the_end(two_areas(), 700),
    "one area, the new text goes round": lambda: at_the_end(one_area(), 700),
    "one area, the old text goes round": lambda: at_the_end(one_area(), -700),
    "one area, the old text ends with the ring": lambda: at_the_end(one_area(), 0),
    "the first header is damaged": lambda: damaged(two_areas(), 0, 0, 60),
    "the second header is damaged": lambda: damaged(two_areas(), 1, 20, 30),
    "the first area's text is damaged": lambda: damaged(two_areas(), 0, 512, 100000),
    "the first area is outdated": lambda: outdated(0),
    "the second area is outdated": lambda: outdated(1),
    "the only header is damaged": torn_alone,
}


@contextmanager
def undone(memory: Memory) -> Iterator[Callable[[Put, int], None]]:
    """Writes parts of steps, and takes it all back at the end."""
    before: list[tuple[int, bytes]] = []

    def write(step: Put, length: int) -> None:
        part = step.data[:length]
        if part:
            before.append((step.offset, memory.read(step.offset, len(part))))
            memory.data[step.offset : step.offset + len(part)] = part

    yield write
    for offset, data in reversed(before):
        memory.data[offset : offset + len(data)] = data


def puts(steps: tuple[Step, ...]) -> list[list[Put]]:
    return [[one for one in group if isinstance(one, Put)] for group in writes(steps)]


def cuts(step: Put) -> list[int]:
    """How much of a write is done: every byte of a header, the bytes around each sector of more.

    A header is zeros from byte 88 on, before and after; of that part, some bytes stand for all.
    """
    if len(step.data) <= SECTOR:
        return [*range(92), *range(92, len(step.data), 60)]
    sectors = range(0, len(step.data), SECTOR)
    return sorted({max(0, at + by) for at in sectors for by in (-1, 0, 1)})


def crashes(memory: Memory, steps: tuple[Step, ...]) -> Iterator[tuple[int, int, int, str]]:
    """Lets `memory` be in every crash state in turn: (barriers passed, write, bytes of it, others).

    In the last one, and ever after, all is written.
    """
    barriers = 0
    for barriers, group in enumerate(puts(steps)):
        for number, torn in enumerate(group):
            others = [one for one in group if one is not torn]
            for which, done in (("none", []), ("all", others)):
                for cut in cuts(torn):
                    with undone(memory) as write:
                        for one in done:
                            write(one, len(one.data))
                        write(torn, cut)
                        yield barriers, number, cut, which
        for one in group:
            memory.write(one)
    yield barriers + 1, 0, 0, "all"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_crash_leaves_the_old_group_or_the_new_one(situation: str) -> None:
    memory = SITUATIONS[situation]()
    old = memory.group()
    commit = old.commit(with_volumes(old.vg, new=70000), time=2, host=HOST)
    new = commit.group.vg
    states, groups = 0, {"old": 0, "new": 0}
    for barriers, number, cut, which in crashes(memory, commit.steps):
        states += 1
        found = memory.group().vg
        assert found in (old.vg, new), (barriers, number, cut, which)
        groups["new" if found == new else "old"] += 1
        if barriers == 0:
            assert found == old.vg, "nothing counts before the text is durable"
        if barriers > 1:
            assert found == new, "what is committed stays"
    assert states > 200
    assert groups["old"]
    assert groups["new"]
    assert memory.group() == commit.group
    assert memory.group().problems == ()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_after_a_crash_the_next_commit_goes_through_and_repairs(situation: str) -> None:
    memory = SITUATIONS[situation]()
    old = memory.group()
    commit = old.commit(with_volumes(old.vg, new=70000), time=2, host=HOST)
    saved = None
    for number, state in enumerate(crashes(memory, commit.steps)):
        if number % 29:
            continue
        saved = bytes(memory.data)
        group = memory.group()
        again = group.commit(with_volumes(group.vg, again=1), time=3, host=HOST)
        memory.do(again.steps)
        assert memory.group() == again.group, state
        assert memory.group().problems == (), state
        assert all(area.is_sound for area in memory.pv().areas)
        memory.data[:] = saved
    assert saved is not None


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), situation=st.sampled_from(sorted(SITUATIONS)))
def test_sectors_of_unfinished_writes_may_reach_the_drive_in_any_order(
    seed: int, situation: str
) -> None:
    """Any subset of the sectors between two barriers; a sector is written whole or not at all."""
    chance = random.Random(seed)
    memory = SITUATIONS[situation]()
    old = memory.group()
    commit = old.commit(with_volumes(old.vg, new=70000), time=2, host=HOST)
    for group in puts(commit.steps):
        sectors = [
            Put(one.pv, one.offset + at, one.data[at : at + SECTOR])
            for one in group
            for at in range(0, len(one.data), SECTOR)
        ]
        for _ in range(5):
            with undone(memory) as write:
                for one in chance.sample(sectors, chance.randint(0, len(sectors))):
                    write(one, len(one.data))
                assert memory.group().vg in (old.vg, commit.group.vg)
        for one in group:
            memory.write(one)


def test_a_new_drive_has_no_label_until_all_else_is_there() -> None:
    """Also over an old drive: its label is gone before anything of it is overwritten."""
    memory = two_areas()
    made = new_drive(len(memory.data), "other", time=TIME, host=HOST)
    steps = list(made.steps)
    for group in writes(made.steps)[:-1]:
        for one in group:
            memory.write(one)
        assert read_pv(memory.read, len(memory.data)) is None
    label = steps[-2]
    assert isinstance(label, Put)
    with undone(memory) as write:
        write(label, 511)
        assert memory.group().vg.name == "other"
    assert read_pv(memory.read, len(memory.data)) is None
    memory.write(label)
    assert memory.group().vg == made.vg


def names(vg: VolumeGroup) -> list[str]:
    return sorted(lv.name for lv in vg.lvs)


def crash_images(
    folder: Path, memory: Memory, steps: tuple[Step, ...], wanted: Callable[[int, int], bool]
) -> Iterator[tuple[Path, Group]]:
    """The crash states that `wanted`(barriers, bytes done) picks, as files."""
    number = 0
    for barriers, _, cut, _ in crashes(memory, steps):
        if wanted(barriers, cut):
            image = folder / f"{number}.img"
            image.write_bytes(memory.data)
            number += 1
            yield image, memory.group()
            image.unlink()


@lvm2.TAKES_ROOT
@pytest.mark.parametrize("situation", ["two areas", "one area, the new text goes round"])
def test_lvm2_finds_nothing_wrong_after_a_crash_between_sectors(
    tmp_path: Path, situation: str
) -> None:
    """A drive writes a sector whole or not at all; then vgck and pvck have nothing to say."""
    memory = SITUATIONS[situation]()
    old = memory.group()
    commit = old.commit(with_volumes(old.vg, new=70000), time=2, host=HOST)
    seen = set()

    def whole_sectors(barriers: int, cut: int) -> bool:
        return cut == 0 or (barriers == 0 and cut == 1024)

    for image, group in crash_images(tmp_path, memory, commit.steps, whole_sectors):
        with lvm2.attached(image) as tools:
            assert tools.report("vgs", columns="vg_seqno") == [{"vg_seqno": str(group.vg.seqno)}]
            if any(area.text != group.text for area in group.pvs[0].areas):
                tools.run("vgck", "--updatemetadata", "drive")  # One area waits for the new text.
            tools.check("drive", prepared=True)
            assert sorted(tools.volumes()) == names(group.vg)
        seen.add(group.vg.seqno)
    assert seen == {old.vg.seqno, commit.group.vg.seqno}


@lvm2.TAKES_ROOT
def test_lvm2_uses_the_other_copy_after_a_crash_inside_a_header(tmp_path: Path) -> None:
    """With two areas LVM2 has the old group or the new one even where a sector is torn."""
    memory = two_areas()
    old = memory.group()
    commit = old.commit(with_volumes(old.vg, new=70000), time=2, host=HOST)
    seen = set()

    def inside_a_header(barriers: int, cut: int) -> bool:
        return barriers > 0 and cut in (2, 58)

    for image, group in crash_images(tmp_path, memory, commit.steps, inside_a_header):
        with lvm2.attached(image) as tools:
            assert sorted(tools.volumes()) == names(group.vg)
            tools.run("vgck", "--updatemetadata", "drive")
            tools.check("drive")
            assert sorted(tools.volumes()) == names(group.vg)
        seen.add(group.vg.seqno)
    assert seen == {old.vg.seqno, commit.group.vg.seqno}
