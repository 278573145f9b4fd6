"""`vdisk create`: a new disk in a new file."""

from __future__ import annotations

from pathlib import Path

import click

from vdisk.cli.console import note, warn
from vdisk.cli.params import SIZE, address_argument, examples, image_options
from vdisk.create import NewDisk, create_image, plan_disk
from vdisk.open import OpenOptions
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk create disk.img --size 1G",
        "vdisk create old.img --chs 615/4/17            # as large as its geometry",
        "vdisk create dos.img --size 504M --profile bios",
        "vdisk create floppy.img --profile 1.44M        # a floppy has a size of its own",
        "vdisk create big.img --size 2T --sector-size 4096",
    )
)
@address_argument
@click.option("--size", type=SIZE, metavar="SIZE", help="Its size: 512, 64K, 1.5G, 20MB, …")
@image_options()
def create(address: str, size: int | None, options: OpenOptions) -> None:
    """Make a new disk in the new file ADDRESS.

    The file is a sparse raw image: it takes up space only as it is written. Its geometry is kept
    with it. A size is rounded up to whole sectors; a file that exists is never written to.
    """
    if size is None and options.chs is None and options.profile is None:
        raise click.UsageError("say how large: --size, --chs or --profile")
    click.echo(create_disk(Path(address), size, options))


def create_disk(path: Path, size: int | None, options: OpenOptions) -> str:
    """Make a disk; the line that says what it is like.  Warns where no record can be kept."""
    new = plan_new(size, options)
    recorded = create_image(path, new, format_given=options.format is not None)
    if size is not None and new.size_bytes != size:
        note(f"{path}: rounded up to whole sectors: {new.size_bytes} bytes")
    if not recorded:
        warn_unrecorded(path, new)
    return (
        f"{path}: {format_size(new.size_bytes)}, geometry {new.geometry}, "
        f"{new.geometry.sector_size} bytes per sector"
    )


def plan_new(size: int | None, options: OpenOptions) -> NewDisk:
    """The disk that these options ask for."""
    return plan_disk(
        size_bytes=size, chs=options.chs, profile=options.profile,
        sector_size=options.sector_size,
    )


def warn_unrecorded(path: Path, new: NewDisk) -> None:
    """Say what a file system without user attributes costs."""
    sector_size = new.geometry.sector_size
    more = f" --sector-size {sector_size}" if sector_size != 512 else ""
    warn(
        f"{path}: this file system cannot keep the geometry with the file; "
        f"give it again each time: --chs {new.geometry}{more}"
    )
