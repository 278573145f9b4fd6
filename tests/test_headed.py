"""Images whose header says the geometry: PC-98 emulators' and 86Box's.

What each field means was read in those programs' sources (Neko Project II kai, `fdd/newdisk.c`,
`fdd/sxsihdd.c`, `diskimage/fd/fdd_xdf.c`; 86Box, `src/disk/hdd_image.c`), and is written down here
once more, apart from the code under test.  MAME's floptool reads the floppies.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qemu
from cli import done, refused
from harness import PATIENCE, ROOT
from model import host_folder
from vdisk.create import create_image, plan_disk
from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.formats.base import ProblemKind
from vdisk.geometry import CHS, Geometry, Source
from vdisk.open import OpenOptions, keep_geometry, open_image, resize_disk

Maker = Callable[[int, int, int, int], bytes]


def anex86(cylinders: int, heads: int, sectors: int, sector_size: int, kind: int = 0) -> bytes:
    """HDI and FDI: eight 32-bit numbers in a header of 4096 bytes."""
    size = cylinders * heads * sectors * sector_size
    return struct.pack(
        "<8I", 0, kind, 4096, size % 2**32, sector_size, sectors, heads, cylinders
    ).ljust(4096, b"\0")


def nhd(cylinders: int, heads: int, sectors: int, sector_size: int) -> bytes:
    """NHD: a signature, a comment of 256 bytes, then the numbers."""
    return struct.pack(
        "<16s256sIIHHH", b"T98HDDIMAGE.R0", b"a comment", 512, cylinders, heads, sectors,
        sector_size,
    ).ljust(512, b"\0")  # fmt: skip


def thd(cylinders: int, heads: int = 8, sectors: int = 33, sector_size: int = 256) -> bytes:
    """THD: the cylinders, and all else is always the same."""
    assert (heads, sectors, sector_size) == (8, 33, 256)
    return struct.pack("<H", cylinders).ljust(256, b"\0")


def virtual98(cylinders: int, heads: int, sectors: int, sector_size: int) -> bytes:
    """Virtual98: the structure VHDHDR, which has nothing to do with Microsoft's VHD."""
    total = cylinders * heads * sectors
    return struct.pack(
        "<8s128s4xHHBBHI", b"VHD1.00", b"a comment", total * sector_size >> 20, sector_size,
        sectors, heads, cylinders, total,
    ).ljust(220, b"\0")  # fmt: skip


def slh(cylinders: int, heads: int, sectors: int, sector_size: int) -> bytes:
    """SLH: the size in bytes comes first."""
    size = cylinders * heads * sectors * sector_size % 2**64
    return struct.pack(
        "<4sQIIII20s8s40s", b"HDIM", size, sector_size, cylinders, heads, sectors, b"serial",
        b"1.0", b"a model",
    ).ljust(512, b"\0")  # fmt: skip


def hdx(cylinders: int, heads: int, sectors: int, sector_size: int = 512) -> bytes:
    """HDX: the data begin at byte 40."""
    size = cylinders * heads * sectors * sector_size
    return struct.pack(
        "<QQIIII8x", 0xD778A82044445459, size, sector_size, sectors, heads, cylinders
    )


MAKERS: dict[str, Maker] = {
    "hdi": anex86, "fdi": anex86, "nhd": nhd, "thd": thd, "virtual98": virtual98, "slh": slh,
    "hdx": hdx,
}  # fmt: skip
SHAPES = {
    "hdi": (20, 4, 33, 256), "fdi": (77, 2, 8, 1024), "nhd": (30, 8, 17, 512),
    "thd": (11, 8, 33, 256), "virtual98": (16, 8, 32, 256), "slh": (12, 16, 63, 512),
    "hdx": (9, 16, 63, 512),
}  # fmt: skip
EXTENSIONS = {"virtual98": "hdd"}
# What a user of the emulator adds to the header, and nobody else.
TEXTS = {
    "nhd": [b"a comment"], "virtual98": [b"a comment"], "slh": [b"serial", b"1.0", b"a model"]
}  # fmt: skip


def image(folder: Path, name: str, content: bytes | None = None) -> tuple[Path, bytes]:
    """An image as the emulator would lay it out, and the disk's bytes."""
    cylinders, heads, sectors, sector_size = SHAPES[name]
    size = cylinders * heads * sectors * sector_size
    content = Random(name).randbytes(size) if content is None else content
    path = folder / f"disk.{EXTENSIONS.get(name, name)}"
    path.write_bytes(MAKERS[name](*SHAPES[name]) + content)
    return path, content


