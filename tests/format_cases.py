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
from vdisk.open import open_image, resize_disk

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
    slow_crashes: bool = False
    """Whether crashes and full hosts are left to the slow tests, another case being much alike."""

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
    size = max(blocks * case.boundary, 1024) + 512  # A geometry needs three sectors.
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
