"""VHD: what other programs make is read and written here, and the reverse; sizes and geometry.

QEMU reads and writes fixed and dynamic images; differencing ones it takes for dynamic, so there
libvhdi is the witness, which reads all three.
"""

from __future__ import annotations

import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from libvhdi import expect_libvhdi, expect_writes_on_top, libvhdi_info
from test_vdi import scattered

import qemu
from cli import done, refused, vdisk
from vdisk.cli.create import create_disk
from vdisk.disk_geometry import resize_disk
from vdisk.errors import Corrupt, InvalidFormat, NotFound, Unsupported
from vdisk.extent import Kind
from vdisk.open import open_image
from vdisk.options import OpenOptions

MIB = 1 << 20
SIZE = 20 * MIB
SUBFORMATS = ["dynamic", "fixed"]


def create(path: Path, size: int | None = None, parent: Path | None = None, **options: str) -> None:
    """As `vdisk create` does it, in this process."""
    create_disk(path, size, OpenOptions(), options, None if parent is None else str(parent))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_that_qemu_scattered_reads_the_same_and_maps_the_same(
    tmp_path: Path, subformat: str
) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", SIZE, subformat=subformat, force_size="on")
    content = bytearray(SIZE)
    qemu.scatter(image, "vhd", content, Random(subformat), 40)
    with open_image(image, writable=False) as disk:
        assert disk.read(0, SIZE) == content
        runs = [e for e in disk.image.map(0, SIZE) if e.kind is Kind.DATA]
        joined = [(e.guest_offset, e.guest_end, e.host_offset) for e in runs]
        if subformat == "dynamic":  # Of a fixed one, QEMU's map knows the file's holes.
            assert joined == qemu.data_runs(image, "vhd")


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_that_qemu_made_is_written_in_place(tmp_path: Path, subformat: str) -> None:
    """Of 20 MiB made larger by its geometry, and its creator says so."""
    image = qemu.create(tmp_path / "d.vhd", "vhd", SIZE, subformat=subformat)
    size = qemu.info(image, "vhd")["virtual-size"]
    assert size > SIZE
    content = bytearray(size)
    random = Random(subformat)
    for _ in range(2):
        qemu.scatter(image, "vhd", content, random, 5)
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 8)
            assert list(disk.image.check()) == []
        qemu.expect(image, "vhd", content)
    expect_libvhdi([image], bytes(content))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_made_written_and_resized_here_is_one_to_others(
    tmp_path: Path, subformat: str
) -> None:
    image = tmp_path / "d.vhd"
    create(image, SIZE, subformat=subformat)
    content = bytearray(SIZE)
    random = Random(subformat)
    sizes = (SIZE, 33 * MIB + 512, 4 * MIB, 700 * MIB, 7 * MIB)
    for size in sizes if subformat == "dynamic" else (SIZE, 33 * MIB + 512, 7 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 30 * MIB]
            scattered(disk, part, random, 12)
            content[: len(part)] = part
            assert list(disk.image.check()) == []
        assert qemu.info(image, "vhd")["virtual-size"] == size
    qemu.expect(image, "vhd", content)
    expect_libvhdi([image], bytes(content))


