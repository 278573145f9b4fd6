"""VMDK: what qemu-img makes is read and written here, and the reverse; deltas; what ESX makes."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qemu
from cli import done, refused
from format_cases import scattered
from samples import unpacked
from vdisk.create import create_image, plan_disk
from vdisk.disk_geometry import resize_disk
from vdisk.errors import (
    Busy,
    Corrupt,
    InvalidArgument,
    InvalidFormat,
    NotFound,
    NotPermitted,
    ReadOnly,
    Unsupported,
)
from vdisk.extent import Kind, merged
from vdisk.formats.base import ProblemKind
from vdisk.formats.vmdk_descriptor import Descriptor, ExtentLine
from vdisk.formats.vmdk_stream import framed, pack, stream_optimized
from vdisk.geometry import Geometry
from vdisk.open import open_image
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.store import FolderStore
from vdisk.units import parse_size

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
SUBFORMATS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]


def make(image: Path, size: int, *, parent: Path | None = None, **options: str) -> Path:
    """A new image; an option's `_` stands for `-`."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    create_image(image, replace(plan_disk(size_bytes=size), options=given, parent=parent))
    return image


def header(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(512)


def patch(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def field(image: Path, key: str) -> str:
    """A field of the descriptor, as it is written there."""
    text = image.read_bytes()[:20000].decode("latin-1")
    line = next(line for line in text.splitlines() if line.partition("=")[0].strip() == key)
    return line.partition("=")[2].strip()


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_that_qemu_made_is_read_mapped_and_written_in_place(
    tmp_path: Path, subformat: str
) -> None:
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE + 512, subformat=subformat)
    content = bytearray(SIZE + 512)
    random = Random(subformat)
    for _ in range(2):
        qemu.scatter(image, "vmdk", content, random, 10)
        with open_image(image, writable=False) as disk:
            assert disk.read(0, len(content)) == content
            runs = [e for e in merged(disk.image.map(0, disk.size)) if e.kind is Kind.DATA]
            if "Sparse" in subformat:  # QEMU's map looks into the holes of a flat file.
                assert [(e.guest_offset, e.guest_end, e.host_offset) for e in runs] == (
                    qemu.data_runs(image, "vmdk")
                )
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 8)
            assert list(disk.image.check()) == []
        qemu.check(image, "vmdk")
        qemu.expect(image, "vmdk", content)


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_made_written_and_resized_here_is_one_to_qemu(
    tmp_path: Path, subformat: str
) -> None:
    """In several files of 7 MiB, where there are several: they come and go with the size."""
    image = tmp_path / "d.vmdk"
    make(image, SIZE, subformat=subformat, extent_size="7M")
    content = bytearray(SIZE)
    random = Random(subformat)
    for size in (SIZE, 15 * MIB + 512, 4 * MIB, 70 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 12 * MIB]
            scattered(disk, part, random, 8)
            content[: len(part)] = part
            assert disk.read(0, size) == content
        with open_image(image, writable=False) as disk:
            assert list(disk.image.check()) == []
            files = {host.path for host in disk.image.hosts()}
        qemu.check(image, "vmdk")
        assert set(tmp_path.iterdir()) == files
    qemu.expect(image, "vmdk", content)


@pytest.mark.parametrize("grain", ["4K", "64K", "1M"])
def test_every_length_of_grains_is_read_by_qemu(tmp_path: Path, grain: str) -> None:
    image = tmp_path / "d.vmdk"
    make(image, SIZE - 3 * 512, grain_size=grain)
    content = bytearray(SIZE - 3 * 512)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(grain), 10)
    qemu.check(image, "vmdk")
    qemu.expect(image, "vmdk", content)


def test_what_is_written_ahead_of_need_is_given_back_when_the_image_is_closed(
    tmp_path: Path,
) -> None:
    image = tmp_path / "d.vmdk"
    make(image, 1 << 30)
    before = image.stat().st_size
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
        assert image.stat().st_size > before + 64 * KIB
        assert header(image)[72] == 1  # uncleanShutdown
    assert image.stat().st_size == before + 64 * KIB
    assert header(image)[72] == 0


