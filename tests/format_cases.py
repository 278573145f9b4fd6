"""Every format, subformat and block size as a subject of the suite and the machine.

A further format adds its lines to `CASES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from _pytest.mark import ParameterSet

import qemu
from conformance import some_bytes
from model import Subject
from vdisk.create import create_image, plan_disk
from vdisk.disk import Disk
from vdisk.formats.registry import FORMATS
from vdisk.open import open_image, resize_disk

KIB, MIB = 1 << 10, 1 << 20
BLOCKS = 5


@dataclass(frozen=True)
class FormatCase:
    """One kind of image.

    `boundary` is the block, cluster or grain in bytes.  `layers` is how many images there are, one
    on top of the other.  `witness` checks the closed image, by another program where one opens it;
    `crash_witness` one that was open when the power was lost, where less can be asked of it.
    `tolerates` says which error of `qemu-img check` a crash may leave until the next writer.
    Sizes are multiples of `size_unit`; `shape` is (heads, sectors per track, bytes per sector) of
    a format whose geometry is its size.
    """

    format: str
    boundary: int
    options: dict[str, str] = field(default_factory=dict)
    layers: int = 1
    size_unit: int = 512
    shape: tuple[int, int, int] | None = None
    resizes: bool = True
    witness: Callable[[Path], None] | None = None
    crash_witness: Callable[[Path], None] | None = None
    tolerates: Callable[[str], bool] = lambda line: False
    slow_crashes: bool = False
    """Whether crashes and full hosts are left to the slow tests, another case being much alike."""

    def __str__(self) -> str:
        unit = f"{self.boundary >> 10}K" if self.shape is None else f"{self.shape}"
        words = [f"{self.format} in {unit}", *self.options.values()]
        return ", ".join(words + ([f"{self.layers} layers"] if self.layers > 1 else []))


def qemu_check(path: Path) -> None:
    """By the file's own format."""
    qemu.check(path, path.suffix[1:])


def qemu_reads(path: Path) -> None:
    """Of a format that qemu-img cannot check: what it reads, and how much, is what is read here."""
    with open_image(path, writable=False) as disk:
        qemu.expect(path, path.suffix[1:], disk.read(0, disk.size), "-U")


def qemu_reads_no_less(path: Path) -> None:
    """As `qemu_reads`, but what was not flushed may be zeros here and not there.

    QEMU looks at no sector bitmap, and here a new block's bitmap may have been lost with the power.
    """
    with open_image(path, writable=False) as disk:
        ours = disk.read(0, disk.size)
    plain = path.with_name("plain.img")
    qemu.qemu("qemu-img", "convert", "-f", qemu.qemu_name(path.suffix[1:]), path, plain)
    theirs = plain.read_bytes()
    assert len(ours) == len(theirs)
    for at in range(0, len(ours), 512):
        assert ours[at : at + 512] in (theirs[at : at + 512], bytes(512)), at


def qemu_check_leaks(path: Path) -> None:
    """As `qemu_check`, but for clusters that nothing uses: a crash leaves them."""
    qemu.qemu("qemu-img", "check", "-f", path.suffix[1:], path, status=(0, 3))


def parallels_is_in_use(line: str) -> bool:
    """The mark, which has the next writer look for damage, and space set aside are no damage."""
    return line.startswith(("ERROR image was not closed", "ERROR space leaked at the end"))


def vdi_count_is_high(line: str) -> bool:
    """A VDI image's count runs ahead of its map; one that is too low would be the dangerous one."""
    found = re.fullmatch(r"ERROR: allocated blocks mismatch, is (\d+), should be (\d+)", line)
    return found is not None and int(found[1]) < int(found[2])


CASES = [
    FormatCase("vdi", MIB, witness=qemu_check, tolerates=vdi_count_is_high),
    FormatCase("vdi", MIB, {"subformat": "fixed"}, witness=qemu_check, tolerates=vdi_count_is_high),
    FormatCase("vdi", 4 * KIB, {"block-size": "4K"}),
    FormatCase("vdi", 64 * KIB, {"block-size": "64K"}, layers=2),
    FormatCase("vdi", 4 * KIB, {"block-size": "4K"}, layers=4),
    FormatCase("vmdk", 64 * KIB, witness=qemu_check),
    FormatCase("vmdk", 4 * KIB, {"grain-size": "4K"}, witness=qemu_check),
    FormatCase("vmdk", MIB, {"subformat": "monolithicFlat"}, witness=qemu_check),
    FormatCase("vmdk", MIB, {"subformat": "twoGbMaxExtentSparse", "extent-size": "1M"},
               witness=qemu_check),
    FormatCase("vmdk", MIB, {"subformat": "twoGbMaxExtentFlat", "extent-size": "1M"},
               witness=qemu_check),
    FormatCase("vmdk", 64 * KIB, {"zeroed-grain": "on"}, layers=2),
    FormatCase("vmdk", 4 * KIB, {"grain-size": "4K"}, layers=4),
    FormatCase("vhd", 2 * MIB, witness=qemu_reads, crash_witness=qemu_reads_no_less),
    FormatCase("vhd", 64 * KIB, {"subformat": "fixed"}, witness=qemu_reads),
    FormatCase("vhd", 4 * KIB, {"block-size": "4K"}),
    FormatCase("vhd", 8 * KIB, {"block-size": "8K"}, layers=2),
    FormatCase("vhd", 4 * KIB, {"block-size": "4K"}, layers=4),
    FormatCase("qcow2", 64 * KIB, witness=qemu_check, slow_crashes=True),
    FormatCase("qcow2", 512, {"cluster-size": "512", "refcount-bits": "64"}, witness=qemu_check),
    FormatCase(
        "qcow2", 16 * KIB, {"cluster-size": "16K", "extended-l2": "on"}, witness=qemu_check,
        slow_crashes=True,
    ),
    FormatCase("qcow2", 4 * KIB, {"cluster-size": "4K"}, layers=4),
    FormatCase(
        "qcow2", 16 * KIB, {"cluster-size": "16K", "extended-l2": "on"}, layers=2,
        slow_crashes=True,
    ),
    FormatCase(
        "qcow2", 1 * KIB, {"cluster-size": "1K", "compat": "0.10"}, layers=2, slow_crashes=True
    ),
    FormatCase("parallels", 4 * KIB, {"cluster_size": "4K"}, witness=qemu_check_leaks,
               tolerates=parallels_is_in_use),
    FormatCase("qed", 64 * KIB, witness=qemu_check_leaks),
    FormatCase("qed", 4 * KIB, {"cluster_size": "4K", "table_size": "2"}, layers=3),
]  # fmt: skip

