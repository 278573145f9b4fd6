"""`vdisk resize`: a disk of another size."""

from __future__ import annotations

import click

from vdisk.cli.addresses import split
from vdisk.cli.params import address_argument, examples, image_options
from vdisk.create import whole_sectors
from vdisk.disk import Disk
from vdisk.disk_geometry import resize_disk
from vdisk.errors import DiskError, InvalidArgument, NotPermitted
from vdisk.extent import Kind
from vdisk.image_disk import ImageDisk
from vdisk.open import open_disk, open_image, parse_address
from vdisk.options import OpenOptions
from vdisk.partitions import scan_table
from vdisk.recognise import recognise
from vdisk.units import format_size, parse_size


@click.command(
    epilog=examples(
        "vdisk resize disk.img 2G",
        "vdisk resize disk.img +512M             # that much more",
        "vdisk resize --force disk.img -- -1G    # that much less, with what is in it",
        "vdisk resize drive.img/gamma 20G        # a volume grows wherever the drive has room",
    )
)
@address_argument
@click.argument("size", metavar="SIZE")
@click.option("--force", is_flag=True, help="Shrink even where that loses data.")
@image_options()
def resize(address: str, size: str, force: bool, options: OpenOptions) -> None:
    """Make the disk at ADDRESS as large as SIZE, +SIZE larger, or -SIZE smaller.

    The size is rounded up to whole sectors, to cylinders where the format has nothing smaller, that
    of a volume to whole extents of its drive. What is added reads as zeros. A disk is not shrunk
    where data, a partition or a part of a file system would be lost, unless --force says so. A
    geometry that was kept with the disk keeps its heads and sectors per track, and gets as many
    cylinders as fit.
    """
    _check_size(size)
    click.echo(_resize(address, size, options, force=force))


def _resize(address: str, size: str, options: OpenOptions, *, force: bool) -> str:
    with _open(address, options) as disk:
        if not isinstance(disk, ImageDisk):
            raise NotPermitted(
                "is a part of a disk and cannot be resized by itself", path=address,
                hint=f"change the partition table on {split(address)[0]}",
            )
        wanted = _wanted(disk, size)
        if wanted < disk.size and not force:
            _check_loss(disk, wanted)
        resize_disk(disk, wanted)
        disk.flush()
        geometry = "none" if disk.choice is None else str(disk.choice.geometry)
        return f"{address}: {format_size(disk.size)} ({disk.size} bytes), geometry {geometry}"


def _open(address: str, options: OpenOptions) -> Disk:
    parsed = parse_address(address)
    if parsed.inside:
        return open_disk(address, writable=True, options=options)
    return open_image(parsed.path, writable=True, options=options, allow_empty=True)


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
    found = recognise(disk.read, disk.size, disk.sector_size)
    losses += [f"the end of {one.name}" for one in found if not one.is_table]
    if losses:
        raise NotPermitted(
            f"shrinking to {size} bytes loses {', '.join(losses)}", path=disk.address,
            hint="to do it all the same: --force",
        )
