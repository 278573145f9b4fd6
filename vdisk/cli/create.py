"""`vdisk create`: new disks, each in a new file, or volumes of a drive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from vdisk.cli.addresses import by_store, split
from vdisk.cli.console import columns, note, warn
from vdisk.cli.params import FILE, SIZE, examples, image_options
from vdisk.cli.progress import progress
from vdisk.create import NewDisk, creatable_format, create_image, plan_disk
from vdisk.drive import Drive
from vdisk.drive_store import new_volume
from vdisk.errors import DiskError, InvalidArgument, NotFound
from vdisk.geometry import Geometry
from vdisk.open import open_drive, open_image, parse_address
from vdisk.options import NO_OPTIONS, OpenOptions
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
        "vdisk create drive.img/alpha --size 10G        # a volume of a drive",
        "vdisk create drive.img/d{0001..1000} --size 1G # many, in one change of the drive",
    )
)
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True, type=FILE)
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
    addresses: tuple[str, ...],
    size: int | None,
    given: tuple[str, ...],
    parent: str | None,
    options: OpenOptions,
) -> None:
    """Make a new disk at each ADDRESS: in a new file, or as a volume of a drive.

    The format is the one that the file's name means, or raw, which is a sparse file; --format gives
    another. The geometry is kept in the format's header, with the file, or in the volume's tags. A
    size is rounded up to whole sectors, that of a volume to whole extents of its drive. What exists
    is never written to. Volumes of one drive are made all or none.
    """
    if "help" in given:
        for line in option_lines(Path(addresses[0]), options.format):
            click.echo(line)
        return
    if size is None and options.chs is None and options.profile is None and parent is None:
        raise click.UsageError("say how large: --size, --chs or --profile")
    if parent is not None and len(addresses) > 1:
        raise click.UsageError("--parent takes one ADDRESS")
    format_options = parse_options(given)
    for group in by_store(addresses):
        drive = open_drive_of(group[0])
        if drive is not None:
            with closing(drive):
                if options.format or parent or given:
                    raise InvalidArgument(
                        "a volume of a drive has no format, no parent and no options of a format",
                        path=group[0],
                    )
                for line in create_volumes(drive, [split(a)[1] for a in group], size, options):
                    click.echo(line)
            continue
        for address in group:
            click.echo(create_disk(Path(address), size, options, format_options, parent))


def open_drive_of(address: str) -> Drive | None:
    """The drive in which a disk at `address` would be a volume, for writing; None for a file."""
    place = split(address)[0]
    try:
        parsed = parse_address(place) if place else None
    except DiskError:
        return None
    if parsed is None:
        return None
    try:
        return open_drive(place, writable=True)
    except NotFound:
        if parsed.inside:
            raise
        return None  # Which the making of a file refuses with more to say.


def create_volumes(
    drive: Drive, names: Sequence[str], size: int | None, options: OpenOptions
) -> Iterator[str]:
    """Make volumes in one commit; a line that says what each is like."""
    new = plan_volume(drive, size, options)
    unit = new.geometry.sector_size
    volume = new_volume("", new.size_bytes, new.geometry, unit)
    bytes_each = drive.group.vg.extents_of(new.size_bytes) * drive.group.vg.extent_bytes
    with progress("clearing", bytes_each * len(names)) as advance:
        drive.create([replace(volume, name=name) for name in names], advance)
    if bytes_each != (size or new.size_bytes):
        note(f"{drive.address}: rounded up to whole extents: {bytes_each} bytes")
    for name in names:
        yield (
            f"{drive.address}/{name}: {format_size(bytes_each)}, geometry {new.geometry}, "
            f"{unit} bytes per sector"
        )


def plan_volume(drive: Drive, size: int | None, options: OpenOptions) -> NewDisk:
    """The volume that these options ask for.

    Where only the size is given, the geometry is that of whole extents.
    """
    if size is not None and options.chs is None:
        size = drive.group.vg.extents_of(size) * drive.group.vg.extent_bytes
    return _plan(size, options)


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

    Names are ours, with hyphens, or the same as QEMU writes them, with underscores.
    """
    found: dict[str, str] = {}
    for text in (part for one in given for part in one.split(",")):
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="-o")
        found[name.replace("_", "-")] = value
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
    return _plan(size, options, creatable_format(path, options.format).sector_size)


def _plan(size: int | None, options: OpenOptions, usual_sector_size: int | None = None) -> NewDisk:
    return plan_disk(
        size_bytes=size, chs=options.chs, profile=options.profile,
        sector_size=options.sector_size, usual_sector_size=usual_sector_size,
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