@pytest.mark.parametrize("name", MAKERS)
def test_an_image_opens_with_the_geometry_and_the_sectors_of_its_header(
    tmp_path: Path, name: str
) -> None:
    path, content = image(tmp_path, name)
    header = path.read_bytes()[: -len(content)]
    cylinders, heads, sectors, sector_size = SHAPES[name]
    with open_image(path, writable=True) as disk:
        assert disk.image.name == name
        assert disk.choice is not None
        assert (disk.geometry, disk.choice.source) == (Geometry(*SHAPES[name]), Source.HEADER)
        assert disk.read(0, disk.size) == content
        last = CHS(cylinders - 1, heads - 1, sectors)
        assert disk.read_chs(last) == content[-sector_size:]
        disk.write_chs(CHS(1, heads - 1, 2), b"\x5a" * sector_size)
    at = ((heads + heads - 1) * sectors + 1) * sector_size
    expected = content[:at] + b"\x5a" * sector_size + content[at + sector_size :]
    assert path.read_bytes() == header + expected


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_has_the_header_that_the_emulator_writes(tmp_path: Path, name: str) -> None:
    cylinders, heads, sectors, sector_size = SHAPES[name]
    path = tmp_path / f"new.{name}"
    chs = f"{cylinders}/{heads}/{sectors}"
    done("create", path, "--format", name, "--chs", chs, "--sector-size", str(sector_size))
    expected = MAKERS[name](*SHAPES[name])
    for text in TEXTS.get(name, ()):
        expected = expected.replace(text, bytes(len(text)))
    if name == "fdi":
        expected = anex86(*SHAPES[name], kind=0x90)
    made = path.read_bytes()
    assert made[: len(expected)] == expected
    assert len(made) == len(expected) + cylinders * heads * sectors * sector_size
    assert not any(made[len(expected) :])


def test_the_drives_of_the_pc98_are_as_large_as_its_emulators_make_them(tmp_path: Path) -> None:
    """`hdi_file_size` was worked out from Neko Project II kai's own table."""
    rows = json.loads((ROOT / "tests/data/geometry-vectors.json").read_text())["rows"]
    tried = 0
    for row in (row for row in rows if row["kind"] == "pc98_sasi"):
        path = tmp_path / f"{row['id']}.hdi"
        done("create", path, "--profile", f"pc98-{row['input']['type']}")
        expected = row["expected"]
        assert path.stat().st_size == expected["hdi_file_size"]
        assert path.read_bytes()[:4096] == anex86(*expected["chs"], expected["sector_size"])
        tried += 1
    assert tried > 3


@pytest.mark.parametrize(
    ("profile", "type_byte"), [("1.23M", 0x90), ("1.2M", 0x90), ("1.44M", 0x30), ("640K", 0x70)]
)
def test_a_floppy_says_for_which_drive_it_is(tmp_path: Path, profile: str, type_byte: int) -> None:
    path = tmp_path / "floppy.fdi"
    done("create", path, "--profile", profile)
    assert path.read_bytes()[4:8] == bytes([type_byte, 0, 0, 0])


@pytest.mark.parametrize("profile", ["1.23M", "1.2M"])
def test_mame_reads_what_was_written_to_a_floppy(tmp_path: Path, profile: str) -> None:
    path, raw = tmp_path / "floppy.fdi", tmp_path / "floppy.raw"
    done("create", path, "--profile", profile)
    size = path.stat().st_size - 4096
    content = Random(1).randbytes(size)
    done("write", path, stdin=content)
    line = ["floptool", "flopconvert", "pc98_fdi", "pc98", str(path), str(raw)]
    subprocess.run(line, check=True, capture_output=True, timeout=PATIENCE)
    assert raw.read_bytes() == content


