"""Raw images, and parts of them, as subjects of the machine and the suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance import some_bytes
from model import Subject
from table_images import entry, record

from vdisk.disk import Disk, Slice
from vdisk.geometry import Geometry, choose
from vdisk.open import OpenOptions, open_disk, resize_disk

SECTOR_SIZES = (128, 256, 512, 1024, 2048, 4096)
LAYERS = ("whole", "slice", "nested", "partition")

_HEADS, _PER_TRACK = 2, 3


def raw_subject(folder: Path, layer: str, sector_size: int, sectors: int, tail: int) -> Subject:
    """A disk of `sectors` sectors and `tail` bytes more: a whole image, or a part of one."""
    size = sectors * sector_size + tail
    content = some_bytes(size)
    if layer == "whole":
        return _whole(folder, content, sector_size)
    before, after = _around(layer, sector_size)
    image = folder / "disk.img"
    image.write_bytes(before + content + after)
    opened = _opener(image, layer, sector_size, len(before), size)

    def sound() -> None:
        """Not one byte before or after the part was changed."""
        found = image.read_bytes()
        assert found[: len(before)] == before
        assert found[len(before) + size :] == after

    return Subject(opened(True), content, opened, boundary=sector_size, sound=sound)


def _whole(folder: Path, content: bytes, sector_size: int) -> Subject:
    image = folder / "disk.img"
    image.write_bytes(content)

    def opened(writable: bool) -> Disk:
        # The heads and sectors are given, the cylinders follow the size, which the test changes.
        cylinders = max(1, image.stat().st_size // (_HEADS * _PER_TRACK * sector_size))
        fits = image.stat().st_size >= _HEADS * _PER_TRACK * sector_size
        chs = f"{cylinders}/{_HEADS}/{_PER_TRACK}" if fits else None
        options = OpenOptions(format="raw", chs=chs, sector_size=sector_size)
        return open_disk(image, writable=writable, options=options)

    disk = opened(True)
    return Subject(disk, content, opened, boundary=sector_size, resize=resize_disk)


def _around(layer: str, sector_size: int) -> tuple[bytes, bytes]:
    """The bytes before and after the part: an MBR, then others that must stay."""
    lead = 8 * sector_size if layer == "partition" else 777
    table = record(entry(0x83, 8, 0)) if layer == "partition" else b""
    return table + some_bytes(max(lead, 4096) - len(table), 5), some_bytes(1234, 9)


def _opener(
    image: Path, layer: str, sector_size: int, start: int, size: int
) -> Callable[[bool], Disk]:
    options = OpenOptions(format="raw", sector_size=sector_size)

    def opened(writable: bool) -> Disk:
        disk: Disk = open_disk(image, writable=writable, options=options)
        if layer == "nested":
            disk = Slice(disk, 100, start + size, address="outer")
            part = Slice(disk, start - 100, size, address="inner")
        else:
            part = Slice(disk, start, size, address="part")
        part.choice = _choice(part)
        return part

    return opened


def _choice(part: Slice):  # type: ignore[no-untyped-def]
    cylinders = part.sectors // (_HEADS * _PER_TRACK)
    geometry = Geometry(cylinders, _HEADS, _PER_TRACK, part.sector_size) if cylinders else None
    return choose(part.size, part.sector_size, given=geometry)
