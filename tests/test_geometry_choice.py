"""Where a geometry comes from: the order, every source's opinion, and no trust in a guest's bytes.

The disks are made by sfdisk, fdisk, parted, sgdisk, mtools and dosfstools.
"""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vdisk.chs import SECTOR_SIZES
from vdisk.errors import Corrupt, InvalidArgument
from vdisk.geometry import Choice, Geometry, Opinion, Source, choose, pack_lba
from vdisk.partitioners import fdisk_geometry, parted_geometry

SIZE = 64 << 20
HERE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}


def run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, text=True, capture_output=True, check=True, env=HERE
    )
    return done.stdout


def blank(folder: Path, size: int = SIZE) -> Path:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    return image


def first_sector(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(512)


def choice_of(image: Path, sector_size: int = 512) -> Choice:
    choice = choose(image.stat().st_size, sector_size, first_sector=first_sector(image))
    assert choice is not None
    return choice


def opinion(choice: Choice, source: Source) -> Opinion:
    (found,) = [opinion for opinion in choice.opinions if opinion.source is source]
    return found


def test_every_source_is_heard_in_the_order_of_the_issue() -> None:
    choice = choose(SIZE, 512)
    assert choice is not None
    assert [opinion.source for opinion in choice.opinions] == list(Source)
    assert [source.value for source in Source] == [
        "given",
        "stored",
        "header",
        "rdb",
        "mbr",
        "bpb",
        "floppy",
        "profile",
    ]
    assert (str(choice.geometry), choice.source) == ("130/16/63", Source.PROFILE)
    assert all(opinion.detail for opinion in choice.opinions)


def test_the_first_source_that_has_a_geometry_wins_and_the_others_are_still_said(
    tmp_path: Path,
) -> None:
    image = blank(tmp_path, 1474560)
    run("mformat", "-i", image, "-t", "40", "-h", "4", "-s", "18", "::")
    sector = first_sector(image)
    both = sector[:446] + sector_with(entry_at(Geometry(1, 8, 18), 18, 200))[446:]
    ladder = [
        (Source.GIVEN, {"given": Geometry(1, 2, 3)}),
        (Source.STORED, {"stored": Geometry(4, 5, 6)}),
        (Source.HEADER, {"header": Geometry(7, 8, 9)}),
        (Source.RDB, {"rdb": Geometry(9, 8, 7)}),
        (Source.MBR, {"first_sector": both}),
        (Source.BPB, {"first_sector": sector}),
        (Source.FLOPPY, {"profile": "fdisk"}),
    ]
    for rung, (source, _) in enumerate(ladder):
        offered = {key: value for _, pair in reversed(ladder[rung:]) for key, value in pair.items()}
        choice = choose(1474560, 512, **offered)  # type: ignore[arg-type]
        assert choice is not None
        assert choice.source is source
        have = [opinion.source for opinion in choice.opinions if opinion.geometry is not None]
        assert have == [*(source for source, _ in ladder[rung:]), Source.PROFILE]
        assert opinion(choice, source).geometry == choice.geometry


def test_a_given_geometry_that_does_not_fit_is_refused_with_one_that_would() -> None:
    with pytest.raises(InvalidArgument) as refused:
        choose(SIZE, 512, given=Geometry(1024, 16, 63))
    assert "528482304" in str(refused.value)
    assert "130/16/63" in str(refused.value)
    with pytest.raises(InvalidArgument, match="sectors of 1024"):
        choose(SIZE, 512, given=Geometry(10, 16, 63, 1024))


def test_a_stored_geometry_that_does_not_fit_is_refused_unless_one_is_given() -> None:
    stored = Geometry(1024, 16, 63)
    with pytest.raises(Corrupt, match="stored geometry 1024/16/63") as refused:
        choose(SIZE, 512, stored=stored)
    assert "130/16/63" in str(refused.value)
    choice = choose(SIZE, 512, stored=stored, given=Geometry(100, 16, 63))
    assert choice is not None
    assert choice.source is Source.GIVEN
    assert opinion(choice, Source.STORED).geometry is None
    assert "1024/16/63 needs 528482304" in opinion(choice, Source.STORED).detail


def test_a_smaller_geometry_is_taken_as_it_is() -> None:
    choice = choose(SIZE, 512, given=Geometry(3, 2, 5))
    assert choice is not None
    assert choice.geometry == Geometry(3, 2, 5)
    assert choice.geometry.unaddressed_sectors(SIZE) == 131072 - 30


def test_a_header_that_does_not_fit_is_an_opinion_with_a_reason() -> None:
    choice = choose(SIZE, 512, header=Geometry(65535, 16, 255))
    assert choice is not None
    assert choice.source is Source.PROFILE
    assert "needs 136899993600 bytes" in str(opinion(choice, Source.HEADER))


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_has_no_geometry(size: int) -> None:
    assert choose(size, 512) is None
    assert choose(4095, 4096) is None


def test_a_name_that_is_no_profile_is_refused_even_if_not_needed() -> None:
    with pytest.raises(InvalidArgument, match="no profile"):
        choose(SIZE, 512, given=Geometry(1, 1, 1), profile="atari")
    with pytest.raises(InvalidArgument, match=r"profile 1\.44M is a disk of"):
        choose(SIZE, 512, profile="1.44M")


def test_sfdisk_s_table_tells_255_heads(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("sfdisk", image, stdin="label: dos\n,20M,c\n,,83\n")
    choice = choice_of(image)
    assert (choice.source, str(choice.geometry)) == (Source.MBR, "8/255/63")
    assert f"{choice.geometry.heads} heads" in run("fdisk", "-c=dos", "-l", image)


def test_fdisk_s_table_tells_the_geometry_it_was_told(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("fdisk", "-c=dos", "-H", "16", "-S", "63", image, stdin="o\nn\np\n1\n\n+30M\nw\n")
    choice = choice_of(image)
    assert (choice.source, str(choice.geometry)) == (Source.MBR, "130/16/63")
    assert "130 cylinders, 16 heads, 63 sectors/track" in run("sfdisk", "-g", image)


def test_parted_s_table_tells_4_heads(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("parted", "-s", image, "mklabel", "msdos", "mkpart", "primary", "1MiB", "30MiB")
    choice = choice_of(image)
    assert (choice.source, str(choice.geometry)) == (Source.MBR, "1024/4/32")


def test_a_disk_past_cylinder_1023_tells_it_where_the_lba_agrees(tmp_path: Path) -> None:
    image = blank(tmp_path, 20 << 30)
    run("sfdisk", image, stdin="label: dos\n,,83\n")
    assert first_sector(image)[446 + 5 : 446 + 8].hex() == "feffff"
    choice = choice_of(image)
    assert (choice.source, str(choice.geometry)) == (Source.MBR, "2610/255/63")


@pytest.mark.parametrize("make", [("sfdisk", "label: gpt\n,,\n"), ("sgdisk", "")])
def test_gpt_s_protective_entry_is_no_evidence(make: tuple[str, str], tmp_path: Path) -> None:
    image = blank(tmp_path)
    tool, script = make
    run(tool, *(["-n", "1:2048:0"] if tool == "sgdisk" else []), image, stdin=script)
    choice = choice_of(image)
    assert choice.source is Source.PROFILE
    assert opinion(choice, Source.MBR).geometry is None


def test_an_empty_table_is_no_evidence(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("sfdisk", image, stdin="label: dos\n")
    assert "no entry" in opinion(choice_of(image), Source.MBR).detail


def sector_with(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def entry(start: bytes, end: bytes, lba: int, sectors: int, kind: int = 0x83) -> bytes:
    numbers = lba.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    return b"\0" + start + bytes((kind,)) + end + numbers


def entry_at(geometry: Geometry, lba: int, sectors: int) -> bytes:
    end = pack_lba(lba + sectors - 1, geometry)
    return entry(pack_lba(lba, geometry), end, lba, sectors)


def test_entries_that_do_not_agree_are_no_evidence() -> None:
    a, b = Geometry(1, 255, 63), Geometry(1, 16, 63)
    for sector in (
        sector_with(entry_at(a, 2048, 20000), entry_at(b, 30000, 20000)),
        sector_with(entry(b"\xfe\xff\xff", b"\xfe\xff\xff", 2048, 2048)),
        sector_with(entry(b"\xfe\xff\xff", b"\xfe\xff\xff", 1 << 26, 2048)),
        sector_with(entry(b"\x00\x02\x00", b"\x00\x02\x00", 2048, 2048)),
    ):
        choice = choose(1 << 40, 512, first_sector=sector)
        assert choice is not None
        assert choice.source is Source.PROFILE
        assert "do not agree" in opinion(choice, Source.MBR).detail


def test_entries_whose_addresses_were_left_zero_say_nothing() -> None:
    silent = entry(bytes(3), bytes(3), 50000, 2000)
    choice = choose(SIZE, 512, first_sector=sector_with(silent))
    assert choice is not None
    assert "no entry" in opinion(choice, Source.MBR).detail
    with_one = sector_with(entry_at(Geometry(1, 16, 63), 63, 8001), silent)
    choice = choose(SIZE, 512, first_sector=with_one)
    assert choice is not None
    assert (choice.source, str(choice.geometry)) == (Source.MBR, "130/16/63")


def test_a_table_whose_geometry_is_larger_than_the_disk_is_no_evidence() -> None:
    sector = sector_with(entry_at(Geometry(1, 255, 63), 2048, 60000))
    choice = choose(1 << 20, 512, first_sector=sector)
    assert choice is not None
    assert choice.source is Source.PROFILE
    assert "no cylinder fits" in opinion(choice, Source.MBR).detail


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    heads=st.integers(2, 255),
    spt=st.integers(2, 63),
    cuts=st.lists(st.integers(1, 200_000), min_size=2, max_size=5, unique=True).map(sorted),
)
def test_sfdisk_reads_the_same_geometry_from_a_table(
    heads: int, spt: int, cuts: list[int], tmp_path: Path
) -> None:
    geometry = Geometry(1, heads, spt)
    assume(200_001 // geometry.sectors_per_cylinder < 1023)
    assume(cuts[0] >= spt)
    # Entries that all lie in cylinder 0 fit any number of heads; which one to guess is a matter of
    # taste (ours is QEMU's, the head they end on).
    assume(cuts[-1] > 2 * geometry.sectors_per_cylinder)
    entries = [entry_at(geometry, low, high - low) for low, high in pairwise(cuts)]
    image = tmp_path / "disk.img"
    image.write_bytes(sector_with(*entries))
    with image.open("r+b") as file:
        file.truncate(200_001 * 512)
    ours = fdisk_geometry(200_001, first_sector(image))
    said = run("sfdisk", "-g", image).split(": ")[1].split()
    theirs = (int(said[0]), int(said[2]), int(said[4]))
    # sfdisk is content with two equations that agree; it falls back to 255/63 without them.
    assert ours in (theirs, (200_001 // (heads * spt), heads, spt))
    assert theirs in (ours, (200_001 // 16065, 255, 63))


def test_parted_keeps_to_its_own_geometry_without_a_table() -> None:
    assert parted_geometry(204800, bytes(512)) == (1600, 4, 32)


@pytest.mark.parametrize(
    ("size", "expected", "options"),
    [
        (163840, "40/1/8", ["-f", "160"]),
        (327680, "40/2/8", ["-f", "320"]),
        (368640, "40/2/9", ["-f", "360"]),
        (737280, "80/2/9", ["-f", "720"]),
        (1228800, "80/2/15", ["-f", "1200"]),
        (1474560, "80/2/18", ["-f", "1440"]),
        (2949120, "80/2/36", ["-f", "2880"]),
        (368640, "80/1/9", ["-t", "80", "-h", "1", "-s", "9"]),
        (1720320, "80/2/21", ["-t", "80", "-h", "2", "-s", "21"]),
        (21411840, "615/4/17", ["-t", "615", "-h", "4", "-s", "17"]),
    ],
)
def test_what_mformat_made_tells_its_geometry(
    size: int, expected: str, options: list[str], tmp_path: Path
) -> None:
    image = blank(tmp_path, size)
    run("mformat", "-i", image, *options, "::")
    choice = choice_of(image)
    assert (choice.source, str(choice.geometry)) == (Source.BPB, expected)


def test_what_mkfs_fat_made_tells_its_heads_and_sectors(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("mkfs.fat", image)
    said = run("minfo", "-i", image, "::")
    choice = choice_of(image)
    assert choice.source is Source.BPB
    assert f"heads: {choice.geometry.heads}" in said
    assert f"sectors per track: {choice.geometry.sectors_per_track}" in said
    # The boot code where a table would be is not taken for one.
    assert opinion(choice, Source.MBR).geometry is None


def test_a_bpb_of_other_sectors_is_none(tmp_path: Path) -> None:
    image = blank(tmp_path)
    run("mkfs.fat", "-S", "4096", image)
    assert choice_of(image, 4096).source is Source.BPB
    refused = opinion(choice_of(image, 512), Source.BPB)
    assert refused.geometry is None
    assert "4096 bytes" in refused.detail


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"\0", "no jump"),
        (0x0D, b"\3", "power of two"),
        (0x0E, b"\0\0", "no FATs"),
        (0x10, b"\0", "no FATs"),
        (0x15, b"\1", "media byte 01"),
        (0x18, b"\0\0", "0 sectors per track"),
        (0x18, b"\0\1", "256 sectors"),
        (0x1A, b"\0\0", "0 heads"),
        (0x1A, b"\xff\xff", "65535 heads"),
        (0x13, b"\xff\xff", "more than the disk"),
        (0x13, b"\0\0", "no size"),
    ],
)
def test_a_bpb_with_one_impossible_field_is_none(
    offset: int, value: bytes, reason: str, tmp_path: Path
) -> None:
    image = blank(tmp_path, 1474560)
    run("mformat", "-i", image, "-f", "1440", "::")
    sector = bytearray(first_sector(image))
    sector[offset : offset + len(value)] = value
    choice = choose(1474560, 512, first_sector=bytes(sector))
    assert choice is not None
    assert choice.source is Source.FLOPPY
    assert reason in opinion(choice, Source.BPB).detail


def test_368640_bytes_are_40_cylinders_unless_the_media_byte_says_80() -> None:
    # A boot sector that has the media byte and no geometry, as before DOS 3.
    sector = bytearray(512)
    sector[0x0B:0x0D] = b"\0\2"
    for media, expected in ((0xFD, "40/2/9"), (0xF8, "80/1/9"), (0x00, "40/2/9")):
        sector[0x15] = media
        choice = choose(368640, 512, first_sector=bytes(sector))
        assert choice is not None
        assert (choice.source, str(choice.geometry)) == (Source.FLOPPY, expected)
    assert choose(368640, 1024) is not None


@settings(max_examples=300)
@given(
    size=st.one_of(st.integers(0, 4 << 20), st.integers(0, 2**63 - 1)),
    sector_size=st.sampled_from(SECTOR_SIZES),
    sector=st.one_of(
        st.none(),
        st.binary(max_size=512),
        st.binary(min_size=64, max_size=64).map(sector_with),
        st.builds(
            lambda head, tail: b"\xeb\x3c\x90" + head + tail.ljust(481, b"\0") + b"\x55\xaa",
            st.binary(min_size=26, max_size=26),
            st.binary(max_size=400),
        ),
    ),
    header=st.one_of(st.none(), st.builds(Geometry, *[st.integers(1, 65535)] * 3)),
)
def test_whatever_the_first_sector_holds_there_is_a_geometry_that_fits(
    size: int, sector_size: int, sector: bytes | None, header: Geometry | None
) -> None:
    choice = choose(size, sector_size, first_sector=sector, header=header)
    if size < sector_size:
        assert choice is None
        return
    assert choice is not None
    assert [opinion.source for opinion in choice.opinions] == list(Source)
    for said in choice.opinions:
        assert said.detail
        assert said.geometry is None or said.geometry.size_bytes <= size
        assert said.geometry is None or said.geometry.sector_size == sector_size
    winner = next(said for said in choice.opinions if said.geometry is not None)
    assert (choice.geometry, choice.source) == (winner.geometry, winner.source)


def test_the_entry_that_mformat_puts_in_a_boot_sector_is_no_table(tmp_path: Path) -> None:
    image = blank(tmp_path, 1474560)
    run("mformat", "-i", image, "-f", "1440", "::")
    assert first_sector(image)[446] == 0x80
    said = opinion(choice_of(image), Source.MBR)
    assert said.geometry is None
    assert "no entry" in said.detail
