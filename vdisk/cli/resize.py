"""`vdisk resize`: a disk of another size."""

from __future__ import annotations

from pathlib import Path

import click

from vdisk.cli.params import address_argument, examples, image_options
from vdisk.create import whole_sectors
from vdisk.errors import DiskError, InvalidArgument, NotPermitted
from vdisk.extent import Kind
from vdisk.image_disk import ImageDisk
from vdisk.open import OpenOptions, open_image, parse_address, resize_disk, scan_table
from vdisk.units import format_size, parse_size


@click.command(
    epilog=examples(
        "vdisk resize disk.img 2G",
        "vdisk resize disk.img +512M             # that much more",
        "vdisk resize --force disk.img -- -1G    # that much less, with what is in it",
    )
)
@address_argument
@click.argument("size", metavar="SIZE")
@click.option("--force", is_flag=True, help="Shrink even where that loses data.")
@image_options()
def resize(address: str, size: str, force: bool, options: OpenOptions) -> None:
    """Make the disk at ADDRESS as large as SIZE, +SIZE larger, or -SIZE smaller.

    The size is rounded up to whole sectors, or cylinders where the format has nothing smaller. What
    is added reads as zeros. A disk is not shrunk
    where data or a partition would be lost, unless --force says so. A geometry that was kept with
    the disk keeps its heads and sectors per track, and gets as many cylinders as fit.
    """
    _check_size(size)
    parsed = parse_address(address)
    if parsed.inside:
        raise NotPermitted(
            "is a part of a disk and cannot be resized by itself", path=address,
            hint=f"change the partition table on {parsed.path}",
        )
    click.echo(_resize(parsed.path, size, options, force=force))


def _resize(path: Path, size: str, options: OpenOptions, *, force: bool) -> str:
    with open_image(path, writable=True, options=options, allow_empty=True) as disk:
        wanted = _wanted(disk, size)
        if wanted < disk.size and not force:
            _check_loss(disk, wanted)
        resize_disk(disk, wanted)
        disk.flush()
        geometry = "none" if disk.choice is None else str(disk.choice.geometry)
        return f"{path}: {format_size(disk.size)} ({disk.size} bytes), geometry {geometry}"


def _wanted(disk: ImageDisk, size: str) -> int:
    try:
        wanted = whole_sectors(new_size(size, disk.size), disk.sector_size)
        return -(-wanted // disk.image.size_unit) * disk.image.size_unit
    except InvalidArgument as error:
        error.path = disk.address
        raise


def new_size(text: str, size_bytes: int) -> int:
    """The size that `text` makes of `size_bytes`: an absolute one, or +more, or -less.

    Raises InvalidArgument for what is no size, or leaves nothing.
    """
    if text.startswith("+"):
        return size_bytes + parse_size(text[1:])
    if not text.startswith("-"):
        return parse_size(text)
    less = parse_size(text[1:])
    if less >= size_bytes:
        raise InvalidArgument(f"{text} leaves nothing of a disk of {size_bytes} bytes")
    return size_bytes - less


def _check_size(text: str) -> None:
    """A usage error for what is no size, before any file is opened."""
    try:
        parse_size(text[1:] if text[:1] in ("+", "-") else text)
    except DiskError as error:
        raise click.BadParameter(str(error), param_hint="SIZE") from error


def _check_loss(disk: ImageDisk, size: int) -> None:
    """Raise NotPermitted where bytes from `size` on may hold data, or belong to a partition."""
    lost = sum(e.length for e in disk.map(size, disk.size - size) if e.kind is not Kind.ZERO)
    losses = [f"{format_size(lost)} of data"] if lost else []
    table = scan_table(disk).table
    for partition in () if table is None else table.slices:
        if partition.end_lba * disk.sector_size > size:
            losses.append(f"partition {partition.number}")
    if losses:
        raise NotPermitted(
            f"shrinking to {size} bytes loses {', '.join(losses)}", path=disk.address,
            hint="to do it all the same: --force",
        )
