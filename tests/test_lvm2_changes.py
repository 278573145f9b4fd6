"""Random changes to a volume group: nothing overlaps, nothing leaves the drive, sizes are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from lvm2_images import HOST, MIB, TIME, Memory, memory_drive, with_volumes
from vdisk.errors import Exists, InvalidArgument, NoSpace, NotFound
from vdisk.tables.lvm2 import (
    NewVolume,
    PhysicalVolume,
    PvRange,
    Segment,
    Stripe,
    VolumeGroup,
    VolumeMap,
    create,
    free_ranges,
    remove,
    rename,
    resize,
    set_tags,
    space,
)
from vdisk.tables.lvm2.dump import dump
from vdisk.tables.lvm2.load import load

Place = tuple[str, int]
"""A physical volume's key and an extent of it."""

SIZES = st.integers(1, 3 * MIB)


def places(vg: VolumeGroup, name: str) -> list[Place]:
    """Where each extent of the volume is, in its order; for one without stripes."""
    lv = vg.lv(name)
    assert lv is not None
    found: list[Place] = []
    for segment in lv.segments:
        assert segment.start == len(found)
        (taken,) = segment.ranges()
        found += [(taken.pv, number) for number in range(taken.first, taken.end)]
    return found


def extents(vg: VolumeGroup, size: int) -> int:
    return (size + vg.extent_size * 512 - 1) // (vg.extent_size * 512)