def test_qemu_goes_on_where_vdisk_stopped_and_the_reverse(tmp_path: Path) -> None:
    """Each gives the next block a place; neither takes one that the other gave away."""
    image = tmp_path / "d.vhd"
    create(image, 60 * MIB)
    content = bytearray(60 * MIB)
    random = Random(5)
    for _ in range(3):
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 4)
        qemu.scatter(image, "vhd", content, random, 4)
    qemu.expect(image, "vhd", content)
    with open_image(image, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []


def test_a_block_table_without_room_moves_to_the_end_and_loses_nothing(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", 100 * MIB, force_size="on")
    content = bytearray(100 * MIB)
    qemu.scatter(image, "vhd", content, Random(3), 20)
    with open_image(image, writable=True) as disk:
        resize_disk(disk, 3000 * MIB)
        disk.write(2999 * MIB, b"end")
        disk.write(50 * MIB + 7, b"middle")
        content[50 * MIB + 7 : 50 * MIB + 13] = b"middle"
    assert qemu.info(image, "vhd")["virtual-size"] == 3000 * MIB
    assert "end" in qemu.qemu("qemu-io", "-f", "vpc", "-c", "read -v 2999M 512", image)
    with open_image(image, writable=True) as disk:
        resize_disk(disk, 100 * MIB)
        assert list(disk.image.check()) == []
    qemu.expect(image, "vhd", content)


def test_a_fixed_image_has_all_its_space_and_a_dynamic_one_none(tmp_path: Path) -> None:
    for subformat, least, most in (("fixed", 20, 21), ("dynamic", 0, 1)):
        image = tmp_path / f"{subformat}.vhd"
        create(image, SIZE, subformat=subformat)
        assert least <= image.stat().st_blocks * 512 / MIB <= most
        assert f"subformat: {subformat}" in " ".join(done("info", image).split())


# The two sizes


def footer(image: Path) -> tuple[int, tuple[int, int, int], bytes]:
    """(current size, C/H/S, creator) by the specification's offsets; its checksum is right."""
    raw = image.read_bytes()[-512:]
    assert raw[:8] == b"conectix"
    assert struct.unpack_from(">I", raw, 64)[0] == ~(sum(raw) - sum(raw[64:68])) & 0xFFFFFFFF
    cylinders, heads, sectors = struct.unpack_from(">HBB", raw, 56)
    return struct.unpack_from(">Q", raw, 48)[0], (cylinders, heads, sectors), raw[28:32]


@pytest.mark.parametrize("size", [512, 1474560, MIB, 100 * MIB, 504 << 20, 1 << 30, 20 << 30])
def test_a_new_disk_is_as_large_by_its_geometry_as_by_its_size(tmp_path: Path, size: int) -> None:
    """Then it does not matter which of the two a program goes by."""
    image = tmp_path / "d.vhd"
    create(image, size)
    current, (cylinders, heads, sectors), _ = footer(image)
    assert current == size == cylinders * heads * sectors * 512
    assert qemu.info(image, "vhd")["virtual-size"] == size


@pytest.mark.parametrize(
    "words", [("--size", "127G"), ("--size", "21M", "--chs", "615/4/17"), ("--size", "2040G"),
              ("--size", "4G", "--profile", "ata")],
)  # fmt: skip
def test_a_size_that_no_geometry_has_is_believed_all_the_same(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """The creator is then one for which QEMU, old and new, takes the current size."""
    image = tmp_path / "d.vhd"
    done("create", image, *words)
    current, (cylinders, heads, sectors), creator = footer(image)
    assert creator == b"qem2" or (cylinders, heads, sectors) == (65535, 16, 255)
    assert cylinders * heads * sectors * 512 < current
    assert qemu.info(image, "vhd")["virtual-size"] == current
    if "--chs" in words:
        assert (cylinders, heads, sectors) == (615, 4, 17)
        assert "615/4/17 (source: header)" in done("info", image)


def test_a_disk_can_be_rounded_up_to_its_geometry_as_qemu_does(tmp_path: Path) -> None:
    for size in (MIB, 100 * MIB, 127 << 30):
        ours, theirs = tmp_path / f"{size}.vhd", tmp_path / f"{size}.qemu.vhd"
        made = vdisk("create", ours, "--size", str(size), "-o", "size=geometry")
        qemu.create(theirs, "vhd", size)
        assert made.returncode == 0
        assert footer(ours)[:2] == footer(theirs)[:2]
        assert "/".join(map(str, footer(ours)[1])) in made.stdout.decode()
        rounded = f"rounded up to whole cylinders: {footer(theirs)[0]} bytes"
        assert (rounded in made.stderr.decode()) == (footer(theirs)[0] != size)


def with_footer(image: Path, **fields: tuple[str, object]) -> None:
    """Change fields, by their offsets ("at48"), in both copies, and correct the checksums."""
    content = bytearray(image.read_bytes())
    copies = [0, len(content) - 512] if content[:8] == b"conectix" else [len(content) - 512]
    for at in copies:
        for name, (code, value) in fields.items():
            struct.pack_into(code, content, at + int(name[2:]), value)
        total = sum(content[at : at + 512]) - sum(content[at + 64 : at + 68])
        struct.pack_into(">I", content, at + 64, ~total & 0xFFFFFFFF)
    image.write_bytes(content)


# Of QEMU from 10.0 on (facts: "CHS or current size?"); `old` is what the installed one makes of it.
@pytest.mark.parametrize(
    ("creator", "by_chs"),
    [(b"vpc ", True), (b"qemu", True), (b"win ", False), (b"qem2", False), (b"tap\0", False),
     (b"vbox", False), (b"d2v\0", False)],
)  # fmt: skip
def test_the_creator_decides_which_size_counts_and_the_user_can_decide_otherwise(
    tmp_path: Path, creator: bytes, by_chs: bool
) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", 10 * MIB)
    by_geometry = footer(image)[0]
    current = by_geometry - 1024
    with_footer(image, at28=("4s", creator), at48=(">Q", current))
    sizes = {True: by_geometry, False: current}
    with open_image(image, writable=False) as disk:
        assert disk.size == sizes[by_chs]
        found = disk.image.info()
        assert (found["chs_size"], found["current_size"]) == (by_geometry, current)
        assert "creator" in found["size_by"]
    for name, size in (("vhd-chs", by_geometry), ("vhd-current", current)):
        with open_image(image, writable=False, options=OpenOptions(format=name)) as disk:
            assert disk.size == size
            assert "asked" in disk.image.info()["size_by"]
    if creator in (b"vpc ", b"qemu", b"win ", b"qem2", b"tap\0"):
        assert qemu.info(image, "vhd")["virtual-size"] == sizes[by_chs]


def test_a_size_that_was_decided_is_remembered_with_the_file(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", 10 * MIB)
    with_footer(image, at48=(">Q", 9 * MIB))
    open_image(image, writable=True, options=OpenOptions(format="vhd-current")).close()
    with open_image(image, writable=False) as disk:
        assert disk.size == 9 * MIB


def test_after_a_resize_both_sizes_are_the_new_one(tmp_path: Path) -> None:
    """Of an image by QEMU, which goes by the geometry for its own: it must not cut the disk."""
    image = qemu.create(tmp_path / "d.vhd", "vhd", 10 * MIB)
    for size in (30 * MIB + 512, 8 * MIB, 40 << 30):
        done("resize", "--force", image, str(size))
        assert footer(image)[0] == size
        assert qemu.info(image, "vhd")["virtual-size"] == size


# Footers


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_footer_of_511_bytes_is_one(tmp_path: Path, subformat: str) -> None:
    """As Virtual PC wrote it before 2004; the last byte is reserved, and zero."""
    image = tmp_path / "d.vhd"
    create(image, SIZE, subformat=subformat)
    content = bytearray(SIZE)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(1), 5)
    image.write_bytes(image.read_bytes()[:-1])
    if subformat == "dynamic":  # And no other copy to be found.
        raw = bytearray(image.read_bytes())
        raw[:8] = bytes(8)
        image.write_bytes(raw)
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(2), 5)
        resize_disk(disk, SIZE + MIB)
    content.extend(bytes(MIB))
    qemu.expect(image, "vhd", content)


@pytest.mark.parametrize("damaged", ["head", "tail", "no tail"])
def test_a_damaged_copy_of_the_footer_is_passed_over_and_set_right(
    tmp_path: Path, damaged: str
) -> None:
    image = tmp_path / "d.vhd"
    create(image, SIZE)
    content = bytearray(SIZE)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(1), 5)
    raw = bytearray(image.read_bytes())
    if damaged == "no tail":
        del raw[-512:]
    else:
        raw[50 if damaged == "head" else -462] ^= 1
    image.write_bytes(raw)
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert len(list(disk.image.check())) == 1
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(2), 3)
    raw = bytearray(image.read_bytes())
    assert raw[:512] == raw[-512:]
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
    qemu.expect(image, "vhd", content)


