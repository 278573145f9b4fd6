"""`vdisk create`: a new disk in a new file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import click

from vdisk.cli.console import columns, note, warn
from vdisk.cli.params import FILE, SIZE, address_argument, examples, image_options
from vdisk.create import NewDisk, creatable_format, create_image, plan_disk
from vdisk.geometry import Geometry
from vdisk.open import NO_OPTIONS, OpenOptions, open_image
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk create disk.img --size 1G",
        "vdisk create old.img --chs 615/4/17            # as large as its geometry",
        "vdisk create dos.img --size 504M --profile bios",
        "vdisk create floppy.img --profile 1.44M        # a floppy has a size of its own",
        "vdisk create big.img --size 2T --sector-size 4096",
        "vdisk create disk.vdi --size 20G               # the format that the name means",
        "vdisk create disk.vdi --size 2G -o subformat=fixed",
        "vdisk create disk.vhd --size 2G -o help        # what its format can be told",
        "vdisk create overlay.vdi --parent disk.vdi     # written to instead of it",
        "vdisk create pc98.hdi --profile pc98-4         # the drive of a PC-98",
    )
)
@address_argument
@click.option("--size", type=SIZE, metavar="SIZE", help="Its size: 512, 64K, 1.5G, 20MB, …")
@click.option(
    "-o", "given", multiple=True, metavar="NAME=VALUE",
    help="An option of the format; may be given several times. -o help lists them.",
)
@click.option(
    "--parent", type=FILE, metavar="BASE",
    help="Make an overlay: it reads as BASE, which is left as it is, until it is written.",
)
@image_options()
def create(
    address: str,
    size: int | None,
    given: tuple[str, ...],
    parent: str | None,
    options: OpenOptions,
) -> None:
    """Make a new disk in the new file ADDRESS.

    The format is the one that the file's name means, or raw, which is a sparse file; --format gives
    another. The geometry is kept in the format's header, or with the file. A size is rounded up to
    whole sectors; a file that exists is never written to.
    """
    path = Path(address)
    if "help" in given:
        for line in option_lines(path, options.format):
            click.echo(line)
        return
    if size is None and options.chs is None and options.profile is None and parent is None:
        raise click.UsageError("say how large: --size, --chs or --profile")
    click.echo(create_disk(path, size, options, parse_options(given), parent))


def option_lines(path: Path, format_name: str | None) -> Iterator[str]:
    """The options of the format that `path` and `format_name` mean, for a person."""
    entry = creatable_format(path, format_name)
    if not entry.options:
        yield f"{entry.name} has no options"
        return
    rows = [
        (option.name, option.default, "|".join(option.values) or "size", option.meaning)
        for option in entry.options
    ]
    yield from columns(("OPTION", "DEFAULT", "VALUES", "MEANING"), rows)


def parse_options(given: Iterable[str]) -> dict[str, str]:
    """`-o a=1 -o b=2`, or `-o a=1,b=2`, as {"a": "1", "b": "2"}; a usage error for what is neither.
    """
    found: dict[str, str] = {}
    for text in (part for one in given for part in one.split(",")):
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="-o")
        found[name] = value
    return found


def create_disk(
    path: Path,
    size: int | None,
    options: OpenOptions,
    given: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> str:
    """Make a disk; the line that says what it is like.  Warns where no record can be kept."""
    if parent is None:
        new = plan_new(path, size, options)
    else:
        new = plan_overlay(Path(parent), size, options)
    new = replace(new, options=given or {}, format=options.format)
    recorded = create_image(path, new)
    size_bytes, geometry = made(path, new)
    if size is not None and size_bytes != size:
        unit = "sectors" if size_bytes == new.size_bytes else "cylinders"
        note(f"{path}: rounded up to whole {unit}: {size_bytes} bytes")
    if not recorded:
        warn_unrecorded(path, new)
    return (
        f"{path}: {format_size(size_bytes)}, geometry {geometry}, "
        f"{geometry.sector_size} bytes per sector"
    )


def made(path: Path, new: NewDisk) -> tuple[int, Geometry]:
    """The size in bytes and the geometry of the disk that was made: a format may have chosen them.
    """
    options = replace(new.parent_options, format=new.format)
    if new.parent is not None:
        beneath = Path(os.path.realpath(new.parent)).parent
        options = replace(options, allow_parent=(*options.allow_parent, beneath))
    with open_image(path, writable=False, options=options) as disk:
        stored = disk.image.header_geometry
        return disk.size, stored or new.geometry


def plan_new(path: Path, size: int | None, options: OpenOptions) -> NewDisk:
    """The disk that these options ask for, as an image `path`."""
    return plan_disk(
        size_bytes=size, chs=options.chs, profile=options.profile,
        sector_size=options.sector_size,
        usual_sector_size=creatable_format(path, options.format).sector_size,
    )


def plan_overlay(parent: Path, size: int | None, options: OpenOptions) -> NewDisk:
    """The overlay that these options ask for: where they say nothing, it is as its parent is."""
    of_parent = replace(NO_OPTIONS, allow_parent=options.allow_parent)
    with open_image(parent, writable=False, options=of_parent) as disk:
        sector_size = options.sector_size or disk.sector_size
        same = size is None and options.chs is None and options.profile is None
        chs = str(disk.geometry) if same and disk.choice is not None else options.chs
        new = plan_disk(
            size_bytes=disk.size if same else size, chs=chs, profile=options.profile,
            sector_size=sector_size,
        )
    return replace(new, parent=parent, parent_options=of_parent)


def warn_unrecorded(path: Path, new: NewDisk) -> None:
    """Say what a file system without user attributes costs."""
    sector_size = new.geometry.sector_size
    more = f" --sector-size {sector_size}" if sector_size != 512 else ""
    warn(
        f"{path}: this file system cannot keep the geometry with the file; "
        f"give it again each time: --chs {new.geometry}{more}"
    )
