"""`vdisk drive`: drives, which are divided into many disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vdisk.cli.console import columns, print_json
from vdisk.cli.info import volume_remark
from vdisk.cli.params import FILE, SIZE, address_argument, examples, json_option
from vdisk.describe_drive import describe_drive
from vdisk.drive_init import init_drive
from vdisk.errors import printable
from vdisk.open import open_drive
from vdisk.units import format_size


@click.group(
    epilog=examples(
        "vdisk drive init drive.img --size 100G",
        "vdisk create drive.img/alpha --size 10G",
        "vdisk mount drive.img mnt                # mnt/alpha; truncate -s 5G mnt/beta",
        "vdisk drive info drive.img",
    )
)
def drive() -> None:
    """Drives: a device, or one large file, that is divided into many disks.

    The layout is that of LVM2: the disks are logical volumes, which lvs shows and vgchange -ay
    activates on any Linux machine.
    """


@drive.command(
    epilog=examples(
        "vdisk drive init drive.img --size 100G   # a new, sparse file",
        "vdisk drive init /dev/sdb --name disks",
        "vdisk drive init --force old.img         # what it holds is lost",
    )
)
@click.argument("path", metavar="FILE|DEVICE", type=FILE)
@click.option("--size", type=SIZE, metavar="SIZE", help="Make a new file of this size.")
@click.option("--name", help="The name of the volume group; otherwise it is that of the file.")
@click.option("--force", is_flag=True, help="Make it over whatever is there.")
@click.option("--extent-size", type=SIZE, metavar="SIZE", help="What volumes are rounded up to.")
@click.option(
    "--metadata-size", type=SIZE, metavar="SIZE",
    help="The least room for each of the two copies of the metadata.",
)
def init(
    path: str, size: int | None, name: str | None, force: bool, extent_size: int | None,
    metadata_size: int | None,
) -> None:  # fmt: skip
    """Make a drive of a new file, or of a file or a block device that is there.

    All that is on it is lost; where that is something recognisable, --force is needed. The metadata
    is kept twice, at the start and at the end, with room for some thousand volumes.
    """
    made = init_drive(
        Path(path), size_bytes=size, name=name, force=force, extent_bytes=extent_size,
        metadata_bytes=metadata_size,
    )
    extents = sum(pv.pe_count for pv in made.vg.pvs)
    click.echo(
        f"{path}: drive {made.vg.name}, {format_size(extents * made.vg.extent_bytes)} free "
        f"({extents} extents of {format_size(made.vg.extent_bytes)})"
    )


@drive.command(
    epilog=examples(
        "vdisk drive info drive.img",
        "vdisk drive info server.img/p2           # a volume group inside an image",
        "vdisk drive info --json drive.img | jq '.map[] | select(.volume == null)'",
    )
)
@address_argument
@json_option
def info(address: str, as_json: bool) -> None:
    """Say what is on the drive at ADDRESS: its volumes, which lies where, and what is free.

    Looks only: it takes no lock, and works while the drive is mounted.
    """
    found = open_drive(address, lock=False)
    try:
        report = describe_drive(found)
    finally:
        found.close()
    if as_json:
        print_json(report)
        return
    for line in _lines(report):
        click.echo(printable(line))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield report["address"]
    for name, text in _facts(report):
        yield f"  {name + ':':<17} {text}"
    for problem in report["problems"]:
        yield f"  problem: {problem}"
    yield ""
    yield from _volume_lines(report)
    yield ""
    yield from _map_lines(report)


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    unit, used = report["extent_bytes"], report["extents"] - report["free_extents"]
    yield "volume group", f"{report['name']} ({report['uuid']})"
    for pv in report["physical_volumes"]:
        yield "physical volume", f"{pv['name']} {pv['address'] or 'missing'} ({pv['uuid']})"
    yield "size", f"{format_size(report['size_bytes'])}, {report['extents']} extents"
    yield "extent", format_size(unit)
    yield "used", f"{format_size(used * unit)}, {used} extents"
    yield "free", f"{format_size(report['free_bytes'])}, {report['free_extents']} extents"
    yield "metadata", (
        f"{format_size(report['metadata_bytes'])}, {report['metadata_copies']} copies, "
        f"commit {report['sequence_number']}"
    )
    if report["read_only"] is not None:
        yield "read-only", report["read_only"]


def _volume_lines(report: dict[str, Any]) -> Iterator[str]:
    if not report["volumes"]:
        yield "No volumes."
        return
    rows = [
        (volume["name"], format_size(volume["size_bytes"]), str(volume["extents"]),
         volume["geometry"] or "-", volume_remark(volume))
        for volume in report["volumes"]
    ]  # fmt: skip
    headers = ("VOLUME", "SIZE", "EXTENTS", "GEOMETRY", "REMARK")
    yield from columns(headers, rows, right=frozenset({1, 2}))


def _map_lines(report: dict[str, Any]) -> Iterator[str]:
    """Where everything lies.  An END is the extent after the last one."""
    rows = [
        (run["physical_volume"], str(run["first"]), str(run["first"] + run["count"]),
         str(run["offset"]), format_size(run["length"]),
         "(free)" if run["volume"] is None else run["volume"])
        for run in report["map"]
    ]  # fmt: skip
    if rows:
        headers = ("DRIVE", "EXTENT", "END", "OFFSET", "SIZE", "VOLUME")
        yield from columns(headers, rows, right=frozenset({1, 2, 3, 4}))