class Changes(RuleBasedStateMachine):
    """A drive in memory against a dictionary of what each volume's extents are."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.drive: Memory = memory_drive(6 * MIB)
        self.group = self.drive.group()
        self.model: dict[str, list[Place]] = {}
        self.held: list[PvRange] = []
        self.serial = 0

    def commit(self, vg: VolumeGroup) -> None:
        commit = self.group.commit(vg, time=TIME, host=HOST)
        self.drive.do(commit.steps)
        seqno = self.group.vg.seqno
        self.group = self.drive.group()
        assert self.group == commit.group
        assert self.group.vg.seqno == seqno + 1

    def new_name(self) -> str:
        self.serial += 1
        return f"v{self.serial}"

    def free(self) -> int:
        held = {one for taken in self.held for one in range(taken.first, taken.end)}
        used = {number for where in self.model.values() for _, number in where}
        return self.group.vg.pvs[0].pe_count - len(used | held)

    @rule(target=names, sizes=st.lists(SIZES, min_size=1, max_size=4))
    def creates(self, sizes: list[int]) -> object:
        vg = self.group.vg
        wanted = [NewVolume(self.new_name(), size) for size in sizes]
        if sum(extents(vg, size) for size in sizes) > self.free():
            with pytest.raises(NoSpace):
                create(vg, wanted, time=TIME, host=HOST, forbidden=self.held)
            return "nobody"
        self.commit(create(vg, wanted, time=TIME, host=HOST, forbidden=self.held))
        for one in wanted:
            self.model[one.name] = places(self.group.vg, one.name)
            assert len(self.model[one.name]) == extents(vg, one.size_bytes)
        return wanted[0].name

    @rule(name=consumes(names), hold=st.booleans())
    def removes(self, name: str, hold: bool) -> None:
        """With `hold`, the volume is still open somewhere: its extents must not be given out."""
        if name not in self.model:
            with pytest.raises(NotFound):
                remove(self.group.vg, [name])
            return
        if hold:
            lv = self.group.vg.lv(name)
            assert lv is not None
            self.held += [taken for segment in lv.segments for taken in segment.ranges()]
        self.commit(remove(self.group.vg, [name]))
        del self.model[name]

    @rule()
    def lets_go(self) -> None:
        self.held.clear()

    @rule(target=names, name=consumes(names))
    def renames(self, name: str) -> object:
        if name not in self.model:
            return "nobody"
        new = self.new_name()
        self.commit(rename(self.group.vg, name, new))
        self.model[new] = self.model.pop(name)
        return new

    @rule(name=names, size=SIZES)
    def resizes(self, name: str, size: int) -> None:
        if name not in self.model:
            return
        vg, before = self.group.vg, self.model[name]
        if extents(vg, size) - len(before) > self.free():
            with pytest.raises(NoSpace):
                resize(vg, name, size, forbidden=self.held)
            return
        self.commit(resize(vg, name, size, forbidden=self.held))
        after = places(self.group.vg, name)
        assert len(after) == extents(vg, size)
        kept = min(len(before), len(after))
        assert after[:kept] == before[:kept]
        self.model[name] = after

    @rule(name=names)
    def a_name_that_is_taken_is_refused(self, name: str) -> None:
        if name not in self.model:
            return
        with pytest.raises(Exists):
            with_volumes(self.group.vg, **{name: 1})
        with pytest.raises(Exists):
            rename(self.group.vg, name, name)

    @invariant()
    def nothing_else_has_changed(self) -> None:
        vg = self.group.vg
        assert {lv.name: places(vg, lv.name) for lv in vg.lvs} == self.model
        used = [place for where in self.model.values() for place in where]
        assert len(set(used)) == len(used), "two volumes overlap"
        assert all(0 <= number < vg.pvs[0].pe_count for _, number in used)
        held = {(one.pv, n) for one in self.held for n in range(one.first, one.end)}
        room = space(vg, self.held)
        assert room.total == vg.pvs[0].pe_count * vg.extent_bytes
        assert room.free == self.free() * vg.extent_bytes
        ranges = free_ranges(vg, self.held)
        free = [(one.pv, number) for one in ranges for number in range(one.first, one.end)]
        assert not set(free) & (set(used) | held)
        assert free == sorted(free)


Changes.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestChanges = Changes.TestCase


@st.composite
def groups(draw: st.DrawFn) -> VolumeGroup:
    """A group on several drives, some of them not to be allocated on, with volumes in between."""
    pvs = []
    for number in range(draw(st.integers(1, 3))):
        status = draw(st.sampled_from([("ALLOCATABLE",), ("ALLOCATABLE",), ()]))
        flags = draw(st.sampled_from([(), (), ("MISSING",)]))
        count = draw(st.integers(1, 40))
        uuid = f"AAAAAA-0000-0000-0000-0000-0000-00000{number}"
        pvs.append(PhysicalVolume(f"pv{number}", uuid, 2048, count, None, status, flags))
    vg = VolumeGroup("v", "AAAAAA-0000-0000-0000-0000-0000-000009", 1, 8, tuple(pvs))
    for number in range(draw(st.integers(0, 5))):
        room = space(vg).free // vg.extent_bytes
        if room:
            size = draw(st.integers(1, room)) * vg.extent_bytes
            vg = with_volumes(vg, **{f"v{number}": size})
    gone = draw(st.lists(st.sampled_from([lv.name for lv in vg.lvs] or ["-"]), unique=True))
    return remove(vg, gone) if vg.lvs else vg


@given(vg=groups(), wanted=st.integers(1, 100))
def test_extents_are_given_out_on_drives_that_allow_it(vg: VolumeGroup, wanted: int) -> None:
    allowed = {pv.key for pv in vg.pvs if pv.status and not pv.flags}
    used = {place for lv in vg.lvs for place in places(vg, lv.name)}
    free = sum(pv.pe_count for pv in vg.pvs if pv.key in allowed) - len(used)
    if wanted > free:
        with pytest.raises(NoSpace):
            with_volumes(vg, new=wanted * vg.extent_bytes)
        return
    found = places(with_volumes(vg, new=wanted * vg.extent_bytes), "new")
    assert len(set(found)) == wanted
    assert not set(found) & used
    assert {key for key, _ in found} <= allowed


@given(vg=groups(), wanted=st.integers(1, 100))
def test_a_volume_is_in_one_piece_where_one_is_large_enough(vg: VolumeGroup, wanted: int) -> None:
    free = free_ranges(vg)
    if wanted > sum(one.count for one in free):
        return
    made = with_volumes(vg, new=wanted * vg.extent_bytes)
    assert made.lvs[:-1] == vg.lvs
    pieces = len(made.lvs[-1].segments)
    largest = sorted((one.count for one in free), reverse=True)
    needed = next(n for n in range(1, len(largest) + 1) if sum(largest[:n]) >= wanted)
    assert pieces == needed


@given(vg=groups())
def test_text_and_back_is_the_same_group(vg: VolumeGroup) -> None:
    assert load(dump(vg, description="d", host="h", time=1)) == vg


def test_a_volume_grows_in_place_first() -> None:
    group = memory_drive().group()
    vg = with_volumes(group.vg, a=MIB, b=MIB)
    vg = resize(vg, "b", 2 * MIB)
    lv = vg.lv("b")
    assert lv is not None
    assert len(lv.segments) == 1
    vg = remove(vg, ["b"])
    vg = resize(vg, "a", 2 * MIB)
    lv = vg.lv("a")
    assert lv is not None
    assert len(lv.segments) == 1


def striped() -> VolumeGroup:
    """A group of two drives with a volume of 8 extents striped over both."""
    pvs = tuple(
        PhysicalVolume(f"pv{n}", f"AAAAAA-0000-0000-0000-0000-0000-00000{n}", 2048, 20)
        for n in range(2)
    )
    vg = VolumeGroup("v", "AAAAAA-0000-0000-0000-0000-0000-000009", 1, 8, pvs)
    vg = with_volumes(vg, s=vg.extent_bytes)
    segment = Segment(0, 8, stripes=(Stripe("pv0", 0), Stripe("pv1", 3)), stripe_size=8)
    return replace(vg, lvs=(replace(vg.lvs[0], segments=(segment,)),))


def test_a_striped_volume_keeps_as_much_on_each_stripe_when_it_shrinks() -> None:
    vg = striped()
    shrunk = resize(vg, "s", 3 * vg.extent_bytes)
    assert shrunk.lvs[0].segments[0].count == 4
    assert load(dump(shrunk, description="d", host="h", time=1)) == shrunk
    grown = resize(vg, "s", 11 * vg.extent_bytes)
    assert [segment.count for segment in grown.lvs[0].segments] == [8, 3]
    assert load(dump(grown, description="d", host="h", time=1)) == grown


@given(start=st.integers(0, 8 * 4096), length=st.integers(0, 8 * 4096))
def test_runs_cover_any_range_of_a_striped_and_fragmented_volume(start: int, length: int) -> None:
    """Against the place of every sector, worked out one by one."""
    vg = resize(striped(), "s", 12 * 4096)
    lv = vg.lv("s")
    assert lv is not None
    volume_map = VolumeMap(vg, lv)
    ids = [pv.id for pv in vg.pvs]
    end = min(start + length, volume_map.size)

    def place(byte: int) -> tuple[str, int]:
        chunk, rest = divmod(byte, 4096)
        if chunk < 8:
            first = (0, 3)[chunk % 2]
            return ids[chunk % 2], 2048 * 512 + (first + chunk // 2) * 4096 + rest
        pv, number = tail[chunk - 8]
        return ids[int(pv[2])], 2048 * 512 + number * 4096 + rest

    tail = [
        (taken.pv, n)
        for segment in lv.segments[1:]
        for taken in segment.ranges()
        for n in range(taken.first, taken.end)
    ]
    at = start
    for run in volume_map.runs(start, end - start) if end > start else ():
        assert run.guest_offset == at
        assert run.length > 0
        assert (run.pv, run.offset) == place(at)
        last_pv, last = place(at + run.length - 1)
        assert (run.pv, (run.offset or 0) + run.length - 1) == (last_pv, last)
        at += run.length
    assert at == max(end, start) or end < start


def test_a_linear_volume_is_one_window_however_many_segments_it_has() -> None:
    vg = with_volumes(striped(), a=2 * 4096)
    lv = vg.lv("a")
    assert lv is not None
    (stripe,) = lv.segments[0].stripes
    halves = (
        Segment(0, 1, stripes=(stripe,)),
        Segment(1, 1, stripes=(Stripe(stripe.pv, stripe.first + 1),)),
    )
    volume_map = VolumeMap(vg, replace(lv, segments=halves))
    pv = next(pv for pv in vg.pvs if pv.key == stripe.pv)
    assert volume_map.window() == (pv.id, 2048 * 512 + stripe.first * 4096)


@pytest.mark.parametrize("size", [0, -1])
def test_a_volume_of_no_size_is_refused(size: int) -> None:
    vg = with_volumes(memory_drive().group().vg, a=1)
    with pytest.raises(InvalidArgument):
        with_volumes(vg, b=size)
    with pytest.raises(InvalidArgument):
        resize(vg, "a", size)


def test_a_group_with_a_limit_on_its_volumes_keeps_it() -> None:
    vg = replace(memory_drive().group().vg, max_lv=2)
    vg = with_volumes(vg, a=1, b=1)
    with pytest.raises(NoSpace):
        with_volumes(vg, c=1)


def test_all_of_a_creation_or_none_of_it() -> None:
    vg = memory_drive().group().vg
    for wanted in (
        [NewVolume("a", 1), NewVolume("a", 1)],
        [NewVolume("a", 1), NewVolume("b c", 1)],
        [NewVolume("a", 1), NewVolume("b", 1 << 50)],
        [NewVolume("a", 1), NewVolume("b", 1, ("no tag",))],
    ):
        with pytest.raises((Exists, InvalidArgument, NoSpace)):
            create(vg, wanted, time=TIME, host=HOST)
    with pytest.raises(InvalidArgument):
        set_tags(with_volumes(vg, a=1), "a", ("",))