def test_a_guest_of_a_fixed_disk_cannot_make_it_another_kind(tmp_path: Path) -> None:
    """It can write a dynamic image's first bytes to its own; the footer at the end is not its."""
    other = qemu.create(tmp_path / "other.vhd", "vhd", 8 * MIB)
    image = tmp_path / "d.vhd"
    create(image, MIB, subformat="fixed")
    with open_image(image, writable=True) as disk:
        disk.write(0, other.read_bytes()[:4096])
    with open_image(image, writable=False) as disk:
        assert disk.image.info()["subformat"] == "fixed"
        assert disk.read(0, 8) == b"conectix"
        assert disk.size == MIB


def test_at_any_moment_there_is_a_footer_at_the_end_of_the_file(tmp_path: Path) -> None:
    image = tmp_path / "d.vhd"
    create(image, 100 * MIB)
    with open_image(image, writable=True) as disk:
        for at in range(0, 100, 9):
            disk.write(at * MIB, b"x")
            assert footer(image)[0] == 100 * MIB
        before = image.stat().st_size
    assert footer(image)[0] == 100 * MIB
    assert image.stat().st_size < before, "what was set aside was not given back"


# Bitmaps


def test_a_block_that_is_filled_in_part_reads_as_zeros_there_and_is_made_full(
    tmp_path: Path,
) -> None:
    """As Virtual PC leaves it: what lies in sectors without a bit is not data (libvhdi agrees)."""
    image = qemu.create(tmp_path / "d.vhd", "vhd", 4 * MIB, force_size="on")
    qemu.qemu("qemu-io", "-f", "vpc", "-c", "write -P 7 0 2M", image)
    raw = bytearray(image.read_bytes())
    (entry,) = struct.unpack_from(">I", raw, 1536)
    bitmap = bytearray(b"\xff\0" * 256)
    raw[entry * 512 : entry * 512 + 512] = bitmap
    image.write_bytes(raw)
    content = bytearray((b"\7" * 4096 + bytes(4096)) * 256 + bytes(2 * MIB))
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
    expect_libvhdi([image], bytes(content))
    with open_image(image, writable=True) as disk:
        disk.write(4096 * 3 + 100, b"here")
        content[4096 * 3 + 100 : 4096 * 3 + 104] = b"here"
        assert disk.read(0, disk.size) == content
    qemu.expect(image, "vhd", content)  # Which looks at no bitmap.
    expect_libvhdi([image], bytes(content))