# No other program here opens these; what each field means, `test_headed` has from elsewhere.
CASES += [
    FormatCase("hdi", 2048, size_unit=2048, shape=(1, 8, 256)),
    FormatCase("nhd", 4096, size_unit=4096, shape=(2, 2, 1024)),
]


def crash_params(cases: list[FormatCase]) -> list[ParameterSet]:
    """`cases` as parameters of tests that go through very many states of each."""
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.slow_crashes else [])
        for case in cases
    ]


SMALL_CASES = [case for case in CASES if case.boundary < MIB]
"""Those that a machine of many steps can go through in no time."""


def format_subject(folder: Path, case: FormatCase, *, blocks: int = BLOCKS) -> Subject:
    """A disk of that kind, `blocks` blocks and a bit large, with bytes in every layer."""
    # A geometry needs three sectors.
    size = max(blocks * case.boundary, 1024) + case.size_unit
    content = bytearray(size)
    path = folder / f"0.{case.format}"
    make(path, case, size)
    random = Random(0)
    for layer in range(case.layers):
        if layer:
            path = folder / f"{layer}.{case.format}"
            make(path, case, size, parent=folder / f"{layer - 1}.{case.format}")
        with open_image(path, writable=True) as disk:
            for _ in range(3):
                offset = random.randrange(size - 1000)
                length = random.randrange(1, min(case.boundary, size - offset))
                content[offset : offset + length] = block = some_bytes(length, layer)
                disk.write(offset, block)

    def opened(writable: bool) -> Disk:
        return open_image(path, writable=writable)

    def sound() -> None:
        with open_image(path, writable=False) as disk:
            assert list(disk.image.check()) == []
        if case.witness is not None:
            case.witness(path)

    return Subject(
        opened(True), bytes(content), opened, boundary=case.boundary, sound=sound,
        resize=resize_disk if case.resizes else None, size_unit=case.size_unit,
    )


def make(path: Path, case: FormatCase, size: int, parent: Path | None = None) -> Path:
    """A new image of that kind, empty or an overlay."""
    if FORMATS[case.format].create is None:
        backing = ["-F", case.format, "-b", parent] if parent else []
        words = [f"-o{name}={value}" for name, value in case.options.items()]
        qemu.qemu("qemu-img", "create", "-q", "-f", case.format, *words, *backing, path, size)
        return path
    if case.shape is None:
        new = plan_disk(size_bytes=size, chs="1/1/3")
    else:
        heads, sectors, sector_size = case.shape
        cylinders = size // (heads * sectors * sector_size)
        new = plan_disk(chs=f"{cylinders}/{heads}/{sectors}", sector_size=sector_size)
    once = ("subformat", "preallocation")  # Options of what is allocated when it is made.
    options = {k: v for k, v in case.options.items() if parent is None or k not in once}
    create_image(
        path, type(new)(new.size_bytes, new.geometry, True, case.format, options, parent)
    )
    return path


@contextmanager
def empty_disk(folder: Path, case: FormatCase, size: int) -> Iterator[Disk]:
    """An open disk of that kind and as many layers, all zeros; sound when it is closed."""
    path = make(folder / f"0.{case.format}", case, size)
    for layer in range(1, case.layers):
        path = make(folder / f"{layer}.{case.format}", case, size, parent=path)
    with open_image(path, writable=True) as disk:
        yield disk
    with open_image(path, writable=False) as disk:
        assert list(disk.image.check()) == []


def scattered(disk: Disk, content: bytearray, random: Random, count: int) -> None:
    """Write, zero and discard random ranges, many unaligned, of the disk and of `content`."""
    for _ in range(count):
        offset = random.randrange(len(content))
        length = min(random.randrange(1, 3 * MIB), len(content) - offset)
        block = random.randbytes(length)
        match random.randrange(4):
            case 0:
                disk.discard(offset, length)
                block = bytes(length)
            case 1:
                disk.zero(offset, length)
                block = bytes(length)
            case _:
                disk.write(offset, block)
        content[offset : offset + length] = block
