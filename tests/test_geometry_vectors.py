"""Every row of geometry-vectors.json, made by other programs, against our rule it is about.

A row's `kind` names the check; a kind without a check fails, so no row is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vdisk.chs import Geometry
from vdisk.drive_types import AT_TYPES, PC98_SASI_TYPES, XT_TYPES
from vdisk.errors import InvalidArgument
from vdisk.firmware import (
    Translation,
    bios_geometry_line,
    cmos_drive_bytes,
    cmos_translation,
    qemu_guess,
    seabios_logical,
    virtualbox_logical,
    without_translation,
)
from vdisk.floppies import floppy_of_size
from vdisk.geometry import Source, choose, derive, pack_lba, profile_size, unpack_chs
from vdisk.image_geometry import (
    VhdFooter,
    VhdSizeRule,
    parallels_geometry,
    qemu_vhd_footer,
    vhd_virtual_size,
    vmdk_bios_geometry,
    vmdk_geometry,
)
from vdisk.partitioners import (
    LinuxDriver,
    fdisk_geometry,
    gpt_protective_entry,
    linux_getgeo,
    parted_address,
    parted_geometry,
)
from vdisk.translation import Counts, vhd

VECTORS = Path(__file__).parent / "data" / "geometry-vectors.json"
ROWS: list[dict[str, Any]] = json.loads(VECTORS.read_text())["rows"]

Row = dict[str, Any]
CHECKS: dict[str, Callable[[Row, Row], None]] = {}


def check(function: Callable[[Row, Row], None]) -> Callable[[Row, Row], None]:
    CHECKS[function.__name__] = function
    return function


def mbr(entry_hex: str | None) -> bytes | None:
    """A first sector whose first partition entry is these sixteen bytes."""
    if entry_hex is None:
        return None
    return bytes(446) + bytes.fromhex(entry_hex).ljust(64, b"\0") + b"\x55\xaa"


def counts_of(geometry: Geometry | None) -> list[int] | None:
    if geometry is None:
        return None
    return [geometry.cylinders, geometry.heads, geometry.sectors_per_track]


@check
def vhd_spec_chs(given: Row, expected: Row) -> None:
    assert list(vhd(given["sectors"])) == expected["chs"]
    assert counts_of(derive("vhd", given["sectors"] * 512)) == expected["chs"]


@check
def vhd_vendor_footer(given: Row, expected: Row) -> None:
    # Disk2vhd's geometry is larger than its disk: the size is believed, and the geometry is not.
    footer = VhdFooter(
        Counts(*expected["chs"]), given["current_size"], bytes.fromhex(given["creator_app_hex"])
    )
    for rule in VhdSizeRule:
        assert vhd_virtual_size(footer, rule) == given["current_size"]
    choice = choose(given["current_size"], 512, header=Geometry(*expected["chs"]))
    assert choice is not None
    assert choice.source is Source.PROFILE
    header = next(opinion for opinion in choice.opinions if opinion.source is Source.HEADER)
    assert header.geometry is None
    assert "65535/16/255" in header.detail


@check
def qemu_vpc_create(given: Row, expected: Row) -> None:
    footer = qemu_vhd_footer(given["size"], force_size=given["force_size"])
    assert list(footer.counts) == expected["chs"]
    assert footer.current_size == expected["current_size"]
    assert footer.creator.decode() == expected["creator_app"]
    assert vhd_virtual_size(footer, VhdSizeRule.QEMU_9) == expected["virtual_size"]


@check
def qemu_vpc_open_size(given: Row, expected: Row) -> None:
    rule = {"<=9.2 rule": VhdSizeRule.QEMU_9, ">=10.0 rule": VhdSizeRule.QEMU_10}[given["qemu"]]
    creator = bytes.fromhex(given["creator_app_hex"])
    footer = VhdFooter(Counts(*given["chs"]), given["current_size"], creator)
    assert vhd_virtual_size(footer, rule) == expected["virtual_size"]


@check
def qemu_vmdk_ddb(given: Row, expected: Row) -> None:
    counts = vmdk_geometry(given["size"] // 512, given["adapter_type"])
    assert list(counts) == expected["chs"]


@check
def vmware_ddb(given: Row, expected: Row) -> None:
    assert list(vmdk_geometry(given["sectors"], given["adapter_type"])) == expected["chs"]
    if "bios_chs" in expected:
        assert list(vmdk_bios_geometry(given["sectors"])) == expected["bios_chs"]


@check
def parallels(given: Row, expected: Row) -> None:
    assert list(parallels_geometry(given["size"] // 512)) == expected["chs"]


@check
def qemu_hd_geometry_guess(given: Row, expected: Row) -> None:
    guess = qemu_guess(given["sectors"], mbr(given["mbr_entry0_hex"]))
    assert list(guess.physical) == expected["chs"]
    assert guess.translation == expected["translation"]
    assert (guess.from_mbr and list(guess.from_mbr)) == expected["lchs_from_mbr"]


@check
def qemu_hd_geo_test(given: Row, expected: Row) -> None:
    guess = qemu_guess(given["sectors"], mbr(given["mbr_entry0_hex"]))
    assert list(guess.physical) == expected["chs"]
    assert guess.translation == expected["translation"]
    assert cmos_translation(guess.translation) == expected["cmos_translation"]
    assert list(cmos_drive_bytes(guess.physical)) == expected["cmos_drive_bytes"]


@check
def qemu_fwcfg_lchs(given: Row, expected: Row) -> None:
    logical = Counts(given["lcyls"], given["lheads"], given["lsecs"])
    assert bios_geometry_line("<devpath>", logical) == expected["bios_geometry_line"]


@check
def seabios_lchs(given: Row, expected: Row) -> None:
    # Only an IDE disk's translation is told by the CMOS; other kinds SeaBIOS judges itself.
    device = given["device"]
    physical = Counts(*given["pchs"])
    told = None
    if device.startswith("ide") and "host_lchs" not in given:
        told = Translation(given["translation"])
        if "cyls=" in device and "bios-chs-trans" not in device and "lcyls" not in device:
            assert told is (without_translation(physical) or Translation.LBA)
    host = Counts(*given["host_lchs"]) if "host_lchs" in given else None
    seen = seabios_logical(given["sectors"], physical, told, host_logical=host)
    assert list(seen.counts) == expected["lchs"]
    assert seen.translation == expected["translation"]


@check
def fdisk_default_geometry(given: Row, expected: Row) -> None:
    assert list(fdisk_geometry(given["size"] // 512)) == expected["chs"]
    if expected["chs"][0]:
        assert counts_of(derive("fdisk", given["size"])) == expected["chs"]


@check
def parted_default_geometry(given: Row, expected: Row) -> None:
    sectors = given["size"] // 512
    counts = parted_geometry(sectors)
    assert list(counts) == expected["chs"]
    assert parted_address(sectors - 1, counts) == expected["disk_end"]


@check
def mbr_chs_pack(given: Row, expected: Row) -> None:
    geometry = Geometry(1024, given["heads"], given["spt"])
    for end in ("start", "end"):
        lba = given["lba_first" if end == "start" else "lba_last"]
        packed = pack_lba(lba, geometry)
        assert packed.hex() == expected[f"{end}_bytes"]
        assert list(unpack_chs(packed)) == expected[f"{end}_chs"]


@check
def gpt_protective_mbr(given: Row, expected: Row) -> None:
    entry = gpt_protective_entry(given["size"] // 512, true_end=given["tool"] == "sgdisk")
    assert entry[1:4].hex() == expected["start_bytes"]
    assert entry[4] == expected["type"]
    assert entry[5:8].hex() == expected["end_bytes"]
    assert int.from_bytes(entry[8:12], "little") == expected["lba"]
    assert int.from_bytes(entry[12:16], "little") == expected["count"]


@check
def geometry_from_mbr(given: Row, expected: Row) -> None:
    def packed(chs: list[int]) -> bytes:
        cylinder, head, sector = chs
        return bytes((head, sector | cylinder >> 8 << 6, cylinder & 0xFF))

    numbers = given["lba"].to_bytes(4, "little") + given["count"].to_bytes(4, "little")
    entry = b"\0" + packed(given["start_chs"]) + b"\x06" + packed(given["end_chs"]) + numbers
    sector = mbr(entry.hex())
    sectors = given["size"] // 512
    assert list(fdisk_geometry(sectors, sector)) == expected["sfdisk"]
    assert list(parted_geometry(sectors, sector)) == expected["parted"]
    choice = choose(given["size"], 512, first_sector=sector)
    assert choice is not None
    assert choice.source is Source.MBR
    assert counts_of(choice.geometry) == expected["sfdisk"]


DRIVERS = {
    "sd": LinuxDriver.SCSI,
    "virtio-blk": LinuxDriver.VIRTIO_BLK,
    "nvme": LinuxDriver.NVME,
    "libata": LinuxDriver.LIBATA,
    "loop": LinuxDriver.LOOP,
    "brd": LinuxDriver.BRD,
}


@check
def linux_hdio_getgeo(given: Row, expected: Row) -> None:
    sector = mbr(given["mbr_entry0_hex"])
    driver = DRIVERS[given["driver"].split()[0]]
    offered = None
    if "from QEMU" in given["driver"]:
        offered = qemu_guess(given["sectors"], sector).physical
    seen = linux_getgeo(driver, given["sectors"], sector, device_geometry=offered)
    assert (None if seen is None else list(seen)) == expected["chs"]


@check
def fat_bpb(given: Row, expected: Row) -> None:
    # The row's fields, laid out as a boot sector, win with their heads and sectors per track.
    fields = (
        b"\xeb\x3c\x90"
        + b"TESTTEST"
        + expected["bps"].to_bytes(2, "little")
        + bytes((expected["spc"],))
        + expected["reserved"].to_bytes(2, "little")
        + bytes((expected["nfats"],))
        + expected["root_entries"].to_bytes(2, "little")
        + expected["total16"].to_bytes(2, "little")
        + bytes((int(expected["media"], 16),))
        + min(expected["fat_sectors"], 0xFFFF).to_bytes(2, "little")
        + expected["spt"].to_bytes(2, "little")
        + expected["heads"].to_bytes(2, "little")
        + expected["hidden"].to_bytes(4, "little")
        + expected["total32"].to_bytes(4, "little")
    )
    sector = fields.ljust(510, b"\0") + b"\x55\xaa"
    choice = choose(given["size"], expected["bps"], first_sector=sector)
    assert choice is not None
    assert choice.source is Source.BPB
    geometry = choice.geometry
    assert [geometry.heads, geometry.sectors_per_track] == [expected["heads"], expected["spt"]]
    cylinder_bytes = expected["heads"] * expected["spt"] * expected["bps"]
    assert geometry.cylinders == given["size"] // cylinder_bytes


@check
def floppy_format(given: Row, expected: Row) -> None:
    media = int(expected["media"], 16)
    floppy = floppy_of_size(given["bytes"], expected["sector_size"], media)
    assert floppy is not None
    assert counts_of(floppy.geometry) == expected["chs"]
    assert (floppy.media, floppy.kib) == (media, given["kib"])
    choice = choose(given["bytes"], expected["sector_size"])
    assert choice is not None
    assert (choice.source, counts_of(choice.geometry)) == (Source.FLOPPY, expected["chs"])
    name = f"{given['kib']}K"
    assert profile_size(name) == given["bytes"]
    assert counts_of(derive(name, given["bytes"], expected["sector_size"])) == expected["chs"]


def drive_type(types: dict[int, Geometry], family: str, given: Row, expected: Row) -> None:
    geometry = types[given["type"]]
    assert counts_of(geometry) == expected["chs"]
    assert geometry.size_bytes == expected["bytes"]
    assert profile_size(f"{family}-{given['type']}") == expected["bytes"]


@check
def ibm_at_drive_type(given: Row, expected: Row) -> None:
    drive_type(AT_TYPES, "at", given, expected)


@check
def ibm_xt_drive_type(given: Row, expected: Row) -> None:
    drive_type(XT_TYPES, "xt", given, expected)


@check
def pc98_sasi(given: Row, expected: Row) -> None:
    drive_type(PC98_SASI_TYPES, "pc98", given, expected)
    assert PC98_SASI_TYPES[given["type"]].sector_size == expected["sector_size"]
    # NP2kai's .hdi files have a header of 4096 bytes before the disk.
    assert PC98_SASI_TYPES[given["type"]].size_bytes + 4096 == expected["hdi_file_size"]


@check
def vbox_lchs_fallback(given: Row, expected: Row) -> None:
    assert list(virtualbox_logical(given["sectors"])) == expected["chs"]


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_row(row: Row) -> None:
    CHECKS[row["kind"]](row["input"], row["expected"])


def test_no_row_is_without_a_check_and_no_check_without_a_row() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 307
    assert {row["kind"] for row in ROWS} == set(CHECKS)


def test_a_vhd_above_2040_gib_is_refused_as_qemu_img_refuses_it() -> None:
    largest = 0xFF000000 * 512
    assert qemu_vhd_footer(largest).current_size == largest
    with pytest.raises(InvalidArgument, match="2040 GiB"):
        qemu_vhd_footer(largest + 1)