# Overlays


def chain(folder: Path, layers: int) -> list[Path]:
    paths = [folder / f"{number}.vhd" for number in range(layers)]
    create(paths[0], 8 * MIB)
    for base, overlay in pairwise(paths):
        with open_image(base, writable=True) as disk:
            disk.write(MIB * int(base.stem), base.stem.encode() * 1000)
        create(overlay, parent=base)
    return paths


def test_an_overlay_is_read_alike_by_libvhdi_and_leaves_its_parents_alone(tmp_path: Path) -> None:
    paths = chain(tmp_path, 3)
    expect_writes_on_top(paths)


def test_an_overlay_names_its_parent_in_each_way_there_is(tmp_path: Path) -> None:
    _, overlay = chain(tmp_path, 2)
    (tmp_path / "sub").mkdir()
    done("create", tmp_path / "sub" / "deep.vhd", "--parent", overlay)
    assert libvhdi_info(overlay)["parent_filename"] == "0.vhd"
    assert libvhdi_info(overlay)["parent_identifier"] == libvhdi_info(tmp_path / "0.vhd")["id"]
    raw = overlay.read_bytes()
    names = {}
    for at in range(512 + 576, 512 + 576 + 8 * 24, 24):
        code, space, length, _, offset = struct.unpack_from(">4sIIIQ", raw, at)
        if code != bytes(4):
            assert space % 512 == 0
            names[code] = raw[offset : offset + length].decode("utf-16-le")
    assert names[b"W2ru"] == ".\\0.vhd"
    assert names[b"W2ku"] == str(tmp_path / "0.vhd").replace("/", "\\")
    deep = (tmp_path / "sub" / "deep.vhd").read_bytes()
    assert "..\\1.vhd".encode("utf-16-le") in deep


