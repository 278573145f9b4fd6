"""QED: images of qemu-img, read and written in place, alone and over a backing file."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest

import qemu
from cli import refused
from format_cases import qemu_check_leaks, scattered
from vdisk.errors import Corrupt, DiskError, InvalidFormat, NotPermitted, Unsupported
from vdisk.extent import Kind, merged
from vdisk.formats.base import ProblemKind
from vdisk.open import OpenOptions, open_image, resize_disk

MIB = 1 << 20
SIZE = 10 * MIB + 512
OPTIONS = [{}, {"cluster_size": 4096, "table_size": 2}, {"cluster_size": MIB}]
BACKING, NEED_CHECK, BACKING_IS_RAW = 1, 2, 4


def make(image: Path, size: int = SIZE, **options: int) -> Path:
    words = [f"-o{name}={value}" for name, value in options.items()]
    qemu.qemu("qemu-img", "create", "-q", "-f", "qed", *words, image, size)
    return image


def overlay(image: Path, base: Path, base_format: str, size: int = SIZE) -> Path:
    qemu.qemu("qemu-img", "create", "-q", "-f", "qed", "-o", "cluster_size=4096,table_size=2",
              "-F", base_format, "-b", base.name, image, size)  # fmt: skip
    return image


def features(image: Path) -> int:
    return int.from_bytes(image.read_bytes()[16:24], "little")


def patch(image: Path, at: int, form: str, *values: int | bytes) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))


@pytest.mark.parametrize("options", OPTIONS)
def test_an_image_that_qemu_made_is_read_mapped_and_written_in_place(
    tmp_path: Path, options: dict[str, int]
) -> None:
    image = make(tmp_path / "d.qed", **options)
    content = bytearray(SIZE)
    random = Random(str(options))
    for _ in range(2):
        qemu.scatter(image, "qed", content, random, 5)
        with open_image(image, writable=True) as disk:
            assert disk.read(0, SIZE) == content
            runs = [e for e in merged(disk.image.map(0, SIZE)) if e.kind is Kind.DATA]
            assert [(e.guest_offset, e.guest_end, e.host_offset) for e in runs] == (
                qemu.data_runs(image, "qed")
            )
            scattered(disk, content, random, 5)
            assert features(image) == NEED_CHECK
            assert list(disk.image.check()) == []
        assert features(image) == 0
        qemu.check(image, "qed")
        qemu.expect(image, "qed", content)


@pytest.mark.parametrize("base_format", ["qed", "raw"])
def test_an_overlay_is_written_and_its_backing_file_is_not(
    tmp_path: Path, base_format: str
) -> None:
    """QEMU marks a raw one as that: what the guest wrote into it does not change how it is read."""
    base = tmp_path / "base"
    content = bytearray(SIZE)
    if base_format == "qed":
        make(base)
        qemu.scatter(base, "qed", content, Random(1), 10)
    else:
        content[: 1 * MIB] = make(tmp_path / "other.qed").read_bytes()[:MIB].ljust(MIB, b"\0")
        base.write_bytes(content)
    child = overlay(tmp_path / "child.qed", base, base_format)
    assert features(child) == BACKING | (BACKING_IS_RAW if base_format == "raw" else 0)
    qemu.qemu("qemu-io", "-f", "qed", "-c", "write -z 2M 1M", "-c", "write -P 7 4M 9000", child)
    content[2 * MIB : 3 * MIB] = bytes(MIB)
    content[4 * MIB : 4 * MIB + 9000] = b"\7" * 9000
    before = base.read_bytes()
    with open_image(child, writable=True) as disk:
        assert disk.read(0, SIZE) == content
        scattered(disk, content, Random(2), 15)
        assert disk.read(0, SIZE) == content
    with open_image(child, writable=False) as disk:
        assert list(disk.image.check()) == []
    assert base.read_bytes() == before
    qemu.check(child, "qed")
    qemu.expect(child, "qed", content)


def test_a_backing_file_of_no_known_format_or_in_another_folder_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(SIZE))
    child = overlay(tmp_path / "child.qed", base, "raw")
    patch(child, 16, "<Q", BACKING)  # It may be anything, so a guest could choose.
    with pytest.raises(InvalidFormat, match="no image of a known format"):
        open_image(child, writable=False)
    patch(child, 16, "<Q", BACKING | BACKING_IS_RAW)
    open_image(child, writable=False).close()
    (offset,) = struct.unpack_from("<I", child.read_bytes(), 56)
    patch(child, offset, "<4s", b"/etc")
    with pytest.raises(NotPermitted, match="--allow-parent"):
        open_image(child, writable=False)


def test_it_grows_and_shrinks_as_far_as_its_tables_reach(tmp_path: Path) -> None:
    image = make(tmp_path / "d.qed", cluster_size=4096, table_size=2)
    content = bytearray(SIZE)
    for size in (SIZE, 33 * MIB + 512, 4 * MIB, 100 * MIB, 7 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 12 * MIB]
            scattered(disk, part, Random(size), 5)
            content[: len(part)] = part
        qemu_check_leaks(image)  # Of clusters that were given back, in the middle of the file.
        with open_image(image, writable=False) as disk:
            assert list(disk.image.check()) == []
    qemu.expect(image, "qed", content)
    assert "at most 4294967296 bytes" in refused("resize", image, "5G")


def test_an_overlay_that_grows_shows_no_more_of_a_larger_backing_file(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"b" * 30 * MIB)
    child = overlay(tmp_path / "child.qed", base, "raw", 3 * MIB + 512)
    with open_image(child, writable=True) as disk:
        resize_disk(disk, 40 * MIB)
    content = (b"b" * (3 * MIB + 512)).ljust(40 * MIB, b"\0")
    with open_image(child, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []
    qemu.check(child, "qed")
    qemu.expect(child, "qed", content)


def test_an_image_that_needs_a_check_is_set_right_by_the_next_writer(tmp_path: Path) -> None:
    """A cluster that a crash has kept from the file is dropped, as QEMU's check does."""
    image = make(tmp_path / "d.qed")
    qemu.qemu("qemu-io", "-f", "qed", "-c", "write -P 1 0 64K", image)
    (l1,) = struct.unpack_from("<Q", image.read_bytes(), 40)
    (l2,) = struct.unpack_from("<Q", image.read_bytes(), l1)
    patch(image, l2 + 8, "<Q", 1 << 30)
    patch(image, 16, "<Q", NEED_CHECK)
    with image.open("r+b") as file:
        file.truncate(5 * MIB)
    with open_image(image, writable=False) as disk:
        assert {problem.kind for problem in disk.image.check()} == {ProblemKind.UNCLEAN}
    with open_image(image, writable=True) as disk:
        disk.write(5 * MIB, b"x")
    content = bytearray((b"\1" * 65536).ljust(SIZE, b"\0"))
    content[5 * MIB] = ord("x")
    assert features(image) == 0
    qemu.check(image, "qed")
    qemu.expect(image, "qed", content)