# Descriptor and geometry


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_the_geometry_is_kept_in_the_descriptor_and_believed(
    tmp_path: Path, subformat: str
) -> None:
    image = tmp_path / "d.vmdk"
    done("create", image, "--chs", "615/4/17", "-o", f"subformat={subformat}")
    keys = ("cylinders", "heads", "sectors")
    assert [field(image, f"ddb.geometry.{key}") for key in keys] == ['"615"', '"4"', '"17"']
    assert "615/4/17 (source: header)" in done("info", image)
    assert "user.vdisk.geometry" not in os.listxattr(image)
    done("resize", image, "40M")
    assert field(image, "ddb.geometry.cylinders") == '"1204"'
    qemu.check(image, "vmdk")


@pytest.mark.parametrize(
    ("adapter", "size", "expected"),
    [
        ("ide", "504M", "1024/16/63"),
        ("lsilogic", "5G", "652/255/63"),
        ("ide", "40G", "83220/16/63"),
    ],
)
def test_a_new_image_has_the_geometry_that_vmware_gives_it(
    tmp_path: Path, adapter: str, size: str, expected: str
) -> None:
    """As in descriptors of VMware's (libvmdk's documentation; logs of VMware Fusion)."""
    image = tmp_path / "d.vmdk"
    make(image, parse_size(size), adapter_type=adapter)
    with open_image(image, writable=False) as disk:
        assert str(disk.image.header_geometry) == expected
    assert field(image, "ddb.adapterType") == f'"{adapter}"'


def test_a_descriptor_keeps_its_length_and_what_is_not_known_in_it(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE, subformat="monolithicFlat")
    text = image.read_text().replace("\n", "\r\n") + 'ddb.comment = "caf\xe9 \u2713"\r\n# end'
    image.write_bytes(text.encode())
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
        disk.set_geometry(Geometry(5, 16, 63))
        assert disk.image.header_geometry == Geometry(5, 16, 63)
    after = image.read_bytes()
    assert len(after) == len(text.encode())
    assert after.endswith('ddb.comment = "caf\xe9 \u2713"\r\n# end'.encode())
    before = text.encode()
    differ = [at for at in range(len(after)) if before[at] != after[at]]
    assert {after[:at].rpartition(b"\n")[2].partition(b"=")[0].strip() for at in differ} == {
        b"CID", b"ddb.geometry.cylinders"
    }
    qemu.check(image, "vmdk")


LINE = st.one_of(
    st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=("Cs",)), max_size=30),
    st.sampled_from(["CID=1", "cid = 0000abcd ", 'ddb.geometry.heads="16"', "parentCID=ffffffff",
                     'RW 8 SPARSE "a"', "RW 4 ZERO", 'RDONLY 7 FLAT "b c" 9', "CID=", "RW 1"]),
)  # fmt: skip


@given(st.lists(LINE, max_size=12), st.sampled_from(["\n", "\r\n"]), st.integers(1, 1 << 30))
def test_a_change_of_any_descriptor_changes_what_it_is_about_alone(
    lines: list[str], newline: str, cylinders: int
) -> None:
    text = newline.join(["# Disk DescriptorFile", "RW 2 ZERO", *lines, ""])
    try:
        before = Descriptor.parse(text.encode(), "d.vmdk")
    except Corrupt:
        return
    geometry = Geometry(cylinders, 16, 63)
    line = ExtentLine("RW", 3, "ZERO")
    after = before.with_geometry(geometry).with_new_cid().with_extent(0, line)
    again = Descriptor.parse(after.encoded(), "d.vmdk")
    assert (again.geometry, again.cid) == (geometry, after.cid)
    assert again.cid != before.cid
    assert again.extents == (line, *before.extents[1:])
    assert len(after.text) >= len(before.text)
    changed = {"cid"} | {key for key in again.fields if key.startswith("ddb.geometry.")}
    kept = {key: value for key, value in before.fields.items() if key not in changed}
    assert {key: value for key, value in again.fields.items() if key not in changed} == kept
    # Every line that is about nothing of this is there, as it was.
    for one in lines:
        if "=" not in one and not one.startswith("RW"):
            assert one in after.text


