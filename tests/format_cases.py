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

import qemu
from conformance import some_bytes
from model import Subject
from vdisk.create import create_image, plan_disk
from vdisk.disk import Disk
from vdisk.disk_geometry import resize_disk
from vdisk.open import open_image

KIB, MIB = 1 << 10, 1 << 20
BLOCKS = 5


@dataclass(frozen=True)
class FormatCase:
    """One kind of image.

    `boundary` is the block, cluster or grain in bytes.  `layers` is how many images there are, one
    on top of the other.  `witness` checks the closed image, by another program where one opens it.
    `tolerates` says which error of `qemu-img check` a crash may leave until the next writer.
    """

    format: str
    boundary: int
    options: dict[str, str] = field(default_factory=dict)
    layers: int = 1
    size_unit: int = 512
    resizes: bool = True
    witness: Callable[[Path], None] | None = None
    tolerates: Callable[[str], bool] = lambda line: False

    def __str__(self) -> str:
        words = [f"{self.format} in {self.boundary >> 10}K", *self.options.values()]
        return ", ".join(words + ([f"{self.layers} layers"] if self.layers > 1 else []))


def qemu_check(path: Path) -> None:
    """By the file's own format."""
    qemu.check(path, path.suffix[1:])


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
]

SMALL_CASES = [case for case in CASES if case.boundary < MIB]
"""Those that a machine of many steps can go through in no time."""


def format_subject(folder: Path, case: FormatCase, *, blocks: int = BLOCKS) -> Subject:
    """A disk of that kind, `blocks` blocks and a bit large, with bytes in every layer."""
    size = blocks * case.boundary + 512
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
    new = plan_disk(size_bytes=size, chs="1/1/3")
    options = {"block-size": case.options["block-size"]} if parent else case.options
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
