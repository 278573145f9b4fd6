"""`vdisk read`: sectors or bytes to standard output."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.console import STDOUT, check_open, write_out
from vdisk.cli.params import address_argument, examples, image_options
from vdisk.cli.place import Place, check_chs, check_length, place_options
from vdisk.cli.progress import progress
from vdisk.disk import Disk
from vdisk.open import open_disk
from vdisk.options import OpenOptions

CHUNK = 1 << 20


@click.command(
    epilog=examples(
        "vdisk read disk.img --chs 0/0/1 | xxd           # the first sector",
        "vdisk read disk.img --lba 2048 --sectors 8 > eight",
        "vdisk read disk.img --offset 1M --length 64K | sha256sum",
        "vdisk read disk.img/p1 > partition.img",
    )
)
@address_argument
@place_options
@image_options(geometry_name="--geometry")
def read(address: str, options: OpenOptions, **where: Any) -> None:
    """Copy a part of the disk at ADDRESS to standard output.

    With --chs or --lba that is one sector, unless --sectors or --length say otherwise; without
    them, all from --offset, or from the start, to the end of the disk. A range that is not all on
    the disk is refused, and nothing is copied.
    """
    place = Place(**where)
    place.check()
    check_chs(place.chs)
    check_open(STDOUT)
    with open_disk(address, options=options) as disk:
        start = place.start(disk)
        length = disk.sector_size if place.is_sector() else place.limit(disk)
        if length is None:
            length = disk.size - start
        check_length(disk, start, length)
        copy_out(disk, start, length)


def copy_out(disk: Disk, start: int, length: int) -> None:
    """Bytes [start, start + length) to standard output."""
    buffer = memoryview(bytearray(min(CHUNK, length)))
    end = start + length
    with progress("reading", length) as advance:
        while start < end:
            part = buffer[: min(len(buffer), end - start)]
            disk.read_into(start, part)
            write_out(part)
            start += len(part)
            advance(len(part))
