"""Geometry and CHS: the arithmetic both ways, the text form, the limits, and MBR's three bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.chs import CYLINDERS_MAX, HEADS_MAX, SECTOR_SIZES, SECTORS_PER_TRACK_MAX
from vdisk.errors import InvalidArgument, OutOfRange
from vdisk.geometry import (
    CHS,
    Geometry,
    UnpackedCHS,
    check_fits,
    cover,
    is_overflow,
    pack_chs,
    pack_lba,
    unpack_chs,
)
from vdisk.units import SIZE_BYTES_MAX

sector_sizes = st.sampled_from(SECTOR_SIZES)
# All that 63 bits of bytes hold: 2**32 cylinders of 2**18 sectors of 4096 bytes are 2**62.
geometries = st.builds(
    Geometry, st.integers(1, CYLINDERS_MAX), st.integers(1, 512), st.integers(1, 512), sector_sizes
)
PC = Geometry(1024, 16, 63)


def test_the_counts_of_the_528_mb_barrier() -> None:
    # ATA and INT 13h together reach 528482304 bytes, the best known number of all of these.
    assert (PC.sectors, PC.size_bytes) == (1032192, 528482304)
    assert (PC.sectors_per_cylinder, PC.track_bytes, PC.cylinder_bytes) == (1008, 32256, 516096)


@pytest.mark.parametrize(
    ("lba", "chs"),
    [
        (0, "0/0/1"),
        (62, "0/0/63"),
        (63, "0/1/1"),
        (1007, "0/15/63"),
        (1008, "1/0/1"),
        (2048, "2/0/33"),
        (1032191, "1023/15/63"),
    ],
)
def test_known_addresses(lba: int, chs: str) -> None:
    assert PC.chs(lba) == CHS.parse(chs)
    assert PC.lba(CHS.parse(chs)) == lba
    assert str(CHS.parse(chs)) == chs


@given(geometries, st.data())
def test_lba_to_chs_and_back_is_the_same_sector(geometry: Geometry, data: st.DataObject) -> None:
    lba = data.draw(st.integers(0, geometry.sectors - 1))
    chs = geometry.chs(lba)
    assert geometry.lba(chs) == lba
    assert chs.cylinder < geometry.cylinders
    assert chs.head < geometry.heads
    assert 1 <= chs.sector <= geometry.sectors_per_track


@given(geometries, st.data())
def test_chs_to_lba_and_back_is_the_same_address(geometry: Geometry, data: st.DataObject) -> None:
    chs = CHS(
        data.draw(st.integers(0, geometry.cylinders - 1)),
        data.draw(st.integers(0, geometry.heads - 1)),
        data.draw(st.integers(1, geometry.sectors_per_track)),
    )
    assert geometry.chs(geometry.lba(chs)) == chs


@given(geometries, st.data())
def test_addresses_sort_as_their_lbas(geometry: Geometry, data: st.DataObject) -> None:
    lbas = st.integers(0, geometry.sectors - 1)
    a, b = data.draw(lbas), data.draw(lbas)
    assert (a < b) == (geometry.chs(a) < geometry.chs(b))


@pytest.mark.parametrize("lba", [-1, 1032192, 1 << 70])
def test_an_lba_outside_has_no_address(lba: int) -> None:
    with pytest.raises(OutOfRange, match=str(lba)):
        PC.chs(lba)


@pytest.mark.parametrize("chs", ["1024/0/1", "0/16/1", "0/0/64"])
def test_an_address_outside_has_no_lba(chs: str) -> None:
    with pytest.raises(OutOfRange, match=f"no sector {chs}"):
        PC.lba(CHS.parse(chs))


@pytest.mark.parametrize(
    "text", ["0/0/0", "", "1/2", "1/2/3/4", "-1/0/1", "a/b/c", "1024,16,63", "1//1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument):
        CHS.parse(text)


@given(geometries)
def test_a_geometry_prints_what_parses_to_it(geometry: Geometry) -> None:
    assert Geometry.parse(str(geometry), geometry.sector_size) == geometry


@pytest.mark.parametrize(
    "text",
    [
        "0/16/63",
        "1024/0/63",
        "1024/16/0",
        "4294967296/16/63",
        "1/65536/1",
        "1/1/65536",
        "-1/16/63",
        "1024/16",
        "1024/16/63/512",
        "1024,16,63",
        "1024x16x63",
        "٣/1/1",
        "1 /1/1",
        "99999999999/1/1",
        "9" * 9999,
    ],
    ids=range(15),
)
def test_an_absurd_geometry_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Geometry.parse(text)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_the_largest_numbers_are_taken() -> None:
    assert Geometry(CYLINDERS_MAX, 256, 255).cylinders == 2**32 - 1
    assert Geometry(1, HEADS_MAX, SECTORS_PER_TRACK_MAX, 4096).sectors == 65535 * 65535
    with pytest.raises(InvalidArgument, match="no disk is larger"):
        Geometry(CYLINDERS_MAX, HEADS_MAX, SECTORS_PER_TRACK_MAX)


@pytest.mark.parametrize("sector_size", [0, -512, 1, 64, 127, 500, 513, 8192, 1 << 40])
def test_a_sector_is_a_power_of_two_from_128_to_4096(sector_size: int) -> None:
    with pytest.raises(InvalidArgument, match="sector size"):
        Geometry(1, 1, 1, sector_size)


def test_what_is_past_the_last_cylinder_only_lba_reaches() -> None:
    # The issue's own disk: 1 GiB at 16/63 is 2080 cylinders, of 2097152 sectors.
    assert Geometry(2080, 16, 63).unaddressed_sectors(1 << 30) == 2097152 - 2080 * 1008
    assert PC.unaddressed_sectors(PC.size_bytes) == 0
    assert PC.unaddressed_sectors(PC.size_bytes + 511) == 0
    assert PC.unaddressed_sectors(1) == 0


@given(st.integers(0, SIZE_BYTES_MAX), st.integers(1, 300), st.integers(1, 300), sector_sizes)
def test_cover_has_the_most_cylinders_that_fit(
    size: int, heads: int, spt: int, sector: int
) -> None:
    geometry = cover(size, heads, spt, sector)
    cylinder = heads * spt * sector
    if geometry is None:
        assert size < cylinder
        return
    assert geometry.size_bytes <= size
    assert geometry.cylinders == CYLINDERS_MAX or size - geometry.size_bytes < cylinder


def test_a_geometry_that_does_not_fit_is_refused_with_the_sizes_that_would() -> None:
    check_fits(PC, PC.size_bytes)
    check_fits(PC, PC.size_bytes + 1)
    with pytest.raises(InvalidArgument) as refused:
        check_fits(PC, PC.size_bytes - 1)
    for needed in ("1024/16/63", "528482304", "1023/16/63"):
        assert needed in str(refused.value)
    with pytest.raises(InvalidArgument, match="not one cylinder of 516096 bytes"):
        check_fits(PC, 516095)


@given(st.integers(0, 1023), st.integers(0, 255), st.integers(1, 63))
def test_packed_and_unpacked_is_the_same_address(cylinder: int, head: int, sector: int) -> None:
    chs = CHS(cylinder, head, sector)
    packed = pack_chs(chs)
    assert unpack_chs(packed).address() == chs
    # The layout, said another way: head, then 2 bits of cylinder over the sector, then 8 bits.
    assert packed[0] == head
    assert packed[1] & 63 == sector
    assert (packed[1] >> 6) * 256 + packed[2] == cylinder


@given(st.binary(min_size=3, max_size=3))
def test_any_three_bytes_unpack(packed: bytes) -> None:
    unpacked = unpack_chs(packed)
    address = unpacked.address()
    assert (address is None) == (unpacked.sector == 0)
    if address is not None:
        assert pack_chs(address) == packed


@pytest.mark.parametrize("chs", [CHS(1024, 0, 1), CHS(0, 256, 1), CHS(0, 0, 64)])
def test_what_three_bytes_cannot_hold(chs: CHS) -> None:
    with pytest.raises(OutOfRange):
        pack_chs(chs)


@pytest.mark.parametrize("packed", [b"", b"\0\0", b"\0\0\0\0"])
def test_only_three_bytes_are_a_packed_address(packed: bytes) -> None:
    with pytest.raises(InvalidArgument):
        unpack_chs(packed)


@pytest.mark.parametrize(
    ("heads", "spt", "packed"),
    [
        (255, 63, "feffff"),
        (256, 63, "ffffff"),
        (16, 63, "0fffff"),
        (128, 63, "7fffff"),
        (4, 32, "03e0ff"),
    ],
)
def test_past_cylinder_1023_are_the_bytes_that_sfdisk_and_parted_write(
    heads: int, spt: int, packed: str
) -> None:
    geometry = Geometry(5000, heads, spt)
    first_past = 1024 * heads * spt
    assert pack_lba(first_past, geometry).hex() == packed
    assert pack_lba(2**32, geometry).hex() == packed
    assert pack_lba(first_past - 1, geometry).hex() == packed
    assert pack_lba(first_past - 2, geometry).hex() != packed
    assert is_overflow(unpack_chs(bytes.fromhex(packed)), geometry)


def test_what_may_only_mean_use_the_lba() -> None:
    assert is_overflow(UnpackedCHS(1023, 254, 63))
    assert is_overflow(UnpackedCHS(1023, 255, 63))
    assert not is_overflow(UnpackedCHS(1023, 15, 63))
    assert is_overflow(UnpackedCHS(1023, 15, 63), PC)
    assert not is_overflow(UnpackedCHS(1022, 254, 63), PC)
    with pytest.raises(OutOfRange):
        pack_lba(-1, PC)
