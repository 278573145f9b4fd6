"""Whatever the bytes are: a group, or InvalidFormat, Corrupt or Unsupported; and soon."""

from __future__ import annotations

import struct
import time
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm2_images import HOST, MIB, TIME, Memory, memory_drive, with_volumes
from vdisk.errors import Corrupt, InvalidFormat, NoSpace, NotPermitted, Unsupported
from vdisk.tables.lvm2 import (
    Group,
    NewVolume,
    Put,
    Stripe,
    VolumeMap,
    assemble,
    create,
    find_label,
    read_pv,
)
from vdisk.tables.lvm2.area import Header, Location, pack_header
from vdisk.tables.lvm2.config import Section, parse, render
from vdisk.tables.lvm2.dump import dump
from vdisk.tables.lvm2.layout import checksum
from vdisk.tables.lvm2.load import load
from vdisk.tables.lvm2.ring import placed

SIZE = 4 * MIB
REFUSALS = (InvalidFormat, Corrupt, Unsupported)
SECONDS_MAX = 2.0
FUZZ = settings(max_examples=400)


def base() -> Memory:
    memory = memory_drive(SIZE)
    group = memory.group()
    vg = with_volumes(group.vg, a=100000, b=1, c=300000)
    memory.do(group.commit(vg, time=TIME, host=HOST).steps)
    return memory


BASE = base()
AREAS = BASE.pv().label.metadata_areas


def opened(memory: Memory) -> list[Group]:
    """The groups, with every volume mapped; a refusal gives none.  Reads stay in bounds."""
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return memory.read(offset, length)

    start = time.process_time()
    groups: list[Group] = []
    try:
        pv = read_pv(read, len(memory.data))
        groups = [] if pv is None else list(assemble([pv]))
    except REFUSALS:
        pass
    for group in groups:
        check_volumes(group, len(memory.data))
    assert asked <= 16 * SIZE
    assert time.process_time() - start < SECONDS_MAX
    return groups


def check_volumes(group: Group, size: int) -> None:
    """What is mapped lies inside the drive."""
    for volume in group.volumes():
        if volume.problem is None:
            volume_map = VolumeMap(group.vg, volume.lv)
            assert volume_map.size == volume.size > 0
            for offset in (0, volume.size // 2, volume.size - 1):
                (run,) = volume_map.runs(offset, 1)
                assert run.offset is None or 0 <= run.offset < size


def check_commit(memory: Memory, group: Group) -> None:
    """Where a change is allowed it touches nothing but metadata areas, and is there afterwards."""
    try:
        vg = create(group.vg, [NewVolume("more", 1)], time=TIME, host=HOST)
        commit = group.commit(vg, time=TIME, host=HOST)
    except (*REFUSALS, NotPermitted, NoSpace):
        return
    areas = group.pvs[0].label.metadata_areas
    for step in commit.steps:
        if isinstance(step, Put):
            end = step.offset + len(step.data)
            assert any(area.offset <= step.offset and end <= area.end for area in areas)
    memory.do(commit.steps)
    assert memory.group().vg == commit.group.vg


OFFSETS = st.integers(0, 511)
VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 4, 511, 512, 513, 4096, SIZE - 512, SIZE, SIZE + 1, 1 << 31, 1 << 63]),
)
PATCHES = st.lists(st.tuples(OFFSETS, st.sampled_from("BIQ"), VALUES), min_size=1, max_size=4)


def patch(sector: bytearray, patches: list[tuple[int, str, int]]) -> None:
    for at, kind, value in patches:
        data = struct.pack("<Q", value)[: {"B": 1, "I": 4, "Q": 8}[kind]]
        sector[at : at + len(data)] = data[: 512 - at]


@FUZZ
@given(patches=PATCHES, right_crc=st.booleans())
def test_any_label_is_read_or_refused(
    patches: list[tuple[int, str, int]], right_crc: bool
) -> None:
    memory = Memory(BASE.data)
    sector = bytearray(memory.read(512, 512))
    # Most fields are in the first 200 bytes.
    patch(sector, [(at * 200 // 512 // 4 * 4, kind, value) for at, kind, value in patches])
    if right_crc:
        sector[16:20] = struct.pack("<I", checksum(bytes(sector[20:])))
    memory.data[512:1024] = sector
    for group in opened(memory):
        check_commit(memory, group)


@FUZZ
@given(patches=PATCHES, right_crc=st.booleans(), both=st.booleans())
def test_any_area_header_is_read_or_refused(
    patches: list[tuple[int, str, int]], right_crc: bool, both: bool
) -> None:
    memory = Memory(BASE.data)
    for area in AREAS if both else AREAS[:1]:
        sector = bytearray(memory.read(area.offset, 512))
        patch(sector, [(at * 96 // 512 // 4 * 4, kind, value) for at, kind, value in patches])
        if right_crc:
            sector[:4] = struct.pack("<I", checksum(bytes(sector[4:])))
        memory.data[area.offset : area.offset + 512] = sector
    groups = opened(memory)
    if not both and patches:
        for group in groups:
            assert group.vg.name == "drive"
    for group in groups:
        check_commit(memory, group)


def with_text(text: bytes) -> Memory:
    """A drive of which both areas hold `text`, with all checksums right."""
    memory = Memory(BASE.data)
    for area in AREAS:
        location = Location(512, len(text), checksum(text))
        for offset, data in placed(area, location, text):
            memory.write(Put("", offset, data))
        memory.write(Put("", area.offset, pack_header(Header(area, location))))
    return memory


TEXT = BASE.group().text


@FUZZ
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 30),
                            st.binary(max_size=8)), min_size=1, max_size=4),
)  # fmt: skip
def test_any_text_is_read_or_refused(cuts: list[tuple[int, int, bytes]]) -> None:
    text = TEXT
    for at, length, data in cuts:
        text = text[:at] + data + text[at + length :]
    memory = with_text(text or b"\0")
    for group in opened(memory):
        check_commit(memory, group)


def paths(section: Section, start: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, item in section.items():
        found.append((*start, key))
        if isinstance(item, dict):
            found += paths(item, (*start, key))
    return found


PATHS = paths(parse(TEXT))
STRANGE = st.one_of(
    st.sampled_from([
        0, -1, 1, 2, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, "", "striped",
        "pv0", "a", "thin", "x" * 200, "../..", "raid1", 1.5, (), ("READ",), ("pv0", 0),
        ("pv0", -1), ("pv0", 1 << 32), ("a", 0), ("pv0",), (0, "pv0"), ("pv0", 0, "pv0", 1),
        ("pv0", 0, "nowhere", 1), {}, {"segment1": {}}, {"a": {"a": 1}}, None,
    ]),
    st.integers(-(1 << 63), (1 << 64) - 1),
)  # fmt: skip


@FUZZ
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), STRANGE), min_size=1, max_size=3))
def test_a_text_of_any_values_is_read_or_refused(
    changes: list[tuple[tuple[str, ...], object]]
) -> None:
    """A sound text of which some values, or whole sections, are others or missing."""
    root = parse(TEXT)
    for path, value in changes:
        section: object = root
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[path[-1]] = deepcopy(value)
            if value is None:
                del section[path[-1]]
    memory = with_text(render(root) + b"\0")
    for group in opened(memory):
        check_commit(memory, group)


