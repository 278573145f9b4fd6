"""`vdisk compact`: space that a disk does not need, back to the host."""

from __future__ import annotations

import click

from vdisk.cli.ending import ended_by_signals
from vdisk.cli.params import address_argument, examples, image_options
from vdisk.cli.progress import progress
from vdisk.compact import compact as compact_disk
from vdisk.describe import allocated_bytes
from vdisk.open import OpenOptions, open_disk
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk compact disk.vdi",
        "vdisk compact disk.img/p2",
        "fstrim -v files            # tells the disk of unused blocks, where it is mounted",
    )
)
@address_argument
@image_options()
def compact(address: str, options: OpenOptions) -> None:
    """Give back the space of all that reads as zeros on the disk at ADDRESS.

    Where the format allows it, the image file gets smaller as well. What a file system does not use
    any more is not zeros yet: fill it with zeros, or run fstrim while the disk is mounted. The disk
    reads as before at every moment.
    """
    with ended_by_signals(), open_disk(address, writable=True, options=options) as disk:
        before = allocated_bytes(disk)
        with progress("compacting", disk.size) as advance:
            compact_disk(disk, advance)
        disk.flush()
        after = allocated_bytes(disk)
    given = format_size(max(before - after, 0))
    click.echo(f"{address}: {given} given back, {format_size(after)} allocated")
