"""Which copy of the metadata counts, what is said about the others, and what is not changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvm2_images import HOST, MIB, TIME, Memory, memory_drive, with_volumes
from vdisk.errors import Corrupt, InvalidArgument, NoSpace, NotPermitted, Unsupported
from vdisk.geometry import Geometry
from vdisk.tables.lvm2 import (
    NewVolume,
    PvRange,
    Segment,
    VolumeGroup,
    assemble,
    create,
    find_label,
    free_ranges,
    geometry_of,
    new_drive,
    remove,
    with_geometry,
)
from vdisk.tables.lvm2.label import pack_label, unpack_label


def drive() -> Memory:
    """A drive with a volume "a"."""
    memory = memory_drive(4 * MIB)
    group = memory.group()
    memory.do(group.commit(with_volumes(group.vg, a=100000), time=TIME, host=HOST).steps)
    return memory


def spoil(memory: Memory, offset: int, length: int = 8) -> None:
    """Inverts the bits of some bytes."""
    for at in range(offset, offset + length):
        memory.data[at] ^= 0xFF


def area_starts(memory: Memory) -> list[int]:
    return [area.offset for area in memory.pv().label.metadata_areas]


def text_start(memory: Memory, number: int) -> int:
    header = memory.pv().areas[number].header
    assert header.current is not None
    return header.area.offset + header.current.offset


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("where", ["header", "text"])
def test_with_one_good_copy_the_drive_opens_and_says_so(number: int, where: str) -> None:
    memory = drive()
    expected = memory.group().vg
    at = area_starts(memory)[number] if where == "header" else text_start(memory, number) + 100
    spoil(memory, at)
    group = memory.group()
    assert group.vg == expected
    (problem,) = group.problems
    assert f"at byte {area_starts(memory)[number]} is damaged" in problem
    assert where in problem


def test_without_a_good_copy_the_drive_is_refused_with_what_to_do() -> None:
    memory = drive()
    for number in (0, 1):
        spoil(memory, text_start(memory, number) + 100)
    with pytest.raises(Corrupt, match="checksum of its text") as refused:
        memory.group()
    assert "vgcfgrestore" in str(refused.value)


def test_a_text_is_found_through_damaged_headers_by_its_own_checksum() -> None:
    memory = drive()
    expected = memory.group().vg
    for start in area_starts(memory):
        spoil(memory, start, 4)
    group = memory.group()
    assert group.vg == expected
    assert len(group.problems) == 2


def test_an_older_copy_gives_way_to_the_newer_one() -> None:
    memory = drive()
    start = area_starts(memory)[0]
    kept = memory.read(start, MIB)
    group = memory.group()
    memory.do(group.commit(with_volumes(group.vg, b=1), time=TIME, host=HOST).steps)
    memory.data[start : start + len(kept)] = kept
    group = memory.group()
    assert [lv.name for lv in group.vg.lvs] == ["a", "b"]
    (problem,) = group.problems
    assert "older" in problem


def test_copies_with_one_number_that_contradict_each_other_are_not_changed() -> None:
    memory = drive()
    start = area_starts(memory)[0]
    before = bytes(memory.data)
    group = memory.group()
    memory.do(group.commit(with_volumes(group.vg, b=1), time=TIME, host=HOST).steps)
    other = memory.read(start, MIB)
    memory.data[:] = before
    memory.do(group.commit(with_volumes(group.vg, c=1), time=TIME, host=HOST).steps)
    memory.data[start : start + len(other)] = other
    group = memory.group()
    assert "contradict" in str(group.change_problem())


@pytest.mark.parametrize("at", [16, 20, 32, 40, 72, 88, 511])
def test_a_damaged_label_is_refused_with_what_to_do(at: int) -> None:
    memory = drive()
    spoil(memory, 512 + at, 1)
    with pytest.raises(Corrupt, match="label in sector 1 is damaged") as refused:
        find_label(memory.read, len(memory.data))
    assert "pvcreate" in str(refused.value)


def test_a_label_is_packed_as_it_was_read() -> None:
    """With a bootloader area and one data area of a given length as well."""
    label = drive().pv().label
    label = replace(label, data_areas=(replace(label.data_areas[0], length=MIB),),
                    bootloader_areas=label.data_areas)  # fmt: skip
    assert unpack_label(pack_label(label), 1) == label
    old = replace(label, extension_version=0, flags=0, bootloader_areas=())
    assert unpack_label(pack_label(old), 1) == old


def changed(vg: VolumeGroup, **fields: object) -> VolumeGroup:
    return replace(vg, **fields)  # type: ignore[arg-type]


def with_segment(vg: VolumeGroup, segment: Segment) -> VolumeGroup:
    return replace(vg, lvs=(replace(vg.lvs[0], segments=(segment,)),))


UNCHANGEABLE: dict[str, Callable[[VolumeGroup], VolumeGroup]] = {
    "shared": lambda vg: changed(vg, extra={"lock_type": "sanlock"}),
    "several machines": lambda vg: changed(vg, status=(*vg.status, "CLUSTERED")),
    "system": lambda vg: changed(vg, extra={"system_id": "elsewhere"}),
    "read only": lambda vg: changed(vg, status=("RESIZEABLE", "READ")),
    "exported": lambda vg: changed(vg, status=(*vg.status, "EXPORTED")),
    "sequence numbers": lambda vg: changed(vg, seqno=(1 << 32) - 1),
    "not known here": lambda vg: with_segment(vg, Segment(0, 1, "future", extra={"x": 1})),
}


@pytest.mark.parametrize("reason", UNCHANGEABLE)
def test_a_group_that_must_not_be_changed_is_not(reason: str) -> None:
    group = drive().group()
    group = replace(group, vg=UNCHANGEABLE[reason](group.vg))
    assert reason in str(group.change_problem())
    with pytest.raises(NotPermitted):
        group.commit(group.vg, time=TIME, host=HOST)


def test_metadata_that_would_be_written_over_extents_is_not() -> None:
    memory = drive()
    group = memory.group()
    (pv,) = group.vg.pvs
    low = replace(group, vg=replace(group.vg, pvs=(replace(pv, pe_start=1024),)))
    assert "overlap" in str(low.change_problem())


def test_another_group_is_not_committed_in_place_of_this_one() -> None:
    group = drive().group()
    with pytest.raises(InvalidArgument):
        group.commit(drive().group().vg, time=TIME, host=HOST)


def test_a_drive_that_was_cut_short_shows_what_is_left() -> None:
    """A volume past the end of the file is listed with the reason."""
    memory = memory_drive(64 * MIB)
    group = memory.group()
    vg = with_volumes(group.vg, near=MIB, far=40 * MIB)
    memory.do(group.commit(vg, time=TIME, host=HOST).steps)
    cut = Memory(memory.data[: 20 * MIB])
    group = cut.group()
    assert any("label says" in problem for problem in group.problems)
    assert "past its end" in str(group.change_problem())
    found = {one.name: one.problem for one in group.volumes()}
    assert found["near"] is None
    assert "past the end" in str(found["far"])


def test_a_segment_that_is_not_understood_keeps_its_extents() -> None:
    """Nothing is given out that another kind of volume names, and it cannot be removed here."""
    group = drive().group()
    segment = Segment(0, 5, "mirror", extra={"mirrors": ("pv0", 3, "pv0", 11)})
    vg = with_segment(group.vg, segment)
    taken = {n for one in free_ranges(vg) for n in range(one.first, one.end)}
    assert not taken & {*range(3, 8), *range(11, 16)}
    assert taken == set(range(vg.pvs[0].pe_count)) - {*range(3, 8), *range(11, 16)}
    with pytest.raises(Unsupported):
        remove(vg, ["a"])


def test_forbidden_extents_are_not_free() -> None:
    vg = drive().group().vg
    everything = [PvRange("pv0", 0, vg.pvs[0].pe_count)]
    assert free_ranges(vg, everything) == ()
    with pytest.raises(NoSpace):
        create(vg, [NewVolume("b", 1)], time=TIME, host=HOST, forbidden=everything)


def test_several_groups_on_several_drives() -> None:
    one, other = drive(), drive()
    groups = assemble([one.pv(), other.pv()])
    assert [group.vg.id for group in groups] == [one.group().vg.id, other.group().vg.id]


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, {}), (4 * MIB - 1, {}), (1 << 64, {}), (4 * MIB, {"extent_bytes": 3000}),
        (4 * MIB, {"extent_bytes": 512}), (4 * MIB, {"extent_bytes": 4 * MIB}),
        (4 * MIB, {"metadata_bytes": 2 * MIB}), (1 << 45, {"extent_bytes": 1024}),
    ],
)  # fmt: skip
def test_a_drive_that_cannot_be_is_refused(size: int, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        new_drive(size, "drive", time=TIME, host=HOST, **options)


@pytest.mark.parametrize("name", ["", "-a", ".", "a b", "a/b", "x" * 128])
def test_a_drive_is_not_given_a_name_that_lvm2_forbids(name: str) -> None:
    with pytest.raises(InvalidArgument):
        new_drive(64 * MIB, name, time=TIME, host=HOST)


@given(
    cylinders=st.integers(1, 70000), heads=st.integers(1, 255), sectors=st.integers(1, 255),
    size=st.sampled_from([128, 256, 512, 1024, 2048, 4096]),
)  # fmt: skip
def test_a_geometry_is_kept_in_tags(cylinders: int, heads: int, sectors: int, size: int) -> None:
    geometry = Geometry(cylinders, heads, sectors, size)
    tags = with_geometry(("other", "vdisk.geometry=1/1/1", "vdisk.sector_size=128"), geometry, None)
    assert tags == (
        "other", f"vdisk.geometry={cylinders}/{heads}/{sectors}", f"vdisk.sector_size={size}"
    )  # fmt: skip
    assert geometry_of(tags) == (geometry, size)
    assert with_geometry(tags, None, None) == ("other",)
    assert geometry_of(with_geometry((), None, size)) == (None, size)


@pytest.mark.parametrize(
    "tags",
    [("vdisk.geometry=0/1/1",), ("vdisk.geometry=x",), ("vdisk.geometry=",), ("vdisk.geometry",),
     ("vdisk.sector_size=513",), ("vdisk.sector_size=99999999999",), ("vdisk.sector_size=²",)],
)  # fmt: skip
def test_tags_that_make_no_sense_count_as_not_there(tags: tuple[str, ...]) -> None:
    assert geometry_of(tags) == (None, None)