def test_an_embedded_descriptor_never_outgrows_its_room(tmp_path: Path) -> None:
    """Other programs have damaged the tables behind it that way."""
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE)
    content = image.read_bytes()
    text = content[512:].partition(b"\0")[0]
    full = text + b"#" * (20 * 512 - len(text) - 1) + b"\n"
    patch(image, 512, full.replace(b'sectors = "63"', b'sectors = "7" '))
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
        disk.set_geometry(Geometry(4, 16, 63))
        with pytest.raises(InvalidArgument, match="has room for 10240 bytes"):
            disk.set_geometry(Geometry(12345, 16, 12345))
        assert disk.read(0, 1) == b"x"
    qemu.check(image, "vmdk")


def test_the_content_has_another_number_after_the_first_change_only(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE)
    cid = field(image, "CID")
    with open_image(image, writable=True) as disk:
        disk.read(0, 512)
        disk.flush()
    assert field(image, "CID") == cid
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
        changed = field(image, "CID")
        disk.write(MIB, b"x")
    assert cid != changed == field(image, "CID")


# Deltas


def chain(folder: Path, layers: int, **options: str) -> list[Path]:
    paths = [folder / f"{number}.vmdk" for number in range(layers)]
    make(paths[0], 8 * MIB)
    for base, overlay in pairwise(paths):
        with open_image(base, writable=True) as disk:
            disk.write(MIB * int(base.stem), base.stem.encode() * 1000)
        make(overlay, 8 * MIB, parent=base, **options)
    return paths


@pytest.mark.parametrize(
    "options",
    [{"zeroed_grain": "on"}, {"subformat": "twoGbMaxExtentSparse", "extent_size": "3M"}],
)
def test_deltas_made_here_are_written_and_read_as_qemu_reads_them(
    tmp_path: Path, options: dict[str, str]
) -> None:
    paths = chain(tmp_path, 4, **options)
    before = [path.read_bytes() for path in paths[:-1]]
    with open_image(paths[-1], writable=True) as disk:
        expected = bytearray(disk.read(0, disk.size))
        assert [expected[MIB * n] for n in range(3)] == [0x30, 0x31, 0x32]
        scattered(disk, expected, Random(1), 20)
        assert disk.read(0, disk.size) == expected
    assert [path.read_bytes() for path in paths[:-1]] == before
    with open_image(paths[-1], writable=False) as disk:
        assert disk.read(0, disk.size) == expected
        assert list(disk.image.check()) == []
    qemu.expect(paths[-1], "vmdk", expected)


@pytest.mark.parametrize("zeroed", ["on", "off"])
def test_a_delta_of_qemu_is_written_in_place(tmp_path: Path, zeroed: str) -> None:
    base = qemu.create(tmp_path / "base.vmdk", "vmdk", SIZE)
    content = bytearray(SIZE)
    qemu.scatter(base, "vmdk", content, Random(1), 20)
    child = tmp_path / "child.vmdk"
    qemu.qemu("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"zeroed_grain={zeroed}",
              "-F", "vmdk", "-b", base.name, child)  # fmt: skip
    qemu.scatter(child, "vmdk", content, Random(2), 5)
    qemu.qemu("qemu-io", "-f", "vmdk", "-c", "write -z 1M 2M", child)
    content[MIB : 3 * MIB] = bytes(2 * MIB)
    with open_image(child, writable=True) as disk:
        assert disk.read(0, SIZE) == content
        scattered(disk, content, Random(3), 20)
    qemu.check(child, "vmdk")
    qemu.expect(child, "vmdk", content)


