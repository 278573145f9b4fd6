"""`vdisk copy`: one more disk with the same content."""

from __future__ import annotations

from contextlib import ExitStack

import click

from vdisk.cli.params import FILE, examples, image_options
from vdisk.cli.progress import progress
from vdisk.copies import open_copy
from vdisk.disk import Disk
from vdisk.errors import OutOfRange
from vdisk.holdings import check_holds, holdings
from vdisk.options import OpenOptions
from vdisk.transfer import copy_disk
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk copy drive.img/alpha drive.img/alpha-copy   # at once, where blocks can be shared",
        "vdisk copy disk.vdi drive.img/beta                # an image of any format",
        "vdisk copy drive.img/alpha disks/alpha.img",
        "vdisk copy drive.img/alpha/p1 part.img",
        "vdisk copy --force part.img drive.img/alpha/p1    # over what is there",
    )
)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--force", is_flag=True, help="Copy over a partition that holds something.")
@image_options()
def copy(source: str, target: str, force: bool, options: OpenOptions) -> None:
    """Make the new disk TARGET with what is on the disk SOURCE.

    TARGET is a volume of a drive, or an image file of the format that its name means. It is as
    large as SOURCE, a volume rounded up, and has its geometry where that was given. What SOURCE has
    no data for stays a hole, and where the file system can, the two share their blocks until one of
    them is written. A partition as TARGET must be there and be large enough.
    """
    with ExitStack() as held:
        disk, place = open_copy(source, target, options, held)
        with progress("copying", disk.size) as advance:
            if isinstance(place, Disk):
                _check_over(disk, place, force=force)
                copy_disk(disk, place, advance)
                place.flush()
            else:
                store, name = place
                store.copy(disk, name, advance)
        click.echo(f"{target}: {format_size(disk.size)} copied from {source}")


def _check_over(source: Disk, target: Disk, *, force: bool) -> None:
    if source.size > target.size:
        raise OutOfRange(
            f"has {target.size} bytes, and the source has {source.size}", path=target.address
        )
    if not force:
        check_holds(target, holdings(target), "to copy over it all the same: --force")