@given(start=st.binary(max_size=3000))
def test_any_start_of_a_drive_has_a_label_or_none(start: bytes) -> None:
    memory = Memory(start)
    try:
        find_label(memory.read, len(start))
    except REFUSALS:
        return


@pytest.mark.parametrize("sector", range(6))
def test_a_label_is_looked_for_in_four_sectors(sector: int) -> None:
    memory = Memory(BASE.data)
    label = bytearray(memory.read(512, 512))
    label[8:16] = struct.pack("<Q", sector)
    label[16:20] = struct.pack("<I", checksum(bytes(label[20:])))
    memory.data[:4096] = bytes(4096)
    memory.data[sector * 512 : sector * 512 + 512] = label
    assert (read_pv(memory.read, SIZE) is not None) == (sector < 4)


ABSURD = {
    "overlap": lambda vg: replace(
        vg, lvs=(vg.lvs[0], replace(vg.lvs[1], segments=vg.lvs[0].segments), vg.lvs[2])
    ),
    "gap": lambda vg: replace(
        vg, lvs=(replace(vg.lvs[0], segments=(replace(vg.lvs[0].segments[0], start=1),)),)
    ),
    "outside": lambda vg: replace(
        vg, lvs=(replace(
            vg.lvs[0], segments=(replace(vg.lvs[0].segments[0], stripes=(Stripe("pv0", 9999),)),)
        ),)
    ),
    "uneven": lambda vg: replace(
        vg, lvs=(replace(
            vg.lvs[0], segments=(replace(
                vg.lvs[0].segments[0], count=3, stripe_size=8,
                stripes=(Stripe("pv0", 0), Stripe("pv0", 9)),
            ),)
        ),)
    ),
    "twice": lambda vg: replace(vg, lvs=(vg.lvs[0], replace(vg.lvs[1], id=vg.lvs[0].id))),
}  # fmt: skip


@pytest.mark.parametrize("what", ABSURD)
def test_a_group_that_contradicts_itself_is_refused(what: str) -> None:
    vg = ABSURD[what](BASE.group().vg)
    text = dump(vg, description="d", host="h", time=1)
    memory = with_text(text)
    with pytest.raises(Corrupt):
        memory.group()
    if what != "uneven":  # That one cannot be made by changes.
        with pytest.raises(Corrupt):
            BASE.group().commit(vg, time=1, host="h")


@pytest.mark.parametrize(("count", "seconds_max"), [(1000, 0.2), (5000, 1.0)])
def test_thousands_of_volumes_are_read_and_printed_soon(count: int, seconds_max: float) -> None:
    """In the time of this process: the best of three, for others use the machine as well."""
    vg = memory_drive(SIZE).group().vg
    vg = replace(vg, pvs=(replace(vg.pvs[0], pe_count=2 * count),))
    wanted = [NewVolume(f"d{n}", 1, ("vdisk.geometry=1024/16/63",)) for n in range(count)]
    vg = create(vg, wanted, time=TIME, host=HOST)
    printing, reading = [], []
    for _ in range(3):
        start = time.process_time()
        text = dump(vg, description="d", host="h", time=1)
        printing.append(time.process_time() - start)
        start = time.process_time()
        assert load(text) == vg
        reading.append(time.process_time() - start)
    assert min(printing) < seconds_max
    assert min(reading) < seconds_max


def test_a_huge_text_is_not_read_and_never_written_over() -> None:
    """A length that the header claims costs nothing, and the area counts as not ours to write."""
    memory = memory_drive(64 * MIB, metadata_bytes=20 * MIB)
    group = memory.group()
    for found in group.pvs[0].areas:
        area = found.header.area
        location = Location(512, 9 * MIB, 1)
        memory.write(Put("", area.offset, pack_header(Header(area, location))))
    with pytest.raises(Corrupt, match="9 MiB"):
        memory.group()
    found_areas = memory.pv().areas
    assert all(area.header.ignored for area in found_areas)
