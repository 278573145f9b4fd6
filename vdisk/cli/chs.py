"""`vdisk chs`: addresses one way and the other, and a size's geometries by every rule."""

from __future__ import annotations

import re
from typing import Any

import click

from vdisk.cli.console import print_json, print_table
from vdisk.cli.others import Seen, seen_by_others, seen_by_profiles
from vdisk.cli.params import FILE, SIZE, examples, image_options, json_option
from vdisk.create import plan_disk
from vdisk.errors import InvalidArgument, OutOfRange
from vdisk.geometry import CHS, Geometry
from vdisk.open import open_disk
from vdisk.options import OpenOptions

_PLAIN = re.compile(r"\d+/\d+/\d+", re.ASCII)
_LBA = re.compile(r"\d{1,20}", re.ASCII)


@click.command(
    epilog=examples(
        "vdisk chs disk.img 0/1/1            # its LBA",
        "vdisk chs disk.img 2048 4095        # the C/H/S of each",
        "vdisk chs 1024/16/63 63             # of a geometry, without a disk",
        "vdisk chs --size 8G --profile bios 16450560",
        "vdisk chs --others disk.img         # what QEMU, a BIOS, fdisk … make of it",
        "vdisk chs --others --size 504M",
    )
)
@click.argument("words", metavar="[DISK|C/H/S] [PLACE]...", nargs=-1, type=FILE)
@click.option("--size", type=SIZE, metavar="SIZE", help="Of a disk of this size, without one.")
@click.option("--others", is_flag=True, help="Show the geometry by each profile and program.")
@json_option
@image_options(geometry_name="--geometry")
def chs(
    words: tuple[str, ...],
    size: int | None,
    others: bool,
    as_json: bool,
    options: OpenOptions,
) -> None:
    """Turn each PLACE, a sector's C/H/S address or its LBA, into the other.

    The geometry is that of a disk (its address), a plain one written C/H/S, or the one a disk of
    --size would have. Without a PLACE the geometry is printed. A file whose name looks like a
    geometry is written ./1/2/3.
    """
    subject, places = _subject(words, size, options)
    if others:
        if places:
            raise click.UsageError("--others takes no PLACE")
        _print_others(subject, as_json=as_json)
        return
    if not places:
        _print_geometry(subject.geometry, as_json=as_json)
        return
    answers = [converted(subject.geometry, place) for place in places]
    if as_json:
        print_json(answers)
        return
    for place, answer in zip(places, answers, strict=True):
        click.echo(answer["lba"] if "/" in place else answer["chs"])


def converted(geometry: Geometry, place: str) -> dict[str, Any]:
    """A sector's `lba`, `chs` and `guest_offset` (bytes).  Raises OutOfRange, InvalidArgument."""
    if "/" in place:
        address = CHS.parse(place)
        lba = geometry.lba(address)
    elif _LBA.fullmatch(place):
        lba = int(place)
        address = geometry.chs(lba)
    else:
        raise InvalidArgument(
            f"{place[:40]!r} is no sector's address", hint="write C/H/S, such as 0/0/1, or an LBA"
        )
    return {"lba": lba, "chs": str(address), "guest_offset": lba * geometry.sector_size}


class _Subject:
    """What the addresses are in: a geometry, and of a disk its size and first bytes."""

    def __init__(self, geometry: Geometry, size_bytes: int, first_sector: bytes | None) -> None:
        self.geometry = geometry
        self.size_bytes = size_bytes
        self.first_sector = first_sector


def _subject(
    words: tuple[str, ...], size: int | None, options: OpenOptions
) -> tuple[_Subject, tuple[str, ...]]:
    if size is not None:
        new = plan_disk(
            size_bytes=size, chs=options.chs, profile=options.profile,
            sector_size=options.sector_size,
        )
        return _Subject(new.geometry, new.size_bytes, None), words
    if not words:
        raise click.UsageError("name a disk, or a geometry C/H/S, or give --size")
    if _PLAIN.fullmatch(words[0]):
        if options.chs is not None or options.profile is not None:
            raise click.UsageError("a plain geometry takes no --geometry and no --profile")
        geometry = Geometry.parse(words[0], sector_size=options.sector_size or 512)
        return _Subject(geometry, geometry.size_bytes, None), words[1:]
    with open_disk(words[0], options=options, lock=False) as disk:
        first = disk.read(0, min(512, disk.size))
        return _Subject(disk.geometry, disk.size, first), words[1:]


def _print_geometry(geometry: Geometry, *, as_json: bool) -> None:
    if not as_json:
        click.echo(geometry)
        return
    print_json(
        {
            "cylinders": geometry.cylinders,
            "heads": geometry.heads,
            "sectors_per_track": geometry.sectors_per_track,
            "sector_size": geometry.sector_size,
            "sectors": geometry.sectors,
            "size_bytes": geometry.size_bytes,
        }
    )


def _print_others(subject: _Subject, *, as_json: bool) -> None:
    if subject.size_bytes < subject.geometry.sector_size:
        raise OutOfRange("the disk is smaller than a sector")
    rows = [
        Seen("this disk", subject.geometry, ""),
        *seen_by_profiles(subject.size_bytes, subject.geometry.sector_size),
        *seen_by_others(
            subject.size_bytes, subject.geometry.sector_size, subject.first_sector
        ),
    ]
    if as_json:
        print_json(
            [{"by": row.by, "geometry": row.text(), "remark": row.remark} for row in rows]
        )
        return
    print_table(
        ("BY", "GEOMETRY", "REMARK"),
        [(row.by, row.text() or "-", row.remark) for row in rows],
    )