def test_a_delta_that_grows_shows_no_more_of_a_larger_parent(tmp_path: Path) -> None:
    base = tmp_path / "base.vmdk"
    make(base, 8 * MIB)
    with open_image(base, writable=True) as disk:
        disk.write(0, b"b" * 8 * MIB)
    child = tmp_path / "child.vmdk"
    make(child, 3 * MIB + 512, parent=base)
    with open_image(child, writable=True) as disk:
        resize_disk(disk, 40 * MIB)
    content = (b"b" * (3 * MIB + 512)).ljust(40 * MIB, b"\0")
    with open_image(child, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []
    qemu.expect(child, "vmdk", content)


def test_a_parent_that_was_written_to_since_is_refused(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    with open_image(base, writable=True):
        pass  # Opening alone changes nothing.
    open_image(overlay, writable=False).close()
    with open_image(base, writable=True) as disk:
        disk.write(0, b"x")
    with pytest.raises(Corrupt, match="was written to"):
        open_image(overlay, writable=False)


@pytest.mark.parametrize("hint", [r"C:\\VMs\\0.vmdk", "/vmfs/volumes/0.vmdk", ""])
def test_a_parent_is_found_beside_its_child_whatever_folder_the_child_remembers(
    tmp_path: Path, hint: str
) -> None:
    _, overlay = chain(tmp_path, 2)
    content = overlay.read_bytes()
    old = b'parentFileNameHint="0.vmdk"'
    new = f'parentFileNameHint="{hint}"'.encode()
    end = content.index(b"\0", 512)
    patch(overlay, 512, content[512:end].replace(old, new))
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, 3) == b"000"


def test_a_delta_needs_a_vmdk_beneath_it_and_is_not_flat(tmp_path: Path) -> None:
    make(tmp_path / "raw.img", MIB)
    refused("create", tmp_path / "o.vmdk", "--parent", tmp_path / "raw.img")
    base = chain(tmp_path, 1)[0]
    refused("create", tmp_path / "o.vmdk", "--parent", base, "-o", "subformat=monolithicFlat")
    assert not list(tmp_path.glob("o*"))


# Compressed images


@pytest.fixture
def esx_image(tmp_path: Path) -> Path:
    """An export of ESX: 16 GiB, the grain directory in the footer, markers before all tables."""
    path = tmp_path / "esx.vmdk"
    return unpacked("iotest-version3.vmdk", path)


def test_an_export_of_esx_reads_as_qemu_reads_it(esx_image: Path) -> None:
    raw = esx_image.with_name("raw")
    qemu.qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", esx_image, raw)
    with open_image(esx_image, writable=True) as disk:
        assert disk.size == raw.stat().st_size == 33554432 * 512
        assert str(disk.image.header_geometry) == "2088/255/63"
        with raw.open("rb") as file:
            for extent in disk.image.map(0, disk.size):
                if extent.kind is Kind.COMPRESSED:
                    file.seek(extent.guest_offset)
                    assert disk.read(extent.guest_offset, extent.length) == file.read(extent.length)
        runs = [e for e in disk.image.map(0, disk.size) if e.kind is Kind.COMPRESSED]
        data = qemu.data_runs(esx_image, "vmdk")
        assert sum(e.length for e in runs) == sum(end - start for start, end, _ in data)
        assert list(disk.image.check()) == []
        with pytest.raises(ReadOnly, match="streamOptimized"):
            disk.write(0, b"x")


def test_a_compressed_image_of_qemu_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    content = Random(1).randbytes(100_000).ljust(3 * MIB, b"a").ljust(SIZE + 512, b"\0")
    plain.write_bytes(content)
    image = tmp_path / "d.vmdk"
    qemu.qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
              plain, image)  # fmt: skip
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert disk.read(SIZE - 70000, 70512) == content[-71024:-512]
        assert list(disk.image.check()) == []


def test_a_stream_written_here_is_read_by_qemu_and_read_back(tmp_path: Path) -> None:
    """Over two grain tables, with a last grain that the disk ends inside."""
    source = tmp_path / "source.img"
    size = 70 * MIB + 512
    make(source, size)
    with open_image(source, writable=True) as disk:
        content = bytearray(size)
        for offset in (0, 5 * MIB + 100, 33 * MIB, 69 * MIB, size - 512):
            content[offset : offset + 512] = block = Random(offset).randbytes(512)
            disk.write(offset, block)
    image = tmp_path / "d.vmdk"
    done("convert", source, image, "-o", "subformat=streamOptimized", "--chs", "9/16/63")
    qemu.check(image, "vmdk")
    qemu.expect(image, "vmdk", content)
    told = qemu.info(image, "vmdk")["format-specific"]["data"]
    assert told["create-type"] == "streamOptimized"
    assert [extent["compressed"] for extent in told["extents"]] == [True]
    assert image.stat().st_size < 5 * 64 * KIB + 64 * KIB
    with open_image(image, writable=False) as disk:
        assert disk.read(0, size) == content
        assert disk.image.header_geometry == Geometry(9, 16, 63)