@pytest.mark.parametrize("what", ["a cluster twice", "a table twice", "a table past the end",
                                  "a cluster past the end"])  # fmt: skip
def test_tables_that_cannot_be_right_are_found(tmp_path: Path, what: str) -> None:
    image = make(tmp_path / "d.qed", cluster_size=4096, table_size=2)
    qemu.qemu("qemu-io", "-f", "qed", "-c", "write -P 1 4K 8K", "-c", "write -P 1 5M 4K", image)
    content = image.read_bytes()
    (l1,) = struct.unpack_from("<Q", content, 40)
    first, second = struct.unpack_from("<QQ", content, l1)
    _, one, _ = struct.unpack_from("<3Q", content, first)
    match what:
        case "a cluster twice":
            patch(image, first + 16, "<Q", one)
        case "a cluster past the end":
            patch(image, first + 16, "<Q", 1 << 50)
        case "a table twice":
            patch(image, l1 + 8, "<Q", first)
        case "a table past the end":
            patch(image, l1 + 8, "<Q", second + (1 << 30))
    qemu.qemu("qemu-img", "check", "-f", "qed", image, status=(2,))
    with open_image(image, writable=True) as disk:
        assert ProblemKind.CORRUPTION in {problem.kind for problem in disk.image.check()}
        if "past" in what:
            offset = 8192 if "cluster" in what else 5 * MIB
            with pytest.raises(Corrupt, match="be"):
                disk.write(offset, b"x")


def test_features_that_are_cleared_by_whoever_does_not_know_them_are(tmp_path: Path) -> None:
    image = make(tmp_path / "d.qed")
    patch(image, 32, "<Q", 1 << 5)
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
    assert image.read_bytes()[32:40] == bytes(8)
    qemu.check(image, "qed")


@pytest.mark.parametrize(
    ("at", "form", "value", "error"),
    [
        (0, "<I", 0, InvalidFormat),
        (4, "<I", 0, Corrupt),
        (4, "<I", 4095, Corrupt),
        (4, "<I", 1 << 27, Corrupt),
        (8, "<I", 0, Corrupt),
        (8, "<I", 3, Corrupt),
        (8, "<I", 32, Corrupt),
        (12, "<I", 0, Corrupt),
        (12, "<I", 0xFFFFFFFF, Corrupt),
        (16, "<Q", 8, Unsupported),
        (16, "<Q", BACKING, DiskError),
        (40, "<Q", 0, Corrupt),
        (40, "<Q", 65537, Corrupt),
        (40, "<Q", 1 << 50, Corrupt),
        (48, "<Q", 0, Corrupt),
        (48, "<Q", 513, Corrupt),
        (48, "<Q", 1 << 63, Corrupt),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, form: str, value: int, error: type[Exception]
) -> None:
    image = make(tmp_path / "d.qed")
    patch(image, at, form, value)
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="qed"))
