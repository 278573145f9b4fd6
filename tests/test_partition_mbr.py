"""MBR tables that vdisk writes, as sfdisk, fdisk, parted, libblkid and mtools read them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from table_edits import blank_bytes, edited, geometry_of, planned, saved
from table_images import MIB, blank, partx_rows, run, scan_bytes, sfdisk_json, sfdisk_rows
from vdisk.errors import InvalidArgument, NotFound, NotPermitted
from vdisk.evidence import from_mbr
from vdisk.geometry import Geometry
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.mbr_entries import MbrAddresses
from vdisk.partitioning.placing import Alignment, Place, Unit

VECTORS = json.loads((Path(__file__).parent / "data" / "geometry-vectors.json").read_text())["rows"]
FULL = Edits(
    "mbr",
    adds=(Add(4 * MIB, "fat16"), Add(2 * MIB)),
    extended=Add(None),
    logicals=(Add(3 * MIB, "swap"), Add(MIB, "83"), Add(5 * MIB, "lvm"), Add(None, "7")),
    bootables=((1, True),),
)
ALIGNMENTS: list[Alignment | None] = [None, MIB, 512, 4096, Unit.TRACK, Unit.CYLINDER]


def parted_rows(path: Path) -> list[tuple[int, int, int]]:
    """(number, start, sectors) as parted reads them, in the order of the numbers."""
    lines = run("parted", "-s", "-m", path, "unit", "s", "print").stdout.splitlines()[2:]
    rows = [line.rstrip(";").split(":") for line in lines]
    return sorted((int(r[0]), int(r[1][:-1]), int(r[3][:-1])) for r in rows)


def fdisk_addresses(path: Path) -> dict[int, tuple[str, str]]:
    """The start and end addresses that fdisk shows, by partition."""
    found = {}
    for line in run("fdisk", "-x", path).stdout.splitlines():
        number, _, fields = line.removeprefix(str(path)).partition(" ")
        if line.startswith(str(path)) and number.isdigit():
            first, last = re.findall(r"\d+/\d+/\d+", fields)
            found[int(number)] = (first, last)
    return found


SHAPES = [(255, 63), (4, 17), (256, 63), (1, 1)]


@pytest.mark.parametrize(
    ("shape", "align"),
    [((16, 63), align) for align in ALIGNMENTS]
    + [(shape, align) for shape in SHAPES for align in (None, Unit.CYLINDER)],
    ids=str,
)
def test_every_reader_sees_the_same_partitions_and_their_addresses(
    tmp_path: Path, shape: tuple[int, int], align: Alignment | None
) -> None:
    geometry = geometry_of(64 * MIB, *shape)
    disk = edited(blank_bytes(64 * MIB), replace_align(FULL, align), geometry)
    image = saved(tmp_path / "disk.img", disk)
    table = scan_bytes(disk).table
    assert table is not None
    assert table.problems == ()
    ours = [(p.number, p.start_lba, p.sectors) for p in table.partitions]
    assert [number for number, _, _ in ours] == [1, 2, 3, 5, 6, 7, 8]
    assert ours == sfdisk_rows(image) == parted_rows(image)
    # libblkid gives an extended partition the two sectors that the kernel would.
    assert [r for r in ours if r[0] != 3] == [r for r in partx_rows(image) if r[0] != 3]
    verdict = run("sfdisk", "--verify", image)
    assert "No errors detected" in verdict.stdout + verdict.stderr
    types = [p["type"] for p in sfdisk_json(image)["partitions"]]
    # 0f where the end is past cylinder 1023, which an address cannot name.
    last_cylinder = (table.partitions[2].end_lba - 1) // geometry.sectors_per_cylinder
    extended = "f" if last_cylinder > 1023 else "5"
    assert types == ["6", "83", extended, "82", "83", "8e", "7"]
    check_addresses(image, geometry)


def check_addresses(image: Path, geometry: Geometry) -> None:
    """Every address that fdisk shows is the one of its LBA, or the overflow."""
    over = f"1023/{geometry.heads - 1}/{geometry.sectors_per_track}"
    rows = {number: (start, start + size - 1) for number, start, size in sfdisk_rows(image)}
    for number, shown in fdisk_addresses(image).items():
        for lba, text in zip(rows[number], shown, strict=True):
            cylinder, rest = divmod(lba, geometry.sectors_per_cylinder)
            head, sector = divmod(rest, geometry.sectors_per_track)
            right = over if cylinder > 1023 else f"{cylinder}/{head}/{sector + 1}"
            assert text == right, (number, lba)


def replace_align(edits: Edits, align: Alignment | None) -> Edits:
    return replace(edits, align=align)


@pytest.mark.parametrize("align", ALIGNMENTS, ids=str)
@pytest.mark.parametrize("shape", [(16, 63), (255, 63), (4, 17)], ids=str)
def test_geometry_from_the_mbr_is_the_disks(
    shape: tuple[int, int], align: Alignment | None
) -> None:
    # Three readers that solve for heads and sectors: our evidence, and below sfdisk and parted.
    geometry = geometry_of(64 * MIB, *shape)
    disk = edited(blank_bytes(64 * MIB), replace_align(FULL, align), geometry)
    found = from_mbr(bytes(disk[:512]), len(disk), 512).geometry
    assert found is not None
    assert (found.heads, found.sectors_per_track) == shape


@pytest.mark.parametrize("shape", [(16, 63), (64, 32), (4, 17)], ids=str)
def test_sfdisk_and_parted_find_the_geometry_in_the_addresses(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    geometry = geometry_of(64 * MIB, *shape)
    edits = replace_align(FULL, Unit.CYLINDER)
    disk = edited(blank_bytes(geometry.size_bytes), edits, geometry)
    image = saved(tmp_path / "disk.img", disk)
    words = run("sfdisk", "-g", image).stdout.rpartition(":")[2].split()
    assert (int(words[2]), int(words[4])) == shape
    last = run("parted", "-s", "-m", image, "unit", "chs", "print").stdout.splitlines()[1]
    _, head, sector = last.split(":")[1].split(",")
    assert (int(head) + 1, int(sector) + 1) == shape


@pytest.mark.parametrize("row", [r for r in VECTORS if r["kind"] == "mbr_chs_pack"],
                         ids=lambda r: r["id"])  # fmt: skip
def test_addresses_are_those_of_the_vectors(row: dict[str, Any]) -> None:
    given, expected = row["input"], row["expected"]
    first, last = given["lba_first"], given["lba_last"]
    geometry = Geometry(1, given["heads"], given["spt"])
    entry = MbrAddresses.of(geometry).entry(0x83, Place(first, last + 1), 0)
    assert entry.start_chs.hex() == expected["start_bytes"]
    assert entry.end_chs.hex() == expected["end_bytes"]


def test_dos_layout_is_that_of_mpartition(tmp_path: Path) -> None:
    # mpartition -c makes a partition as DOS would: head 1 sector 1 to the end of a cylinder.
    size = 615 * 4 * 17 * 512
    theirs = blank(tmp_path / "theirs.img", size)
    config = tmp_path / "mtoolsrc"
    config.write_text(
        f'drive z: file="{theirs}" partition=1 cylinders=615 heads=4 sectors=17 '
        "mformat_only\n"
    )
    env = f"MTOOLSRC={config}"
    run("env", env, "mpartition", "-I", "-f", "z:")
    run("env", env, "mpartition", "-c", "-f", "-t", 615, "-h", 4, "-s", 17, "z:")
    edits = Edits("mbr", adds=(Add(None, "4"),), align=Unit.CYLINDER)
    ours = edited(blank_bytes(size), edits, Geometry(615, 4, 17))
    mine, other = ours[446:462], theirs.read_bytes()[446:462]
    # All but the flag and the type, which mpartition chooses for itself.
    assert mine[1:4] == other[1:4]
    assert mine[5:] == other[5:]
    # And mpartition, asked to print, finds ours.
    saved(theirs, ours)
    shown = run("env", env, "mpartition", "-p", "-v", "z:").stdout
    assert "start: h=1 s=1 c=0" in shown
    assert "end: h=3 s=17 c=614" in shown
    assert "mpartition -c -b 17 -l 41803 -t 615 -h 4 -s 17" in shown


def test_fat_in_a_partition_outlives_edits_around_it(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    geometry = geometry_of(64 * MIB)
    first = Edits("mbr", adds=(Add(8 * MIB, "fat16"),))
    saved(image, edited(blank_bytes(64 * MIB), first, geometry))
    ((_, start, sectors),) = sfdisk_rows(image)
    fat = f"{image}@@{start * 512}"
    run("mformat", "-i", fat, "-T", sectors, "-h", 16, "-s", 63, "-H", start, "::")
    (tmp_path / "hello").write_text("good day")
    run("mcopy", "-i", fat, tmp_path / "hello", "::")
    for edits in (
        Edits(adds=(Add(4 * MIB), Add(4 * MIB), Add(4 * MIB), Add(None))),
        Edits(deletes=(2, 5), bootables=((1, True),)),
        Edits(types=((1, "0e"),), logicals=(Add(2 * MIB),)),
    ):
        saved(image, edited(image.read_bytes(), edits, geometry))
        assert "No errors detected" in run("sfdisk", "--verify", image).stdout
        assert run("mtype", "-i", fat, "::hello").stdout == "good day"
    run("fsck.fat", "-n", part(tmp_path, image, start, sectors))


def part(folder: Path, image: Path, start: int, sectors: int) -> Path:
    with image.open("rb") as file:
        file.seek(start * 512)
        return saved(folder / "part.img", file.read(sectors * 512))


def test_a_fifth_partition_makes_an_extended_one(tmp_path: Path) -> None:
    edits = Edits("mbr", adds=tuple(Add(MIB) for _ in range(6)))
    change = planned(blank_bytes(), edits)
    assert any("partition 4 is made an extended one" in note for note in change.notes)
    image = saved(tmp_path / "disk.img", edited(blank_bytes(), edits))
    assert [r[0] for r in sfdisk_rows(image)] == [1, 2, 3, 4, 5, 6, 7]
    four = edited(blank_bytes(), Edits("mbr", adds=tuple(Add(MIB) for _ in range(4))))
    with pytest.raises(InvalidArgument, match="all 4 entries") as caught:
        planned(four, Edits(adds=(Add(MIB),)))
    assert caught.value.hint is not None
    assert "--logical" in caught.value.hint


def test_a_place_is_the_first_with_room_and_rest_is_the_largest() -> None:
    three = Edits("mbr", adds=(Add(2 * MIB), Add(8 * MIB), Add(2 * MIB)))
    disk = edited(blank_bytes(24 * MIB), three)
    disk = edited(disk, Edits(deletes=(1, 2)))
    # Free: 1 to 11 MiB, and 13 to 24.
    small, rest = (Add(MIB),), (Add(None),)
    first = scan_bytes(edited(disk, Edits(adds=small))).slices[0]
    assert (first.number, first.start_lba, first.sectors) == (1, 2048, 2048)
    largest = scan_bytes(edited(disk, Edits(adds=rest))).slices[0]
    assert (largest.start_lba, largest.end_lba) == (13 * 2048, 24 * 2048)


def test_an_activated_partition_is_the_only_one_as_with_sfdisk(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), Edits("mbr", adds=(Add(MIB), Add(MIB), Add(MIB))))
    image = saved(tmp_path / "disk.img", disk)
    for number in (1, 3):
        run("sfdisk", "--activate", image, number)
        change = planned(disk, Edits(bootables=((number, True),)))
        disk = edited(disk, Edits(bootables=((number, True),)))
        assert disk[446:510] == image.read_bytes()[446:510]
    assert any("partition 1 is bootable no more" in note for note in change.notes)
    assert edited(disk, Edits(bootables=((3, False),)))[446:510] == bytes(
        b & (0x7F if at in (0, 16, 32) else 0xFF) for at, b in enumerate(disk[446:510])
    )


@pytest.mark.parametrize(
    ("edits", "error", "words"),
    [
        (Edits(deletes=(9,)), NotFound, "no partition 9"),
        (Edits(types=((1, "5"),)), NotPermitted, "extended"),
        (Edits(types=((3, "83"),)), NotPermitted, "extended"),
        (Edits(types=((1, "ee"),)), InvalidArgument, "GPT"),
        (Edits(types=((1, "0"),)), InvalidArgument, "not in use"),
        (Edits(types=((1, "xyz"),)), InvalidArgument, "two hexadecimal digits"),
        (Edits(names=((1, "a"),)), NotPermitted, "no names"),
        (Edits(adds=(Add(MIB, "83", "name"),)), NotPermitted, "no names"),
        (Edits(adds=(Add(1 << 40),)), InvalidArgument, "no free place"),
        (Edits(adds=(Add(0),)), InvalidArgument, "at least one sector"),
        (Edits(extended=Add(MIB)), InvalidArgument, "extended partition already"),
        (Edits(logicals=(Add(MIB, "5"),)), InvalidArgument, "logical"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(edits: Edits, error: type, words: str) -> None:
    disk = edited(blank_bytes(64 * MIB), FULL)
    with pytest.raises(error, match=re.escape(words)):
        planned(disk, edits)


def test_heads_and_sectors_that_an_mbr_cannot_hold_become_those_of_fdisk() -> None:
    # The geometry that a large VHD's footer has.
    geometry = geometry_of(64 * MIB, 16, 255)
    change = planned(blank_bytes(64 * MIB), Edits("mbr", adds=(Add(None),)), geometry)
    assert any("255/63" in note for note in change.notes)
    disk = edited(blank_bytes(64 * MIB), Edits("mbr", adds=(Add(None),)), geometry)
    found = from_mbr(bytes(disk[:512]), len(disk), 512).geometry
    assert found is not None
    assert (found.heads, found.sectors_per_track) == (255, 63)


@pytest.mark.parametrize("sector_size", [1024, 2048, 4096])
def test_large_sectors_are_read_as_the_kernel_does(tmp_path: Path, sector_size: int) -> None:
    geometry = geometry_of(64 * MIB, 16, 63, sector_size)
    disk = edited(blank_bytes(64 * MIB), FULL, geometry)
    image = saved(tmp_path / "disk.img", disk)
    table = scan_bytes(disk, sector_size).table
    assert table is not None
    rows = [(p.number, p.start_lba, p.sectors) for p in table.partitions]
    assert [r for r in rows if r[0] != 3] == [
        r for r in partx_rows(image, sector_size) if r[0] != 3
    ]
    assert len(rows) == 7
    assert not any(p.problem for p in table.partitions)


@pytest.mark.parametrize("sector_size", [128, 256])
def test_small_sectors_leave_room_for_records(sector_size: int) -> None:
    # No other tool reads such disks; our reader says whether anything overlaps a record.
    geometry = geometry_of(4 * MIB, 2, 26, sector_size)
    logicals = (Add(100 << 10), Add(50 << 10), Add(None))
    edits = Edits("mbr", adds=(Add(100 << 10),), logicals=logicals)
    for align in (None, sector_size, Unit.CYLINDER):
        table = scan_bytes(edited(blank_bytes(4 * MIB), replace_align(edits, align), geometry),
                           sector_size).table  # fmt: skip
        assert table is not None
        assert [p.number for p in table.partitions] == [1, 2, 5, 6, 7]
        assert not any(p.problem for p in table.partitions)