def renamed_locator(overlay: Path, code: bytes, text: bytes) -> None:
    """Make the first locator another one, and take the second away."""
    raw = bytearray(overlay.read_bytes())
    *_, offset = struct.unpack_from(">4sIIIQ", raw, 512 + 576)
    struct.pack_into(">4sIIIQ", raw, 512 + 576, code, 512, len(text), 0, offset)
    raw[512 + 600 : 512 + 624] = bytes(24)
    raw[offset : offset + 512] = text.ljust(512, b"\0")
    total = sum(raw[512:1536]) - sum(raw[548:552])
    struct.pack_into(">I", raw, 548, ~total & 0xFFFFFFFF)
    overlay.write_bytes(raw)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (b"W2ru", ".\\x y.vhd".encode("utf-16-le")),
        (b"W2ru", "x y.vhd".encode("utf-16-le")),
        (b"W2ku", "C:\\Users\\me\\x y.vhd".encode("utf-16-le")),
        (b"MacX", b"file://./x%20y.vhd"),
        (b"MacX", b"file://localhost/Users/me/x%20y.vhd"),
        (b"Mac ", b"an alias"),
        (b"W2ru", "nowhere.vhd".encode("utf-16-le")),
    ],
)
def test_a_parent_is_found_by_whatever_name_the_child_has_or_by_its_identity(
    tmp_path: Path, code: bytes, text: bytes
) -> None:
    base, overlay = chain(tmp_path, 2)
    base.rename(tmp_path / "x y.vhd")
    renamed_locator(overlay, code, text)
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, 3) == b"000"
        assert disk.image.parent is not None
        assert disk.image.parent.address == str(tmp_path / "x y.vhd")


