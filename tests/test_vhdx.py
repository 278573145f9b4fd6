"""VHDX: what other programs make is read and written here, and the reverse; the log; overlays.

QEMU reads and writes images without a parent, in sectors of 512 bytes; libvhdi reads all of them.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest
from libvhdi import expect_libvhdi, expect_writes_on_top, libvhdi_info
from test_format_crash import crash_anywhere, cut_resize_short, refuse_anywhere
from vhdx_bytes import BAT_GUID, HEADERS, METADATA_GUID, TABLES, VhdxFile, log_entry, sealed

import qemu
from cli import done, refused
from format_cases import FormatCase, scattered
from model import host_folder
from recording import RecordingHost
from vdisk.cli.create import create_disk
from vdisk.disk import Disk
from vdisk.disk_geometry import resize_disk
from vdisk.errors import Corrupt, DiskError, InvalidFormat, NotFound, Unsupported
from vdisk.extent import Kind
from vdisk.image_disk import ImageDisk
from vdisk.open import open_host, open_image
from vdisk.options import OpenOptions

MIB = 1 << 20
SIZE = 20 * MIB
SUBFORMATS = ["dynamic", "fixed"]


def create(
    path: Path, size: int | None = None, parent: Path | None = None, *,
    sector_size: int | None = None, block_size: str = "1M", **options: str,
) -> Path:
    """As `vdisk create` does it, in this process."""
    create_disk(
        path, size, OpenOptions(sector_size=sector_size), {"block-size": block_size, **options},
        None if parent is None else str(parent),
    )
    return path


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_that_qemu_scattered_reads_the_same(
    tmp_path: Path, subformat: str
) -> None:
    image = qemu.create(
        tmp_path / "d.vhdx", "vhdx", SIZE, subformat=subformat, block_size="1M"
    )
    content = bytearray(SIZE)
    qemu.scatter(image, "vhdx", content, Random(subformat), 40)
    with open_image(image, writable=False) as disk:
        assert disk.read(0, SIZE) == content


def data_blocks(disk: Disk) -> list[int]:
    """Where the blocks of a MiB are, in the disk, that have a place in the file."""
    assert isinstance(disk, ImageDisk)
    runs = disk.image.map(0, disk.size)
    return [each.guest_offset for each in runs if each.kind is Kind.DATA]


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_that_qemu_made_is_written_in_place(tmp_path: Path, subformat: str) -> None:
    image = qemu.create(
        tmp_path / "d.vhdx", "vhdx", SIZE, subformat=subformat, block_size="1M"
    )
    content = bytearray(SIZE)
    random = Random(subformat)
    for _ in range(2):
        qemu.scatter(image, "vhdx", content, random, 5)
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 8)
            assert list(disk.image.check()) == []
        qemu.check(image, "vhdx")
        qemu.expect(image, "vhdx", content)
    expect_libvhdi([image], bytes(content))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_made_written_and_resized_here_is_one_to_others(
    tmp_path: Path, subformat: str
) -> None:
    image = create(tmp_path / "d.vhdx", SIZE, subformat=subformat)
    content = bytearray(SIZE)
    random = Random(subformat)
    for size in (SIZE, 33 * MIB + 512, 4 * MIB, 300 * MIB, 7 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 30 * MIB]
            scattered(disk, part, random, 12)
            content[: len(part)] = part
            assert list(disk.image.check()) == []
        qemu.check(image, "vhdx")
        assert qemu.info(image, "vhdx")["virtual-size"] == size
    qemu.expect(image, "vhdx", content)


def test_a_block_table_without_room_moves_to_the_end_and_loses_nothing(tmp_path: Path) -> None:
    """A MiB of it is for 128 GiB in blocks of one MiB, less the entries of sector bitmaps."""
    image = create(tmp_path / "d.vhdx", 100 << 30)
    with open_image(image, writable=True) as disk:
        for at in (0, 99 << 30):
            disk.write(at, b"before")
        resize_disk(disk, 300 << 30)
        disk.write(299 << 30, b"after")
        assert list(disk.image.check()) == []
    qemu.check(image, "vhdx")
    for at, said in (("0", "before"), ("99G", "before"), ("299G", "after")):
        assert said in qemu.qemu("qemu-io", "-f", "vhdx", "-c", f"read -v {at} 512", image)
    with open_image(image, writable=True) as disk:
        resize_disk(disk, 1 << 30)
        assert disk.read(0, 7) == b"before\0"
    qemu.check(image, "vhdx")


def test_sectors_of_4096_bytes_are_those_of_the_disk(tmp_path: Path) -> None:
    image = create(tmp_path / "d.vhdx", 8 * MIB, sector_size=4096)
    assert libvhdi_info(image)["sector_size"] == 4096
    content = bytearray(8 * MIB)
    with open_image(image, writable=True) as disk:
        assert disk.sector_size == 4096
        scattered(disk, content, Random(1), 8)
        with pytest.raises(DiskError):
            disk.resize(8 * MIB + 512)
        resize_disk(disk, 9 * MIB + 4096)
        content.extend(bytes(MIB + 4096))
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
    expect_libvhdi([image], bytes(content))
    refused("create", tmp_path / "e.vhdx", "--size", "1M", "--sector-size", "2048")


def test_two_tebibytes_open_at_once_and_in_little_memory(tmp_path: Path) -> None:
    image = create(tmp_path / "d.vhdx", 2 << 40, block_size="auto")
    with open_image(image, writable=True) as disk:
        disk.write((2 << 40) - 3, b"end")
        assert disk.read((2 << 40) - 4, 4) == b"\0end"
    qemu.check(image, "vhdx")
    assert qemu.info(image, "vhdx")["virtual-size"] == 2 << 40


# The log


def test_the_log_goes_round_and_qemu_replays_what_a_loss_of_power_left_of_it(
    tmp_path: Path,
) -> None:
    """Each block takes two sectors of its 256."""
    with host_folder("memory") as folder:
        image = create(folder / "d.vhdx", 150 * MIB)
        host = RecordingHost.recording(image)
        with open_host(host) as disk:
            for at in range(135):
                disk.write(at * MIB + at * 512, b"%d " % at)
            count = len(host.log.events)
        random = Random(1)
        for state in list(host.log.crash_states(count, random, 1)):
            image.write_bytes(state)
            with open_image(image, writable=False) as disk:
                ours = data_blocks(disk)
                content = disk.read(0, disk.size)
                assert disk.image.info()["log"] == "to be replayed"
            qemu.qemu("qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", image)
            qemu.expect(image, "vhdx", content)
            image.write_bytes(state)
            with open_image(image, writable=True) as disk:
                disk.write(149 * MIB, b"x")
                assert data_blocks(disk)[:-1] == ours
            qemu.check(image, "vhdx")


@pytest.mark.parametrize("layers", [1, 2])
def test_after_a_crash_what_was_flushed_is_there_and_nothing_is_damaged(layers: int) -> None:
    """As for the formats with smaller blocks, in fewer steps."""
    case = FormatCase("vhdx", MIB, {"block-size": "1M"}, layers=layers)
    crash_anywhere(case, layers, blocks=3, changes=5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_after_a_crash_or_an_error_in_more_steps(layers: int) -> None:
    case = FormatCase("vhdx", MIB, {"block-size": "1M"}, layers=layers)
    for seed in range(4):
        crash_anywhere(case, seed, blocks=3)
    refuse_anywhere(case, blocks=3)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_resize_that_is_cut_short_leaves_the_old_disk_or_the_new_one(layers: int) -> None:
    case = FormatCase("vhdx", MIB, {"block-size": "1M"}, layers=layers)
    cut_resize_short(case, 7, 1, blocks=3)


def dirty(image: Path, guid: bytes, entries: bytes) -> VhdxFile:
    """The image with these entries at the beginning of its log, which counts."""
    file = VhdxFile(image)
    file.raw[MIB : MIB + len(entries)] = entries
    file.set_header(48, "16s", guid)
    file.save()
    return file


def test_a_log_that_qemu_wrote_is_replayed(tmp_path: Path) -> None:
    """Its last entry, made to count again; what it changed in the block table, undone."""
    image = qemu.create(tmp_path / "d.vhdx", "vhdx", SIZE, block_size="1M")
    content = bytearray(SIZE)
    qemu.scatter(image, "vhdx", content, Random(1), 6)
    file = VhdxFile(image)
    heads = [at for at in range(MIB, 2 * MIB, 4096) if file.raw[at : at + 4] == b"loge"]
    guid = file.raw[heads[-1] + 32 : heads[-1] + 48]
    file.set_header(48, "16s", guid)
    bat = file.region(BAT_GUID)
    file.raw[bat : bat + 4096] = bytes(4096)
    file.save()
    for _ in range(2):
        with open_image(image, writable=False) as disk:
            assert disk.read(0, SIZE) == content
            assert ["log" in problem.message for problem in disk.image.check()] == [True]
    assert image.read_bytes() == file.raw, "looking has changed it"
    with open_image(image, writable=True) as disk:
        disk.write(5, b"five")
        content[5:9] = b"five"
        assert disk.read(0, SIZE) == content
    qemu.check(image, "vhdx")
    qemu.expect(image, "vhdx", content)


def sector(*entries: int) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(4096, b"\0")


@pytest.mark.parametrize(
    "count", [1, 126, 190, *(pytest.param(count, marks=pytest.mark.slow) for count in (125, 127))]
)
def test_entries_of_any_number_of_changes_are_replayed(
    tmp_path: Path, count: int
) -> None:
    """126 descriptors fill the first sector of an entry; then one of zeros, and a second entry.

    QEMU refuses an entry of more than that, though it says itself that there may be.
    """
    image = create(tmp_path / "d.vhdx", 100 << 30)
    bat = VhdxFile(image).region(BAT_GUID)
    place = 4 * MIB
    os.truncate(image, place + (count + 1) * MIB)  # QEMU 7.2 does not let it grow as it should.
    guid = uuid4().bytes_le
    head = (0,) * 300  # Where no entry is one of a sector bitmap.
    changes: list[tuple[int, bytes | int]] = [
        (bat + 4096 * number, sector(*head, place + number * MIB | 6)) for number in range(count)
    ]
    last = place + count * MIB
    size = image.stat().st_size
    first = log_entry(guid, 7, changes, flushed=size, last=last)
    second = log_entry(
        guid, 8, [(bat, 4096), (bat + 4096 * 199, sector(*head, last | 6))],
        tail=0, flushed=size, last=last + MIB,
    )
    dirty(image, guid, first + second)
    with open_image(image, writable=False) as disk:
        ours = data_blocks(disk)
    assert len(ours) == count
    before = image.read_bytes()
    expected = bytearray(before[bat : bat + MIB])
    for at, what in [*changes, (bat, bytes(4096)), (bat + 4096 * 199, sector(*head, last | 6))]:
        assert isinstance(what, bytes)
        expected[at - bat : at - bat + 4096] = what
    with open_image(image, writable=True) as disk:
        disk.write(ours[-1], b"x")
    assert image.read_bytes()[bat : bat + MIB] == expected
    if count <= 126:
        image.write_bytes(before)
        qemu.qemu("qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", image)
        assert image.read_bytes()[bat : bat + MIB] == expected


@pytest.mark.parametrize(
    "broken", ["checksum", "guid", "sequence", "data sector", "descriptor", "length"]
)
def test_an_entry_that_is_not_whole_ends_the_log_before_it(tmp_path: Path, broken: str) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    os.truncate(image, 6 * MIB)
    bat = VhdxFile(image).region(BAT_GUID)
    guid, size = uuid4().bytes_le, image.stat().st_size
    kept = log_entry(guid, 3, [(bat, sector(4 * MIB | 6))], flushed=size, last=5 * MIB)
    torn = bytearray(
        log_entry(
            guid, 4, [(bat, sector(4 * MIB | 6, 5 * MIB | 6))], flushed=size, last=6 * MIB
        )
    )
    if broken == "checksum":
        torn[5000] ^= 1
    else:
        at, code, value = {
            "guid": (32, "<Q", 1), "sequence": (16, "<Q", 9), "data sector": (4096, "<I", 0),
            "descriptor": (64 + 24, "<Q", 77), "length": (8, "<I", 4096),
        }[broken]  # fmt: skip
        struct.pack_into(code, torn, at, value)
        torn = sealed(torn)
    dirty(image, guid, kept + torn)
    with open_image(image, writable=False) as disk:
        assert data_blocks(disk) == [0]
    if broken in ("checksum", "guid"):  # QEMU refuses the others, or takes them for whole.
        qemu.qemu("qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", image)
        assert VhdxFile(image).raw[bat : bat + 4096] == sector(4 * MIB | 6)


def test_a_file_that_was_cut_after_its_log_was_written_is_refused(tmp_path: Path) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    bat = VhdxFile(image).region(BAT_GUID)
    guid = uuid4().bytes_le
    entry = log_entry(guid, 3, [(bat, sector(4 * MIB | 6))], flushed=9 * MIB, last=9 * MIB)
    dirty(image, guid, entry)
    with pytest.raises(Corrupt, match="it has been cut"):
        open_image(image, writable=False)
    qemu.qemu("qemu-img", "check", "-r", "all", "-f", "vhdx", image, status=(1,))


def test_a_log_that_changes_the_guests_bytes_has_to_be_replayed_first(tmp_path: Path) -> None:
    """No writer logs them; until it is written to, an image shows none that are out of date."""
    image = create(tmp_path / "d.vhdx", SIZE)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"old" * 10000)
    guid, size = uuid4().bytes_le, image.stat().st_size
    entry = log_entry(guid, 3, [(4 * MIB + 4096, b"new." * 1024)], flushed=size, last=size)
    dirty(image, guid, entry)
    with pytest.raises(Unsupported, match="log"):
        open_image(image, writable=False)


@pytest.mark.parametrize("offset", [64 << 10, MIB + 4096, 4 * MIB])
def test_a_log_that_changes_headers_itself_or_what_is_past_the_end_is_refused(
    tmp_path: Path, offset: int
) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    guid, size = uuid4().bytes_le, image.stat().st_size
    dirty(image, guid, log_entry(guid, 3, [(offset, b"new." * 1024)], flushed=size, last=size))
    with pytest.raises(Corrupt, match="its log changes"):
        open_image(image, writable=False)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(MIB, 0), (MIB, 4096), (0, MIB), (MIB + 4096, MIB), (MIB, 1 << 31), (1 << 40, MIB),
     (2 * MIB, MIB)],
)  # fmt: skip
def test_an_image_with_no_place_for_its_log_is_read_and_not_written_to(
    tmp_path: Path, offset: int, length: int
) -> None:
    """Nowhere, not whole MiB, in the first MiB, past the end, in the metadata."""
    image = create(tmp_path / "d.vhdx", SIZE)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"kept")
    file = VhdxFile(image)
    file.set_header(68, "<I", length)
    file.set_header(72, "<Q", offset)
    file.save()
    with open_image(image, writable=True) as disk:
        assert disk.read(0, 4) == b"kept"
        assert [problem.kind for problem in disk.image.check()] == ["corruption"]
        with pytest.raises(Corrupt):
            disk.write(MIB, b"x")
    assert image.read_bytes() == file.raw


# Repairs


def repaired(image: Path) -> list[str]:
    """What was repaired, by its kind; then nothing is left."""
    with open_image(image, writable=True) as disk:
        found = [problem.kind.value for problem in disk.repair()]
        assert list(disk.image.check()) == []
    return found


def test_repairs_set_right_what_a_crash_left_and_are_no_change_of_the_data(tmp_path: Path) -> None:
    """So overlays still know their parent.  QEMU replays the same log to the same image."""
    base, overlay = chain(tmp_path, 2)
    bat = VhdxFile(base).region(BAT_GUID)
    guid, size = uuid4().bytes_le, base.stat().st_size
    entries = sector(4 * MIB | 6, 0, size | 6)
    file = dirty(
        base, guid, log_entry(guid, 3, [(bat, entries)], flushed=size, last=size + MIB)
    )
    file.raw[TABLES[0]] ^= 1
    file.save()
    assert repaired(base) == ["unclean"]
    assert base.stat().st_size == size + MIB
    assert VhdxFile(base).raw[bat : bat + 4096] == entries
    qemu.check(base, "vhdx")
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, 3) == b"000"


def test_space_that_no_block_uses_is_found_and_given_back(tmp_path: Path) -> None:
    """Which qemu-img check does not look for: between blocks, and behind the last one."""
    image = create(tmp_path / "d.vhdx", SIZE)
    content = bytearray(Random(3).randbytes(4 * MIB)).ljust(SIZE, b"\0")
    with open_image(image, writable=True) as disk:
        disk.write(0, content[: 4 * MIB])
    file = VhdxFile(image)
    struct.pack_into("<Q", file.raw, file.region(BAT_GUID) + 8, 0)
    content[MIB : 2 * MIB] = bytes(MIB)
    file.raw += bytes(3 * MIB)
    file.save()
    qemu.check(image, "vhdx")
    with open_image(image, writable=False) as disk:
        assert [problem.kind for problem in disk.image.check()] == ["leak", "leak"]
    assert repaired(image) == ["leak", "leak"]
    assert image.stat().st_size == 4 * MIB + 3 * MIB
    qemu.check(image, "vhdx")
    qemu.expect(image, "vhdx", content)


# Overlays


def chain(folder: Path, layers: int, sector_size: int | None = None) -> list[Path]:
    paths = [folder / f"{number}.vhdx" for number in range(layers)]
    create(paths[0], 8 * MIB, sector_size=sector_size)
    for base, overlay in pairwise(paths):
        with open_image(base, writable=True) as disk:
            disk.write(MIB * int(base.stem), base.stem.encode() * 1000)
        create(overlay, parent=base)
    return paths


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_an_overlay_is_read_alike_by_libvhdi_and_leaves_its_parents_alone(
    tmp_path: Path, sector_size: int
) -> None:
    paths = chain(tmp_path, 3, sector_size)
    expect_writes_on_top(paths)


def overlay_in_part(folder: Path) -> tuple[Path, Path, bytearray]:
    """Base, overlay, and what that reads as: it has a block of which some sectors are here.

    As Hyper-V leaves it: a bitmap says which sectors are the child's, the lowest bit first.
    """
    base, overlay = chain(folder, 2)
    with open_image(base, writable=True) as disk:
        disk.write(0, b"P" * (8 * MIB))
    overlay.unlink()
    create(overlay, parent=base)
    file = VhdxFile(overlay)
    bat = file.region(BAT_GUID)
    file.raw += bytes(2 * MIB)
    data, bitmap = len(file.raw) - 2 * MIB, len(file.raw) - MIB
    file.raw[data:bitmap] = b"C" * MIB
    bits = Random(1).randbytes(256)
    file.raw[bitmap + 3 * 256 : bitmap + 4 * 256] = bits
    struct.pack_into("<Q", file.raw, bat + 3 * 8, data | 7)
    struct.pack_into("<Q", file.raw, bat + 4096 * 8, bitmap | 6)
    file.save()
    content = bytearray(b"P" * (8 * MIB))
    for number in range(2048):
        if bits[number // 8] >> number % 8 & 1:
            at = 3 * MIB + number * 512
            content[at : at + 512] = b"C" * 512
    return base, overlay, content


def test_a_block_that_is_here_in_part_reads_as_libvhdi_does_and_is_filled_up(
    tmp_path: Path,
) -> None:
    base, overlay, content = overlay_in_part(tmp_path)
    expect_libvhdi([overlay, base], bytes(content))
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []
    with open_image(overlay, writable=True) as disk:
        for at in range(3 * MIB + 100, 4 * MIB, 99_999):
            disk.write(at, b"here")
            content[at : at + 4] = b"here"
        assert disk.read(0, disk.size) == content
    expect_libvhdi([overlay, base], bytes(content))
    with open_image(overlay, writable=True) as disk:
        resize_disk(disk, 3 * MIB + 1024)
        resize_disk(disk, 8 * MIB)
        content[3 * MIB + 1024 :] = bytes(5 * MIB - 1024)
        assert disk.read(0, disk.size) == content
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []


def test_an_overlay_of_another_size_than_its_parent_shows_nothing_of_what_was_cut(
    tmp_path: Path,
) -> None:
    base, overlay = tmp_path / "base.vhdx", tmp_path / "overlay.vhdx"
    create(base, 5 * MIB + 512)
    with open_image(base, writable=True) as disk:
        disk.write(0, b"b" * disk.size)
    create(overlay, 8 * MIB, base)
    content = bytearray(b"b" * (5 * MIB + 512) + bytes(3 * MIB - 512))
    with open_image(overlay, writable=True) as disk:
        disk.write(5 * MIB + 1000, b"x")
        content[5 * MIB + 1000] = ord("x")
        for size in (MIB + 1024, 9 * MIB, 3 * MIB, 8 * MIB):
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            assert disk.read(0, disk.size) == content
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []


def test_a_parent_is_known_by_the_identity_of_its_data(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    assert libvhdi_info(overlay)["parent_identifier"] == libvhdi_info(base)["id"]
    base.rename(tmp_path / "other name.vhdx")
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, 3) == b"000"
    (tmp_path / "other name.vhdx").rename(base)
    open_image(base, writable=True).close()  # Opening alone changes nothing.
    open_image(overlay, writable=False).close()
    with open_image(base, writable=True) as disk:
        disk.write(0, b"x")
    with pytest.raises(Corrupt, match="another image"):
        open_image(overlay, writable=False)
    base.unlink()
    with pytest.raises(NotFound):
        open_image(overlay, writable=False)


def test_an_overlay_needs_a_vhdx_beneath_it_and_is_not_fixed(tmp_path: Path) -> None:
    done("create", tmp_path / "raw.img", "--size", "1M")
    refused("create", tmp_path / "o.vhdx", "--parent", tmp_path / "raw.img")
    base = chain(tmp_path, 1)[0]
    refused("create", tmp_path / "o.vhdx", "--parent", base, "-o", "subformat=fixed")
    assert not (tmp_path / "o.vhdx").exists()


# Broken images


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("what", [HEADERS, TABLES])
def test_a_damaged_copy_is_passed_over_and_set_right(
    tmp_path: Path, what: tuple[int, int], damaged: int
) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    content = bytearray(SIZE)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(1), 5)
    file = VhdxFile(image)
    file.raw[what[damaged] + 40] ^= 1
    file.save()
    with open_image(image, writable=False) as disk:
        assert disk.read(0, SIZE) == content
        assert ["is damaged" in problem.message for problem in disk.image.check()] == [True]
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(2), 3)
    qemu.check(image, "vhdx")
    qemu.expect(image, "vhdx", content)
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
    file = VhdxFile(image)
    file.raw[what[0] : what[0] + 4] = file.raw[what[1] : what[1] + 4] = b"none"
    file.save()
    with pytest.raises(Corrupt, match="neither"):
        open_image(image, writable=False)


def test_two_headers_of_one_number_count_only_where_they_are_the_same(tmp_path: Path) -> None:
    """Disk2vhd writes them so."""
    image = create(tmp_path / "d.vhdx", SIZE)
    file = VhdxFile(image)
    file.raw[HEADERS[0] : HEADERS[0] + 4096] = file.raw[HEADERS[1] : HEADERS[1] + 4096]
    file.save()
    qemu.info(image, "vhdx")
    open_image(image, writable=False).close()
    file.set_header(16, "16s", uuid4().bytes_le, (1,))
    file.save()
    with pytest.raises(Corrupt, match="neither"):
        open_image(image, writable=False)


@pytest.mark.parametrize(
    ("at", "code", "value", "error"),
    [
        (0, "<Q", 0, InvalidFormat),
        ("header 66", "<H", 2, Unsupported),
        ("table 8", "<I", 5000, Corrupt),
        ("table 8", "<I", 1, Corrupt),
        ("table 16", "<Q", 77, Unsupported),
        ("table 32", "<Q", 1, Corrupt),
        ("table 32", "<Q", 0, Corrupt),
        ("table 32", "<Q", 1 << 60, Corrupt),
        ("table 40", "<I", 0, Corrupt),
        ("metadata 0", "<Q", 0, Corrupt),
        ("metadata 10", "<H", 5000, Corrupt),
        ("metadata 32", "<Q", 77, Unsupported),
        ("metadata 48", "<I", 0, Corrupt),
        ("metadata 52", "<I", 1 << 30, Corrupt),
        ("metadata 65536", "<I", 0, Corrupt),
        ("metadata 65536", "<I", 3 * MIB, Corrupt),
        ("metadata 65536", "<I", 1 << 31, Corrupt),
        ("metadata 65540", "<I", 2, Corrupt),
        ("metadata 65544", "<Q", 0, Corrupt),
        ("metadata 65544", "<Q", 77, Corrupt),
        ("metadata 65544", "<Q", 1 << 50, Corrupt),
        ("metadata 65544", "<Q", 1 << 40, Corrupt),
        ("metadata 65568", "<I", 1024, Corrupt),
    ],
)
def test_a_number_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int | str, code: str, value: int, error: type[Exception]
) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    file = VhdxFile(image)
    name, _, offset = str(at).rpartition(" ")
    if name == "header":
        file.set_header(int(offset), code, value)
    elif name == "table":
        file.set_table(int(offset), code, value)
    else:
        base = file.region(METADATA_GUID) if name else 0
        struct.pack_into(code, file.raw, base + int(offset), value)
    file.save()
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="vhdx"))


def test_a_region_that_need_not_be_understood_is_left_where_it_is(tmp_path: Path) -> None:
    image = create(tmp_path / "d.vhdx", SIZE)
    file = VhdxFile(image)
    strange, place = UUID(int=77).bytes_le, len(file.raw)
    file.raw += b"strange " * (MIB // 8)
    file.set_table(8, "<I", 3)
    file.set_table(16 + 64, "16s", strange)
    file.set_table(32 + 64, "<Q", place)
    file.set_table(40 + 64, "<I", MIB)
    file.save()
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x" * (5 * MIB))
        resize_disk(disk, 1 << 40)
        resize_disk(disk, MIB)
    file = VhdxFile(image)
    assert file.raw[place : place + MIB] == b"strange " * (MIB // 8)
    assert file.region(strange) == place


@pytest.mark.parametrize(
    "entry", [6, 2 * MIB | 6, 3 * MIB | 6, 4 * MIB | 6, 999 * MIB | 6, 5 * MIB | 7, 4]
)
def test_a_block_in_an_impossible_place_or_state_is_found_and_not_written_to(
    tmp_path: Path, entry: int
) -> None:
    """Over the signature, metadata, block table, another block; past the end; in part; no state."""
    image = create(tmp_path / "d.vhdx", SIZE)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"a" * (2 * MIB))
    file = VhdxFile(image)
    struct.pack_into("<Q", file.raw, file.region(BAT_GUID) + 8, entry)
    file.save()
    with open_image(image, writable=True) as disk:
        assert [problem.kind for problem in disk.image.check()] == ["corruption"]
        assert disk.read(0, MIB) == b"a" * MIB
        with pytest.raises(Corrupt):
            disk.write(MIB, b"x" * 512)
