"""`vdisk info`: what a disk is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from vdisk.cli.console import columns, print_json
from vdisk.cli.params import address_argument, examples, image_options, json_option
from vdisk.describe import describe
from vdisk.errors import printable
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk info disk.img",
        "vdisk info disk.img/p2               # a partition is a disk as well",
        "vdisk info drive.img/alpha           # and so is a volume of a drive",
        "vdisk info --json disk.img | jq .geometry",
        "vdisk info --format raw strange.img  # take its bytes as they are",
    )
)
@address_argument
@json_option
@image_options()
def info(address: str, as_json: bool, options: OpenOptions) -> None:
    """Say what the disk at ADDRESS is: its size, its geometry and why, its partitions.

    Looks only: it takes no lock, and works while the disk is mounted or a VM runs from it.
    """
    with open_disk(address, options=options, lock=False) as disk:
        found = describe(disk)
    if as_json:
        print_json(found)
        return
    for line in info_lines(found):
        click.echo(printable(line))


def info_lines(found: dict[str, Any]) -> Iterator[str]:
    """What `describe` found, for a person."""
    yield found["address"]
    for name, text in _facts(found):
        yield f"  {name + ':' if name else '':<17} {text}"
    yield from _geometry_lines(found["geometry"])
    yield ""
    yield from table_lines(found)
    for group in found["volume_groups"]:
        yield ""
        yield from _group_lines(group)
    for problem in found["volume_group_problems"]:
        yield f"  problem: {problem}"


def _group_lines(group: dict[str, Any]) -> Iterator[str]:
    yield f"Volume group: {group['name']} ({group['address']})"
    for problem in group["problems"]:
        yield f"  problem: {problem}"
    rows = [
        (volume["name"], format_size(volume["size_bytes"]), volume_remark(volume))
        for volume in group["volumes"]
    ]
    if rows:
        for line in columns(("VOLUME", "SIZE", "REMARK"), rows, right=frozenset({1})):
            yield f"  {line}"


def volume_remark(volume: dict[str, Any]) -> str:
    """Why a volume cannot be opened, or only be read."""
    if volume["problem"] is not None:
        return f"cannot be opened: {volume['problem']}"
    return "" if volume["read_only"] is None else f"only to be read: {volume['read_only']}"


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    unit = found["sector_size"]
    yield "format", found["format"]
    for name, value in found["format_details"].items():
        for text in _detail(value):
            yield name.replace("_", " "), text
    for path in found["host_files"]:
        if path != found["address"]:
            yield "host file", path
    for path in found["parents"]:
        yield "parent", path
    yield "size", _bytes(found["size_bytes"])
    rest = found["trailing_bytes"]
    more = f", and {rest} bytes that are not a whole one" if rest else ""
    yield "sectors", f"{found['sectors']} of {unit} bytes{more}"
    yield "allocated", _bytes(found["allocated_bytes"])
    geometry = found["geometry"]
    if geometry is None:
        yield "geometry", "none"
        return
    yield "geometry", f"{_counts(geometry)} (source: {geometry['source']})"
    unaddressed = found["unaddressed_sectors"]
    if unaddressed:
        yield "", f"{unaddressed} sectors past the last cylinder, which only LBA reaches"


def _detail(value: Any) -> Iterator[str]:
    """What a format says of itself, a line each: of a list, of each in it."""
    if isinstance(value, list):
        for each in value:
            yield from _detail(each)
    elif isinstance(value, dict):
        yield ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in value.items())
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif value is not None:
        yield str(value)


def _bytes(count: int) -> str:
    readable = format_size(count)
    return readable if count < 1024 else f"{readable} ({count} bytes)"


def _counts(geometry: dict[str, Any]) -> str:
    return "/".join(str(geometry[key]) for key in ("cylinders", "heads", "sectors_per_track"))


def _geometry_lines(geometry: dict[str, Any] | None) -> Iterator[str]:
    if geometry is None:
        return
    yield ""
    yield "What each source of a geometry says; the first that has one wins:"
    rows = [
        (opinion["source"], opinion["geometry"] or "-", opinion["detail"])
        for opinion in geometry["opinions"]
    ]
    for line in columns(("SOURCE", "GEOMETRY", "WHY"), rows):
        yield f"  {line}"


def table_lines(found: dict[str, Any]) -> Iterator[str]:
    """The part of `info_lines` about the partition table."""
    table = found["table"]
    if table is None:
        yield "No partition table."
        return
    identity = f" {table['disk_id']}" if table["disk_id"] else ""
    yield f"Partition table: {table['kind']}{identity}"
    for problem in table["problems"]:
        yield f"  problem: {problem}"
    rows = [_partition_row(partition) for partition in found["partitions"]]
    if rows:
        headers = ("", "START", "END", "SECTORS", "BOOT", "TYPE", "NAME")
        for line in columns(headers, rows, right=frozenset({1, 2, 3})):
            yield f"  {line}"
    for partition in found["partitions"]:
        if partition["problem"] is not None:
            yield f"  problem: p{partition['number']}: {partition['problem']}"


def _partition_row(partition: dict[str, Any]) -> tuple[str, ...]:
    start, sectors = partition["start_lba"], partition["sectors"]
    # Made printable before it is aligned: a guest chose these names.
    named = printable(partition["name"]) or "-"
    kind = printable(partition["type_name"] or partition["type"])
    boot = "yes" if partition["bootable"] else "-"
    number = f"p{partition['number']}"
    return number, str(start), str(start + sectors), str(sectors), boot, kind, named