def test_a_stream_is_made_by_convert_only_and_only_as_it_can_be(tmp_path: Path) -> None:
    source, image = tmp_path / "source.img", tmp_path / "d.vmdk"
    make(source, MIB)
    said = refused("create", image, "--size", "1M", "-o", "subformat=streamOptimized")
    assert "vdisk convert --compress" in said
    for option in ("subformat=monolithicFlat", "grain-size=32K"):
        refused("convert", "--compress", source, image, "-o", option)
    assert [path.name for path in tmp_path.iterdir()] == ["source.img"]


def test_a_stream_that_was_cut_short_is_refused(esx_image: Path) -> None:
    content = esx_image.read_bytes()
    esx_image.write_bytes(content[:-2048])
    with pytest.raises(Corrupt, match="footer"):
        open_image(esx_image, writable=False)


def test_a_grain_that_is_another_ones_or_unpacks_to_too_little_is_told(tmp_path: Path) -> None:
    image = tmp_path / "d.vmdk"
    short = framed(128 * KIB, pack(bytes(64 * KIB)))
    short = short[:8] + struct.pack("<I", 20) + short[12:]
    packed = [(64 * KIB, framed(0, pack(b"x"))), (128 * KIB, short)]
    with image.open("wb") as file:
        for part in stream_optimized(MIB, packed, file_name="d", geometry=None):
            file.write(part)
    with open_image(image, writable=False) as disk:
        with pytest.raises(Corrupt, match="says that"):
            disk.read(64 * KIB, 1)
        with pytest.raises(Corrupt, match="instead of"):
            disk.read(128 * KIB, 1)


# Extents of ESX