def test_a_file_of_the_parents_name_that_is_another_image_is_not_taken(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    base.unlink()
    create(base, 8 * MIB)
    with pytest.raises(Corrupt, match="another image"):
        open_image(overlay, writable=False)
    base.unlink()
    with pytest.raises(NotFound):
        open_image(overlay, writable=False)


def test_an_overlay_of_another_size_than_its_parent_shows_nothing_of_what_was_cut(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base.vhd"
    create(base, 5 * MIB + 512)
    with open_image(base, writable=True) as disk:
        disk.write(0, b"b" * disk.size)
    overlay = tmp_path / "overlay.vhd"
    create(overlay, 8 * MIB, base)
    content = bytearray(b"b" * (5 * MIB + 512) + bytes(3 * MIB - 512))
    with open_image(overlay, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        disk.write(5 * MIB + 1000, b"x")
        content[5 * MIB + 1000] = ord("x")
        assert disk.read(0, disk.size) == content
        for size in (MIB + 1024, 9 * MIB, 3 * MIB, 8 * MIB):
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            assert disk.read(0, disk.size) == content
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []


def test_that_a_parent_may_have_changed_is_told(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    assert "parent changed: no" in " ".join(done("info", overlay).split())
    subprocess.run(["touch", "-d", "2001-01-01", base], check=True)
    assert "parent changed: its time" in " ".join(done("info", overlay).split())


def test_an_overlay_needs_a_vhd_beneath_it_and_is_not_fixed(tmp_path: Path) -> None:
    done("create", tmp_path / "raw.img", "--size", "1M")
    refused("create", tmp_path / "o.vhd", "--parent", tmp_path / "raw.img")
    base = chain(tmp_path, 1)[0]
    refused("create", tmp_path / "o.vhd", "--parent", base, "-o", "subformat=fixed")
    assert not (tmp_path / "o.vhd").exists()


# Broken images


@pytest.mark.parametrize(
    ("at", "code", "value", "error"),
    [
        (0, ">Q", 0, InvalidFormat),
        (12, ">I", 0x00020000, Unsupported),
        (16, ">Q", 511, Corrupt),
        (16, ">Q", 1 << 62, Corrupt),
        (48, ">Q", 0, Corrupt),
        (48, ">Q", 1 << 60, Corrupt),
        (60, ">I", 5, Unsupported),
        (512, ">Q", 0, Corrupt),
        (528, ">Q", 100, Corrupt),
        (528, ">Q", 1 << 63, Corrupt),
        (536, ">I", 0x00030000, Unsupported),
        (540, ">I", 0, Corrupt),
        (540, ">I", 0xFFFFFFFF, Corrupt),
        (544, ">I", 0, Corrupt),
        (544, ">I", 3 * MIB, Corrupt),
        (544, ">I", 1 << 31, Corrupt),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, code: str, value: int, error: type[Exception]
) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", SIZE, force_size="on")
    raw = bytearray(image.read_bytes())
    struct.pack_into(code, raw, at, value)
    if at == 48:
        raw[56:60] = bytes(4)  # Nor is there a size by geometry.
    for start, length, place in ((0, 512, 64), (512, 1024, 548)):
        total = sum(raw[start : start + length]) - sum(raw[place : place + 4])
        struct.pack_into(">I", raw, place, ~total & 0xFFFFFFFF)
    raw[-512:] = raw[:512]
    image.write_bytes(raw)
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="vhd"))


def test_a_wrong_checksum_is_refused_and_says_what_it_is_of(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vhd", "vhd", SIZE)
    raw = image.read_bytes()
    image.write_bytes(raw[:600] + b"\1" + raw[601:])
    with pytest.raises(Corrupt, match="checksum of its dynamic disk header"):
        open_image(image, writable=False)
    image.write_bytes(raw[:90] + b"\1" + raw[91:-400] + b"\1" + raw[-399:])
    with pytest.raises(Corrupt, match="checksum of its footer"):
        open_image(image, writable=False)


@pytest.mark.parametrize("entry", [0, 1, 3, None, 5000000])
def test_a_block_in_an_impossible_place_is_found_and_not_written_to(
    tmp_path: Path, entry: int | None
) -> None:
    """Over the header, over the block table, over another block, past the end of the file."""
    image = qemu.create(tmp_path / "d.vhd", "vhd", SIZE, force_size="on")
    qemu.qemu("qemu-io", "-f", "vpc", "-c", "write -P 7 0 2M", "-c", "write -P 8 4M 2M", image)
    raw = bytearray(image.read_bytes())
    (other,) = struct.unpack_from(">I", raw, 1536)
    struct.pack_into(">I", raw, 1536 + 4, other + 1 if entry is None else entry)
    image.write_bytes(raw)
    with open_image(image, writable=True) as disk:
        assert [problem.kind for problem in disk.image.check()] == ["corruption"]
        assert disk.read(4 * MIB, 2 * MIB) == b"\x08" * (2 * MIB)
        with pytest.raises(Corrupt, match="vdisk check"):
            disk.write(4 * MIB, b"x")


def test_two_tebibytes_open_at_once_and_in_little_memory(tmp_path: Path) -> None:
    image = tmp_path / "d.vhd"
    create(image, 2040 << 30)
    with open_image(image, writable=True) as disk:
        disk.write((2040 << 30) - 3, b"end")
        assert disk.read((2040 << 30) - 4, 4) == b"\0end"
    assert qemu.info(image, "vhd")["virtual-size"] == 2040 << 30
    refused("create", tmp_path / "e.vhd", "--size", "2041G")


def test_an_image_by_hyper_v_is_what_other_programs_say_it_is(tmp_path: Path) -> None:
    """Its headers, as Hyper-V of Windows Server 2012 R2 made them for an empty disk of 127 GiB."""
    image = tmp_path / "hyperv.vhd"
    entries = 65024
    head = footer_of_hyper_v()
    header = bytearray(1024)
    struct.pack_into(">8sQQIII", header, 0, b"cxsparse", 2**64 - 1, 1536, 0x10000, entries, 2 << 20)
    struct.pack_into(">I", header, 36, ~sum(header) & 0xFFFFFFFF)
    assert struct.unpack_from(">I", header, 36)[0] == 0xFFFFF379  # As the original has it.
    image.write_bytes(head + header + b"\xff" * (4 * entries) + bytes(2560) + head)
    assert image.stat().st_size == 264704 + 0
    with open_image(image, writable=True) as disk:
        assert str(disk.geometry) == "65278/16/255"
        assert disk.size == qemu.info(image, "vhd")["virtual-size"] == 127 << 30
        assert libvhdi_info(image)["size"] == disk.size
        disk.write(100 << 30, b"x" * MIB)
    assert "78 78" in qemu.qemu("qemu-io", "-f", "vpc", "-c", "read -v 100G 512", image)


def footer_of_hyper_v() -> bytes:
    """The footer of that image, with its own checksum."""
    raw = bytes.fromhex(
        "636f6e6563746978000000020001000000000000000002001e598ef777696e20"
        "000600035769326b0000001fc00000000000001fc0000000fefe10ff00000003"
        "ffffe9db6d2d5fc8eebade4c8ceede3a12db7c98"
    )
    return raw.ljust(512, b"\0")
