"""Drives for the tests, and their volumes as subjects of the suite for every disk.

A drive of these has extents of 4 KiB, so that small volumes lie in many places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conformance import some_bytes
from lvm2_images import HOST, MIB, TIME, blank, commit, drive, read_group
from model import Subject
from qemu import create as qemu_create
from vdisk.disk import Disk
from vdisk.disk_geometry import resize_disk
from vdisk.drive_steps import carry_out
from vdisk.geometry import Geometry
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.partitioning.edits import Add, Edits
from vdisk.repartition import change_table
from vdisk.tables.lvm2 import (
    NewVolume,
    PvRange,
    Segment,
    Stripe,
    VolumeGroup,
    create,
    new_drive,
    with_geometry,
)
from vdisk.volume import Place

EXTENT = 4096
GEOMETRY = Geometry(1, 2, 3)
LAYOUTS = ("one run", "scattered", "striped", "in a partition", "in a format", "nested")


def drive_file(path: Path, size: int = 4 * MIB) -> Path:
    """A drive of `size` bytes, named "drive", in a new file."""
    drive(path, size, extent_bytes=EXTENT)
    return path


def volume_subject(folder: Path, layout: str, extents: int = 6) -> Subject:
    """A volume "vol" of that many extents, and another, whose bytes must stay, around it."""
    content, other = some_bytes(extents * EXTENT), some_bytes(40 * EXTENT, 3)
    address = _ADDRESSES[layout](folder)
    for name, data in (("vol", content), ("other", other)):
        with open_disk(f"{address}/{name}", writable=True) as disk:
            disk.write(0, data)

    def opened(writable: bool) -> Disk:
        return open_disk(f"{address}/vol", writable=writable)

    def sound() -> None:
        with open_disk(f"{address}/other") as disk:
            assert disk.read(0, len(other)) == other

    unit = EXTENT * (2 if layout == "striped" else 1)  # It keeps as much on each of its stripes.
    return Subject(
        opened(True), content, opened, boundary=EXTENT, resize=resize_disk, size_unit=unit,
        sound=sound,
    )


def laid_out(vg: VolumeGroup, **volumes: list[tuple[int, int]]) -> VolumeGroup:
    """`vg` with volumes at (first extent, count) of its only drive, in that order."""
    made = create(
        vg, [_new(name, runs) for name, runs in volumes.items()], time=TIME, host=HOST
    )
    pv = vg.pvs[0].key
    changed = []
    for lv in made.lvs[len(vg.lvs) :]:
        segments, start = [], 0
        for first, count in volumes[lv.name]:
            segments.append(Segment(start, count, stripes=(Stripe(pv, first),)))
            start += count
        changed.append(replace(lv, segments=tuple(segments)))
    return replace(made, lvs=(*vg.lvs, *changed))


def _new(name: str, runs: list[tuple[int, int]]) -> NewVolume:
    return NewVolume(name, sum(count for _, count in runs) * EXTENT, _tags())


def _tags() -> tuple[str, ...]:
    return with_geometry((), GEOMETRY, None)


_ONE_RUN = {"vol": [(10, 6)], "other": [(30, 40)]}
_SCATTERED = {
    "vol": [(60, 1), (3, 2), (20, 1), (5, 1), (90, 1)],
    "other": [(0, 3), (6, 14), (21, 23)],
}


def _plain(layout: dict[str, list[tuple[int, int]]]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = drive_file(folder / "drive.img")
        group = read_group(path)
        commit(group, laid_out(group.vg, **layout), path)
        return str(path)

    return make


def _striped(folder: Path) -> str:
    """Six extents on two stripes of 4 KiB chunks, at both ends of the drive."""
    path = drive_file(folder / "drive.img")
    group = read_group(path)
    vg = laid_out(group.vg, vol=[(0, 6)], other=[(30, 40)])
    pv = vg.pvs[0].key
    stripes = (Stripe(pv, 300), Stripe(pv, 7))
    striped = replace(vg.lvs[0], segments=(Segment(0, 6, "striped", stripes, 8),))
    commit(group, replace(vg, lvs=(striped, vg.lvs[1])), path)
    return str(path)


def _drive_on(disk: Disk) -> None:
    """A drive with the scattered volumes on an open disk, through the disk."""
    made = new_drive(disk.size, "inner", time=TIME, host=HOST, extent_bytes=EXTENT)
    places = {made.label.pv_id: Place.of(disk, "")}
    carry_out(made.steps, places)
    from vdisk.find_drives import drive_at

    group = drive_at(disk, "").group
    done = group.commit(laid_out(group.vg, **_SCATTERED), time=TIME, host=HOST)
    carry_out(done.steps, places)
    disk.flush()


def _partitioned(image: Path, options: OpenOptions) -> str:
    with open_disk(image, writable=True, options=options) as disk:
        edits = Edits(new_table="gpt", adds=(Add(MIB, None), Add(4 * MIB, "lvm")))
        change_table(disk, edits)
    with open_disk(f"{image}/p2", writable=True) as part:
        _drive_on(part)
    return f"{image}/p2"


def _in_partition(folder: Path) -> str:
    return _partitioned(blank(folder / "server.img", 8 * MIB), OpenOptions(format="raw"))


def _in_format(folder: Path) -> str:
    """Of an image that maps, so that the drive's bytes are nowhere in one run."""
    return _partitioned(qemu_create(folder / "server.vdi", "vdi", 8 * MIB), OpenOptions())


def _nested(folder: Path) -> str:
    """A drive on a volume of a drive."""
    path = drive_file(folder / "outer.img", 16 * MIB)
    group = read_group(path)
    vg = laid_out(group.vg, inner=[(500, 1024), (0, 100)])
    commit(group, vg, path)
    with open_disk(f"{path}/inner", writable=True) as disk:
        _drive_on(disk)
    return f"{path}/inner"


_ADDRESSES: dict[str, Callable[[Path], str]] = {
    "one run": _plain(_ONE_RUN),
    "scattered": _plain(_SCATTERED),
    "striped": _striped,
    "in a partition": _in_partition,
    "in a format": _in_format,
    "nested": _nested,
}


def ranges_of(vg: VolumeGroup, name: str) -> list[PvRange]:
    """Where the volume `name` lies, a range a stripe, in its order."""
    lv = vg.lv(name)
    assert lv is not None
    return [one for segment in lv.segments for one in segment.ranges()]
