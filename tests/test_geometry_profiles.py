"""Profiles: no derived geometry is larger than its disk, and each profile's limits are its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.chs import CYLINDERS_MAX, SECTOR_SIZES
from vdisk.errors import InvalidArgument
from vdisk.geometry import PROFILES, Geometry, derive, profile_sector_size, profile_size
from vdisk.units import SIZE_BYTES_MAX

DERIVED = [name for name in PROFILES if profile_size(name) is None]
sector_sizes = st.sampled_from(SECTOR_SIZES)
sizes = st.one_of(
    st.integers(4096, 1 << 24), st.integers(4096, 1 << 44), st.integers(4096, SIZE_BYTES_MAX)
)

MIB = 1 << 20


def test_the_profiles_of_the_issue_are_there() -> None:
    assert DERIVED == ["ata", "bios", "large", "rechs", "fdisk", "vhd", "zip", "scsi"]
    floppies = ["160K", "180K", "320K", "360K", "640K", "720K", "1.2M", "1.44M", "1.68M", "2.88M"]
    assert set(floppies) < set(PROFILES)


@given(st.sampled_from(DERIVED), sizes, sector_sizes)
def test_a_derived_geometry_is_never_larger_than_the_disk(
    name: str, size: int, sector: int
) -> None:
    geometry = derive(name, size, sector)
    assert geometry.size_bytes <= size
    assert geometry.sector_size == sector


@given(st.sampled_from(DERIVED), st.integers(1, 20_000), sector_sizes)
def test_a_disk_too_small_for_a_cylinder_has_all_but_part_of_a_track(
    name: str, sectors: int, sector: int
) -> None:
    geometry = derive(name, sectors * sector, sector)
    if geometry.cylinders == 1 and geometry.heads == 1:
        assert geometry.sectors * 2 > sectors
    if geometry.sectors < 17:
        assert geometry.sectors == sectors


@given(
    st.sampled_from(["ata", "fdisk", "zip", "scsi"]), st.integers(MIB * 64, 1 << 50), sector_sizes
)
def test_the_unlimited_profiles_cover_the_disk_to_less_than_a_cylinder(
    name: str, size: int, sector: int
) -> None:
    geometry = derive(name, size, sector)
    shape = {"ata": (16, 63), "fdisk": (255, 63), "zip": (64, 32), "scsi": (64, 32)}[name]
    assert (geometry.heads, geometry.sectors_per_track) == shape
    assert (
        geometry.cylinders == CYLINDERS_MAX or size - geometry.size_bytes < geometry.cylinder_bytes
    )


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        # The barriers of the table in docs/geometry.md, at the size that just meets one or past it.
        ("ata", 528482304, "1024/16/63"),
        ("ata", 8455200768, "16383/16/63"),
        ("ata", 1 << 41, "4260880/16/63"),
        ("bios", 528482304, "1024/16/63"),
        ("bios", 2 * 528482304, "1024/32/63"),
        ("bios", 4 * 528482304, "1024/64/63"),
        ("bios", 8 * 528482304, "1024/128/63"),
        ("bios", 8422686720, "1024/255/63"),
        ("bios", 8422686720 + 512, "1024/255/63"),
        ("bios", 1 << 41, "1024/255/63"),
        ("large", 528482304, "1024/16/63"),
        ("large", 2113929216, "1024/64/63"),
        ("large", 4227858432, "1024/128/63"),
        ("large", 1 << 41, "1024/128/63"),
        ("rechs", 8455200768, "1024/240/63"),
        ("fdisk", 17179869184, "2088/255/63"),
        ("vhd", 136899993600, "65535/16/255"),
        ("vhd", 1 << 41, "65535/16/255"),
        # Iomega's ZIP-100 has 196608 sectors, of which every tool makes 96 cylinders.
        ("zip", 196608 * 512, "96/64/32"),
        ("scsi", 1 << 30, "1024/64/32"),
    ],
)
def test_the_known_limits(name: str, size: int, expected: str) -> None:
    assert str(derive(name, size)) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (512, "1/1/1"),
        (62 * 512, "1/1/62"),
        (63 * 512, "1/1/63"),
        (64 * 512, "1/1/63"),
        (1007 * 512, "1/15/63"),
        (1008 * 512, "1/16/63"),
    ],
)
def test_small_disks(size: int, expected: str) -> None:
    assert str(derive("ata", size)) == expected


@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_profile_counts_sectors_of_whatever_size(sector_size: int) -> None:
    assert derive("ata", 5 * 1008 * sector_size, sector_size) == Geometry(5, 16, 63, sector_size)


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in DERIVED])
def test_a_profile_that_fixes_the_size_takes_no_other(name: str) -> None:
    size, sector_size = profile_size(name), profile_sector_size(name)
    assert size is not None
    assert sector_size is not None
    assert derive(name, size, sector_size).size_bytes == size
    for wrong_size, wrong_sector in (
        (size + 512, sector_size),
        (size - 1024, sector_size),
        (size, 4096),
    ):
        with pytest.raises(InvalidArgument, match=f"profile {name} is a disk of {size} bytes"):
            derive(name, wrong_size, wrong_sector)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("1440K", 1474560),
        ("1.44m", 1474560),
        ("1200K", 1228800),
        ("2880k", 2949120),
        ("1680K", 1720320),
        ("1232K", 1261568),
        ("360K", 368640),
    ],
)
def test_a_floppy_goes_by_its_kib_too(name: str, size: int) -> None:
    assert profile_size(name) == size


def test_360k_is_the_two_sided_one() -> None:
    assert str(derive("360K", 368640)) == "40/2/9"
    assert str(derive("360K-80", 368640)) == "80/1/9"


@pytest.mark.parametrize("name", ["", "atari", "1.5M", "at-15", "at-24", "ata\n", "x" * 10_000])
def test_no_such_profile_lists_those_there_are(name: str) -> None:
    with pytest.raises(InvalidArgument, match="ata, bios, large") as refused:
        profile_size(name)
    assert len(str(refused.value)) < 400


def test_names_are_taken_in_either_case() -> None:
    assert derive("ATA", 1 << 30) == derive("ata", 1 << 30)


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_has_no_geometry(size: int) -> None:
    with pytest.raises(InvalidArgument, match="no sector"):
        derive("ata", size)
