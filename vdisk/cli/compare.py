"""`vdisk compare`: whether two disks hold the same."""

from __future__ import annotations

import click

from vdisk.cli.params import FILE, FORMAT, examples, image_options
from vdisk.cli.progress import progress
from vdisk.compare import Difference, compare_disks
from vdisk.disk import Disk
from vdisk.errors import DiskError
from vdisk.open import OpenOptions, open_disk

DIFFERENT_STATUS = 1
TROUBLE_STATUS = 2


class _Trouble(click.ClickException):
    """As cmp(1) ends: 1 says that the two differ, so an error has another status."""

    exit_code = TROUBLE_STATUS


@click.command(
    epilog=examples(
        "vdisk compare disk.vdi disk.img",
        "vdisk compare disk.img/p1 backup.img && echo same",
    )
)
@click.argument("one", metavar="A", type=FILE)
@click.argument("other", metavar="B", type=FILE)
@click.option("--strict", is_flag=True, help="Their sizes must be the same, too.")
@click.option("--format-b", type=FORMAT, metavar="NAME", help="B's format; --format is A's.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: the exit status says it.")
@image_options()
def compare(
    one: str,
    other: str,
    strict: bool,
    format_b: str | None,
    quiet: bool,
    options: OpenOptions,
) -> int:
    """Compare all that the disks A and B, two addresses, hold.

    Where one is larger, what it has more must be zeros. The exit status is 0 where they hold the
    same, 1 where they differ, and 2 where that cannot be found out.
    """
    second = OpenOptions(format=format_b, allow_parent=options.allow_parent)
    try:
        with open_disk(one, options=options) as a, open_disk(other, options=second) as b:
            said = _verdict(a, b, strict=strict)
    except DiskError as error:
        raise _Trouble(str(error)) from error
    if said is not None and not quiet:
        click.echo(said)
    return 0 if said is None else DIFFERENT_STATUS


def _verdict(one: Disk, other: Disk, *, strict: bool) -> str | None:
    """What differs; None where nothing does."""
    if strict and one.size != other.size:
        return f"{one.address} has {one.size} bytes, {other.address} has {other.size}"
    with progress("comparing", max(one.size, other.size)) as advance:
        found = compare_disks(one, other, advance)
    return None if found is None else _told(one, other, found)


def _told(one: Disk, other: Disk, found: Difference) -> str:
    larger = one if one.size >= other.size else other
    lba = found.offset // larger.sector_size
    place = f"byte {found.offset}, LBA {lba}"
    if larger.choice is not None and lba < larger.choice.geometry.sectors:
        place += f", C/H/S {larger.choice.geometry.chs(lba)}"
    return (
        f"{one.address} and {other.address} differ at {place}: {found.one:#04x}, {found.other:#04x}"
    )