@pytest.mark.parametrize("sector_size", [128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("name", ["hdi", "fdi", "nhd", "virtual98", "slh"])
def test_sectors_of_every_size(tmp_path: Path, name: str, sector_size: int) -> None:
    path = tmp_path / "disk.img"
    new = plan_disk(chs="6/2/5", sector_size=sector_size)
    create_image(path, type(new)(new.size_bytes, new.geometry, True, name))
    with open_image(path, writable=True) as disk:
        assert (disk.sector_size, disk.sectors) == (sector_size, 60)
        for lba in range(60):
            disk.write_lba(lba, bytes([lba]) * sector_size)
        assert disk.read_chs(CHS(3, 1, 4)) == bytes([3 * 10 + 5 + 3]) * sector_size
    whole = path.read_bytes()
    assert whole[-60 * sector_size :] == b"".join(bytes([n]) * sector_size for n in range(60))


def test_an_image_that_ends_before_its_disk_does_reads_on_as_zeros(tmp_path: Path) -> None:
    """Neko Project II makes no more of a THD than its first 64 KiB."""
    path = tmp_path / "short.thd"
    path.write_bytes(thd(75) + b"\xaa" * 65536)
    size = 75 * 8 * 33 * 256
    with open_image(path, writable=True) as disk:
        assert disk.size == size
        assert disk.read(0, size) == b"\xaa" * 65536 + bytes(size - 65536)
        problems = list(disk.image.check())
        assert [problem.kind for problem in problems] == [ProblemKind.UNCLEAN]
        disk.write(1_000_000, b"here")
        assert disk.read(999_999, 6) == b"\0here\0"
        assert len(list(disk.repair())) == 1
    assert path.stat().st_size == 256 + size


@pytest.mark.parametrize("name", MAKERS)
def test_resizing_goes_by_cylinders_and_keeps_header_and_file_together(
    tmp_path: Path, name: str
) -> None:
    path, content = image(tmp_path, name)
    with path.open("ab") as file:
        file.write(b"behind the disk")
    cylinders, *shape = SHAPES[name]
    cylinder = shape[0] * shape[1] * shape[2]
    start = path.stat().st_size - len(content) - 15
    with open_image(path, writable=True) as disk:
        with pytest.raises(InvalidArgument, match="cylinders of"):
            resize_disk(disk, disk.size + shape[2])
        resize_disk(disk, (cylinders + 3) * cylinder)
        assert disk.geometry == Geometry(cylinders + 3, *shape)
    grown = path.read_bytes()
    assert grown[start:] == content + bytes(3 * cylinder)
    with open_image(path, writable=True) as disk:
        assert disk.geometry == Geometry(cylinders + 3, *shape)
        assert list(disk.image.check()) == []
        resize_disk(disk, 2 * cylinder)
    assert path.read_bytes()[start:] == content[: 2 * cylinder]
    made = path.read_bytes()[:start]
    counts = MAKERS[name](2, *shape)
    if name in ("hdi", "nhd", "thd", "virtual98", "slh", "hdx"):
        assert made == counts


def test_the_command_rounds_a_size_up_to_cylinders(tmp_path: Path) -> None:
    path, _ = image(tmp_path, "nhd")
    cylinder = 8 * 17 * 512
    assert f"({35 * cylinder} bytes), geometry 35/8/17" in done(
        "resize", path, str(34 * cylinder + 1)
    )
    assert path.stat().st_size == 512 + 35 * cylinder


def test_another_geometry_goes_into_the_header_if_it_makes_the_same_disk(tmp_path: Path) -> None:
    path, content = image(tmp_path, "slh")
    with open_image(path, writable=True) as disk:
        assert keep_geometry(disk, Geometry(24, 8, 63))
        with pytest.raises(InvalidArgument, match="as large as its geometry"):
            keep_geometry(disk, Geometry(23, 8, 63))
        with pytest.raises(InvalidArgument, match="has no 256 heads"):
            keep_geometry(disk, Geometry(3, 256, 63))
    assert path.read_bytes() == slh(24, 8, 63, 512) + content
    with open_image(path, writable=False) as disk:
        assert disk.geometry == Geometry(24, 8, 63)


@pytest.mark.parametrize("name", ["virtual98", "slh", "hdi"])
def test_check_finds_a_size_that_contradicts_the_geometry(tmp_path: Path, name: str) -> None:
    path, content = image(tmp_path, name)
    at = {"virtual98": 0x94, "slh": 4, "hdi": 12}[name]
    sound = path.read_bytes()
    path.write_bytes(sound[:at] + b"\1\2\3\0" + sound[at + 4 :])
    with open_image(path, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        assert [problem.kind for problem in disk.image.check()] == [ProblemKind.UNCLEAN]
        assert len(list(disk.repair())) == 1
        assert list(disk.image.check()) == []
    assert path.read_bytes() == sound


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.thd", "--size", "1M", "--sector-size", "512"], "has no sectors of 512 bytes"),
        (["x.thd", "--chs", "10/4/17", "--sector-size", "256"], "it always has 8"),
        (["x.nhd", "--chs", "70000/8/17"], "has no 70000 cylinders"),
        (["x.hdi", "--chs", "10/8/256"], "has no 256 sectors per track"),
        (["x.hdx", "--chs", "10/8/17", "--sector-size", "256"], "has no sectors of 256 bytes"),
        (["x.hdi", "--chs", "10/8/17", "--size", "1G"], "as large as its geometry"),
        (["x.fdi", "--size", "3M"], "give its geometry"),
        (["x.nhd", "--size", "100T"], "cannot be"),
    ],
)
def test_what_no_emulator_would_open_is_not_made(
    tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in refused("create", tmp_path / words[0], *words[1:])
    assert list(tmp_path.iterdir()) == []


@given(size=st.integers(1, 1 << 42), name=st.sampled_from(["hdi", "nhd", "virtual98", "slh"]))
def test_a_size_is_rounded_up_by_less_than_a_cylinder(size: int, name: str) -> None:
    with host_folder("memory") as folder:
        new = plan_disk(size_bytes=size)
        path = folder / "disk.img"
        try:
            create_image(path, type(new)(new.size_bytes, new.geometry, format=name))
        except InvalidArgument:
            assert size > 65535 * 255 * 255 * 512
            return
        with open_image(path, writable=False) as disk:
            assert size <= disk.size < size + max(disk.geometry.cylinder_bytes, 512)


@pytest.mark.parametrize("name", ["hdi", "fdi", "thd"])
def test_without_a_signature_the_name_tells_and_a_wrong_header_is_refused(
    tmp_path: Path, name: str
) -> None:
    path, content = image(tmp_path, name)
    plain = tmp_path / "disk.bin"
    path.replace(plain)
    with open_image(plain, writable=False) as disk:
        assert disk.image.name == "raw"
    with open_image(plain, writable=False, options=OpenOptions(format=name)) as disk:
        assert disk.read(0, disk.size) == content
    path.write_bytes(bytes(100_000))
    with pytest.raises(InvalidFormat, match="--format raw"):
        open_image(path, writable=False)


def test_a_format_that_only_the_name_told_is_recorded_by_a_writer(tmp_path: Path) -> None:
    path, content = image(tmp_path, "hdi")
    open_image(path, writable=True).close()
    renamed = path.replace(tmp_path / "renamed.img")
    with open_image(renamed, writable=False) as disk:
        assert disk.read(0, disk.size) == content


@pytest.mark.parametrize("name", MAKERS)
def test_a_guest_cannot_make_it_another_format_by_its_last_sector(
    tmp_path: Path, name: str
) -> None:
    """The footer of a fixed VHD is recognised in a file's last 512 bytes, which are the guest's."""
    footer = tmp_path / "footer.vhd"
    qemu.create(footer, "vhd", 1 << 20, subformat="fixed")
    path, _ = image(tmp_path, name)
    formats = {"virtual98": "virtual98"}
    with open_image(path, writable=True) as disk:
        disk.write(disk.size - 512, footer.read_bytes()[-512:])
    with open_image(path, writable=False) as disk:
        assert disk.image.name == formats.get(name, name)


@pytest.mark.parametrize(
    ("name", "header", "error"),
    [
        ("hdi", anex86(0, 4, 33, 256), InvalidFormat),
        ("hdi", anex86(10, 4, 33, 300), Unsupported),
        ("hdi", anex86(10, 4, 33, 8192), Unsupported),
        ("hdi", anex86(10, 70000, 33, 256), Corrupt),
        ("hdi", struct.pack("<8I", 0, 0, 31, 0, 256, 33, 4, 10), InvalidFormat),
        ("hdi", struct.pack("<8I", 0, 0, 2**31, 0, 256, 33, 4, 10), InvalidFormat),
        ("slh", slh(2**32 - 1, 2**16 - 1, 2**16 - 1, 4096), Corrupt),
        ("nhd", nhd(5, 8, 17, 512)[:100], InvalidFormat),
        ("nhd", b"X" + nhd(5, 8, 17, 512)[1:], InvalidFormat),
        ("virtual98", virtual98(5, 8, 0, 512), InvalidFormat),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    tmp_path: Path, name: str, header: bytes, error: type[Exception]
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(header)
    with pytest.raises(error):
        open_image(path, writable=False, options=OpenOptions(format=name))


def test_an_absurd_size_costs_nothing(tmp_path: Path) -> None:
    """The header may claim 16 TiB and the file have nothing of it."""
    path = tmp_path / "huge.slh"
    path.write_bytes(slh(65535, 255, 255, 4096))
    with open_image(path, writable=True) as disk:
        assert disk.size == 65535 * 255 * 255 * 4096
        assert disk.read(disk.size - 4096, 4096) == bytes(4096)
        assert len(list(disk.map(0, disk.size))) == 1