def cowd(path: Path, content: bytes, *, root: bool = True) -> None:
    """A COWD extent with grains of one sector, by VMware's `COWDisk_Header`."""
    sectors = len(content) // 512
    tables = -(-sectors // 4096)
    first = 4 + 1 + 32 * tables
    data, entries = b"", []
    for lba in range(sectors):
        sector = content[lba * 512 : lba * 512 + 512]
        entries.append(first + len(data) // 512 if any(sector) else 0)
        data += sector if any(sector) else b""
    head = struct.pack("<4sIIIIIIIIII", b"COWD", 1, 3 if root else 2, sectors, 1, 4, tables,
                       first + len(data) // 512, 9, 16, 63)  # fmt: skip
    directory = struct.pack(f"<{tables}I", *(5 + 32 * n for n in range(tables)))
    table = struct.pack(f"<{sectors}I", *entries)
    path.write_bytes(head.ljust(2048, b"\0") + directory.ljust(512, b"\0")
                     + table.ljust(first * 512 - 2560, b"\0") + data)  # fmt: skip


def test_an_extent_of_esx_is_read_as_qemu_reads_it(tmp_path: Path) -> None:
    """On its own, and named by a descriptor."""
    content = bytearray(5000 * 512)
    for lba in (0, 1, 7, 4095, 4096, 4999):
        content[lba * 512 : lba * 512 + 512] = Random(lba).randbytes(512)
    extent = tmp_path / "d-delta.vmdk"
    cowd(extent, content)
    image = tmp_path / "d.vmdk"
    image.write_text('# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n'
                     'createType="vmfsSparse"\nRW 5000 VMFSSPARSE "d-delta.vmdk"\n')  # fmt: skip
    qemu.expect(image, "vmdk", content)
    for path in (extent, image):
        with open_image(path, writable=True) as disk:
            assert disk.read(0, disk.size) == content
            assert list(disk.image.check()) == []
            with pytest.raises(ReadOnly, match="COWD"):
                disk.write(0, b"x")
    with open_image(extent, writable=False) as disk:
        assert disk.image.header_geometry == Geometry(9, 16, 63)
    cowd(extent, content, root=False)
    with pytest.raises(InvalidFormat, match="one extent"):
        open_image(extent, writable=False)


# Extents that the descriptor names


def described(folder: Path, *lines: str, more: str = "") -> Path:
    image = folder / "d.vmdk"
    image.write_text('# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n'
                     f'createType="custom"\n{more}\n' + "\n".join(lines) + "\n")  # fmt: skip
    return image


def test_extents_of_every_kind_make_one_disk(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"-" * 512 + b"a" * 1024)
    (tmp_path / "r.bin").write_bytes(b"r" * 1024)
    image = described(tmp_path, 'RW 2 FLAT "a.bin" 1', "RW 3 ZERO", 'RDONLY 2 FLAT "r.bin" 0')
    content = b"a" * 1024 + bytes(1536) + b"r" * 1024
    with open_image(image, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        disk.write(1000, b"A" * 24)
        for offset in (1024, 2000, 2560):
            with pytest.raises(NotPermitted, match="never written"):
                disk.write(offset, b"x")
        disk.zero(1024, 1536)  # It reads as zeros already.
        assert disk.read(0, disk.size) == content[:1000] + b"A" * 24 + content[1024:]
    assert (tmp_path / "a.bin").read_bytes() == b"-" * 512 + b"a" * 1000 + b"A" * 24


@pytest.mark.parametrize(
    ("line", "error", "what"),
    [
        ('RW 2 FLAT "../a.bin" 0', NotPermitted, "--allow-parent"),
        ('RW 2 FLAT "/etc/passwd" 0', NotPermitted, "--allow-parent"),
        ('RW 2 FLAT "/dev/zero" 0', NotPermitted, "--allow-parent"),
        ('RW 2 FLAT "missing.bin" 0', NotFound, "missing"),
        ('RW 2 FLAT "d.vmdk" 0', Busy, "in use"),
        ('RW 3 FLAT "a.bin" 0', Corrupt, "too short"),
        ('RW 1 FLAT "a.bin" 2', Corrupt, "too short"),
        ('RW 2 SPARSE "a.bin"', InvalidFormat, "magic|too short"),
        ('RW 2 SESPARSE "a.bin"', Unsupported, "SESPARSE"),
        ('RW 2 VMFSRDM "a.bin"', Unsupported, "VMFSRDM"),
        ('NOACCESS 2 FLAT "a.bin" 0', Unsupported, "must not be accessed"),
        ("RW 2 FLAT", Corrupt, "without a file"),
        ("RW 0 ZERO", Corrupt, "0 sectors"),
        ("RW 18446744073709551615 ZERO", Corrupt, "sectors"),
        ("RW 18014398509481983 ZERO\nRW 18014398509481983 ZERO", Corrupt, "larger than any"),
        ("", Corrupt, "no extents"),
    ],
)
def test_an_extent_that_cannot_be_is_refused(
    tmp_path: Path, line: str, error: type[Exception], what: str
) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(1024))
    image = described(tmp_path, line)
    with pytest.raises(error, match=what):
        open_image(image, writable=True)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ('encryption.keySafe = "vmware:key/list/"', Unsupported),
        ("parentCID=zzzz", None),  # The first of two lines holds.
    ],
)
def test_what_a_descriptor_may_say_besides(
    tmp_path: Path, more: str, error: type[Exception] | None
) -> None:
    image = described(tmp_path, "RW 2 ZERO", more=more)
    if error is None:
        open_image(image, writable=False).close()
        return
    with pytest.raises(error, match="encrypted"):
        open_image(image, writable=False)


def test_an_image_whose_changes_are_tracked_elsewhere_is_only_read(tmp_path: Path) -> None:
    """A backup program would miss ours."""
    image = described(tmp_path, "RW 2 ZERO", more='changeTrackPath="d-ctk.vmdk"')
    with open_image(image, writable=True) as disk, pytest.raises(ReadOnly, match="tracked"):
        disk.write(0, b"x")


def test_an_extent_on_its_own_and_a_sesparse_one_are_refused_by_name(tmp_path: Path) -> None:
    qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE, subformat="twoGbMaxExtentSparse")
    with pytest.raises(InvalidFormat, match="one extent"):
        open_image(tmp_path / "d-s001.vmdk", writable=False)
    (tmp_path / "se.vmdk").write_bytes(struct.pack("<Q", 0xCAFEBABE).ljust(4096, b"\0"))
    with pytest.raises(Unsupported, match="seSparse"):
        open_image(tmp_path / "se.vmdk", writable=False)


