"""`vdisk write`: standard input to sectors or bytes."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.console import STDIN, check_open, read_in
from vdisk.cli.params import address_argument, examples, image_options
from vdisk.cli.place import Place, check_chs, check_length, place_options
from vdisk.cli.progress import progress
from vdisk.cli.read import CHUNK
from vdisk.disk import Disk
from vdisk.errors import DiskError, OutOfRange
from vdisk.open import open_disk
from vdisk.options import OpenOptions


@click.command(
    epilog=examples(
        "vdisk write disk.img --chs 0/0/1 < mbr.bin",
        "vdisk write disk.img --lba 2048 < partition.img",
        "vdisk write disk.img/p1 < partition.img          # the same, if p1 begins there",
        "vdisk write disk.img --offset 446 --length 64 < entries.bin",
    )
)
@address_argument
@place_options
@image_options(geometry_name="--geometry")
def write(address: str, options: OpenOptions, **where: Any) -> None:
    """Copy standard input to the disk at ADDRESS.

    All of it; or, with --sectors or --length, exactly so much, and input that ends earlier is an
    error. As on a device, input that goes on past the end of the disk is an error too: what fits
    is written, and nothing of what the disk holds already is moved. Everything is durable when the
    command ends with 0.
    """
    place = Place(**where)
    place.check()
    check_chs(place.chs)
    check_open(STDIN)
    with open_disk(address, writable=True, options=options) as disk:
        start, limit = place.start(disk), place.limit(disk)
        if limit is not None:
            check_length(disk, start, limit)
        try:
            written = copy_in(disk, start, disk.size if limit is None else start + limit)
        finally:
            disk.flush()
        check_end(disk, written, limit)


def copy_in(disk: Disk, start: int, end: int) -> int:
    """Standard input to bytes [start, end), as much as there is; how many bytes that was."""
    buffer = memoryview(bytearray(CHUNK))
    at = start
    with progress("writing", None) as advance:
        while at < end:
            count = read_in(buffer[: min(CHUNK, end - at)])
            disk.write(at, buffer[:count])
            at += count
            advance(count)
            if count < min(CHUNK, end - at + count):
                break
    return at - start


def check_end(disk: Disk, written: int, limit: int | None) -> None:
    """Raise what is wrong with the amount of input: less than `limit`, or more than fits."""
    if limit is not None:
        if written < limit:
            raise DiskError(
                f"standard input ended after {written} of {limit} bytes, which are written",
                path=disk.address,
            )
    elif read_in(memoryview(bytearray(1))):
        raise OutOfRange(
            f"standard input goes on past the end of the disk: the first {written} bytes of it "
            "are written, the rest is not",
            path=disk.address,
        )
