"""Raw images, and parts of them, as subjects of the machine and the suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance import some_bytes
from model import Subject
from table_images import entry, record
from vdisk.disk import Disk, Slice
from vdisk.disk_geometry import resize_disk
from vdisk.geometry import Geometry, choose
from vdisk.open import open_disk
from vdisk.options import OpenOptions

SECTOR_SIZES = (128, 256, 512, 1024, 2048, 4096)
LAYERS = ("whole", "slice", "nested", "partition")

_HEADS, _PER_TRACK = 2, 3
_START_LBA = 8
_AFTER = some_bytes(25000, 9)  # One cylinder fits at every sector size.


def raw_subject(folder: Path, layer: str, sector_size: int, sectors: int, tail: int) -> Subject:
    """A disk of `sectors` sectors and `tail` bytes more: a whole image, or a part of one."""
    size = sectors * sector_size + tail
    content = some_bytes(size)
    if layer == "whole":
        return _whole(folder, content, sector_size)
    lead = _lead(layer, sector_size, sectors)
    image = folder / "disk.img"
    image.write_bytes(lead + content + _AFTER)
    opened = _opener(image, layer, sector_size, len(lead), size)

    def sound() -> None:
        """Not one byte before or after the part was changed."""
        found = image.read_bytes()
        assert found[: len(lead)] == lead
        assert found[len(lead) + size :] == _AFTER

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


def _lead(layer: str, sector_size: int, sectors: int) -> bytes:
    """What lies before the part: anything, or an MBR with the part as its only partition."""
    if layer != "partition":
        return some_bytes(777, 5)
    table = record(entry(0x83, _START_LBA, sectors))
    return table + some_bytes(_START_LBA * sector_size - len(table), 5)


def _opener(
    image: Path, layer: str, sector_size: int, start: int, size: int
) -> Callable[[bool], Disk]:
    chs = f"1/{_HEADS}/{_PER_TRACK}"  # The whole disk's; a part has as many cylinders as fit.
    options = OpenOptions(format="raw", sector_size=sector_size, chs=chs)

    def opened(writable: bool) -> Disk:
        if layer == "partition":
            return open_disk(f"{image}/p1", writable=writable, options=options)
        disk: Disk = open_disk(image, writable=writable, options=options)
        if layer == "nested":
            disk, inner = Slice(disk, 100, start + size, address="outer"), start - 100
        else:
            inner = start
        part = Slice(disk, inner, size, address="part")
        part.choice = choose(size, sector_size, given=_geometry(part))
        return part

    return opened


def _geometry(part: Slice) -> Geometry | None:
    cylinders = part.sectors // (_HEADS * _PER_TRACK)
    return Geometry(cylinders, _HEADS, _PER_TRACK, part.sector_size) if cylinders else None