def test_a_folder_shows_an_image_in_several_files_once_and_removes_it_whole(
    tmp_path: Path,
) -> None:
    for subformat in ("monolithicFlat", "twoGbMaxExtentSparse", "monolithicSparse"):
        make(tmp_path / f"{subformat}.vmdk", 3 * MIB, subformat=subformat, extent_size="1M")
    (tmp_path / "victim-flat.vmdk").write_bytes(bytes(1024))
    described(tmp_path, 'RW 2 FLAT "victim-flat.vmdk" 0')
    store = FolderStore(tmp_path, NO_OPTIONS, writable=True)
    assert set(store.names()) == {
        "monolithicFlat", "twoGbMaxExtentSparse", "monolithicSparse", "d"
    }  # fmt: skip
    for name in store.names():
        store.open(name).close()
        store.remove(name)
    # An image that came from elsewhere takes nothing with it that is not named after it.
    assert [path.name for path in tmp_path.iterdir()] == ["victim-flat.vmdk"]


# Damage


@pytest.mark.parametrize(
    ("at", "form", "value", "error"),
    [
        (0, "<I", 0, InvalidFormat),
        (4, "<I", 4, Unsupported),
        (4, "<I", 0, Unsupported),
        (8, "<I", 0x100003, Unsupported),
        (8, "<I", 0x30003, Unsupported),  # Compressed by algorithm 0.
        (12, "<Q", 0, Corrupt),
        (12, "<Q", (1 << 32) + 1, Corrupt),
        (12, "<Q", 1 << 63, Corrupt),
        (12, "<Q", 1 << 32, Corrupt),  # A directory that does not fit into the file.
        (20, "<Q", 0, Corrupt),
        (20, "<Q", 4, Corrupt),
        (20, "<Q", 96, Corrupt),
        (20, "<Q", 1 << 16, Corrupt),
        (28, "<Q", 0, InvalidFormat),
        (28, "<Q", 1 << 60, Corrupt),
        (36, "<Q", 1 << 60, Corrupt),
        (44, "<I", 0, Corrupt),
        (44, "<I", 1 << 31, Corrupt),
        (48, "<Q", 1 << 60, Corrupt),
        (56, "<Q", 0, Corrupt),
        (56, "<Q", 1 << 60, Corrupt),
        (56, "<Q", (1 << 64) - 1, Corrupt),  # In a footer, which is not there.
        (73, "<I", 0x0D0A0D0A, Corrupt),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, form: str, value: int, error: type[Exception]
) -> None:
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE)
    patch(image, at, struct.pack(form, value))
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="vmdk"))


def table_place(image: Path) -> int:
    """The host offset of the first grain table."""
    (directory,) = struct.unpack_from("<Q", header(image), 56)
    content = image.read_bytes()
    (sector,) = struct.unpack_from("<I", content, directory * 512)
    return int(sector) * 512


@pytest.mark.parametrize("entry", [2, 127, 0xFFFFFFFF, "twice"])
def test_a_grain_in_a_wrong_place_is_found_and_never_written_to(
    tmp_path: Path, entry: int | str
) -> None:
    image = qemu.create(tmp_path / "d.vmdk", "vmdk", SIZE)
    qemu.qemu("qemu-io", "-f", "vmdk", "-c", "write -P 1 64K 128K", image)
    before = image.read_bytes()
    place = table_place(image) + 4
    first, second = struct.unpack_from("<II", before, place)
    value = second if isinstance(entry, str) else entry
    patch(image, place, struct.pack("<I", value))
    with open_image(image, writable=True) as disk:
        kinds = [problem.kind for problem in disk.image.check()]
        assert kinds[0] is ProblemKind.CORRUPTION
        if value != second:
            with pytest.raises(Corrupt, match="no cluster"):
                disk.read(64 * KIB, 1)
            with pytest.raises(Corrupt):
                disk.write(64 * KIB, b"x")
    assert image.read_bytes()[1024:place] == before[1024:place]
    assert first != second


def test_a_table_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    """Other programs leave tables out that nothing is in (and QEMU would write to sector 0)."""
    image = tmp_path / "d.vmdk"
    make(image, 70 * MIB)
    for at in (48, 56):
        (sector,) = struct.unpack_from("<Q", header(image), at)
        patch(image, sector * 512 + 4, bytes(8))
    content = bytearray(70 * MIB)
    with open_image(image, writable=True) as disk:
        assert disk.read(0, 70 * MIB) == content
        for offset in (31 * MIB, 40 * MIB, 69 * MIB):
            length = min(2 * MIB, 70 * MIB - offset)
            disk.write(offset, b"x" * length)
            content[offset : offset + length] = b"x" * length
    with open_image(image, writable=False) as disk:
        assert disk.read(0, 70 * MIB) == content
        assert list(disk.image.check()) == []
    qemu.check(image, "vmdk")
    qemu.expect(image, "vmdk", content)


def test_the_next_writer_sets_right_what_a_killed_one_left(tmp_path: Path) -> None:
    """The mark, space set aside, and a copy of a table that says less."""
    image = tmp_path / "d.vmdk"
    make(image, 100 * MIB)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x" * MIB)
        killed = image.read_bytes()
    image.write_bytes(killed)
    (redundant,) = struct.unpack_from("<Q", killed, 48)
    (table,) = struct.unpack_from("<I", killed, redundant * 512)
    patch(image, table * 512, bytes(64))
    with open_image(image, writable=False) as disk:
        assert {problem.kind for problem in disk.image.check()} == {ProblemKind.UNCLEAN}
    with open_image(image, writable=True) as disk:
        disk.write(50 * MIB, b"y")
        assert disk.read(0, MIB) == b"x" * MIB
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
    after = image.read_bytes()
    assert len(after) < len(killed)
    assert after[table * 512 : table * 512 + 2048] == (
        after[table_place(image) : table_place(image) + 2048]
    )
    qemu.check(image, "vmdk")


def test_what_check_finds_is_repaired(tmp_path: Path) -> None:
    image = tmp_path / "d.vmdk"
    make(image, 100 * MIB)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x" * MIB)
        killed = image.read_bytes()
    text = killed[512 : 512 * 21]
    image.write_bytes(killed[:512] + text.replace(b"RW 204800", b"RW 204801") + killed[512 * 21 :])
    with open_image(image, writable=True) as disk:
        assert len(list(disk.image.check())) == 3
        assert len(list(disk.repair())) == 3
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
        assert disk.read(0, MIB) == b"x" * MIB
    qemu.check(image, "vmdk")


def test_two_tebibytes_open_at_once_and_in_little_memory(tmp_path: Path) -> None:
    image = tmp_path / "d.vmdk"
    make(image, 2 << 40)
    with open_image(image, writable=True) as disk:
        disk.write((2 << 40) - 3, b"end")
        assert disk.read((2 << 40) - 4, 4) == b"\0end"
    assert image.stat().st_blocks * 512 < 2 * MIB
    read = f"read -P {ord('e')} {(2 << 40) - 3} 1"
    assert "Pattern" not in qemu.qemu("qemu-io", "-r", "-f", "vmdk", "-c", read, image)
    assert "2 TiB" in refused("create", tmp_path / "e.vmdk", "--size", "2049G")
    make(tmp_path / "e.vmdk", 2049 << 30, subformat="monolithicFlat")
    assert qemu.info(tmp_path / "e.vmdk", "vmdk")["virtual-size"] == 2049 << 30


def test_an_image_whose_name_a_descriptor_cannot_hold_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot name"):
        make(tmp_path / 'a"b.vmdk', MIB, subformat="monolithicFlat")
    assert not list(tmp_path.iterdir())
