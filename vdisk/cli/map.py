"""`vdisk map`: V itself, and with `--physical` the step below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from vdisk.cli.console import aligned, print_json_rows
from vdisk.cli.params import address_argument, examples, image_options, json_option
from vdisk.describe import map_row
from vdisk.disk import Disk
from vdisk.errors import printable
from vdisk.extent import Extent
from vdisk.fiemap import Placed, placed
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.units import SECTOR

_NUMBERS = frozenset({0, 1, 2, 3, 6, 9})


@click.command(
    "map",
    epilog=examples(
        "vdisk map disk.img",
        "vdisk map disk.img/p1",
        "vdisk map --physical disk.img               # down to the sectors of the device",
        "vdisk map --json disk.img | jq 'map(select(.kind == \"data\").length) | add'",
    ),
)
@address_argument
@json_option
@click.option("--physical", is_flag=True, help="Go on to the device beneath the host file.")
@image_options()
def map_(address: str, as_json: bool, physical: bool, options: OpenOptions) -> None:
    """Show where each run of the disk at ADDRESS is in its host file.

    A line a run: its sectors [LBA, END) and the C/H/S of the first; whether it is data or a hole
    that reads as zeros; its place in the host file, in bytes. With --physical, also the device that
    holds the host file, and the sector of 512 bytes where the run begins on it: `-`, and why, where
    it has no such place.

    Looks only: it takes no lock, and works while the disk is mounted.
    """
    with open_disk(address, options=options, lock=False) as disk:
        rows = places(disk, physical=physical)
        if as_json:
            print_json_rows(_json(place, physical=physical) for place in rows)
        else:
            for line in _lines(disk, rows, physical=physical):
                click.echo(line)


def places(disk: Disk, *, physical: bool) -> Iterator[Placed]:
    """Every extent of the disk, and its places on the device where `physical` asks for them."""
    for extent in disk.map(0, disk.size):
        if physical:
            yield from placed(extent)
        else:
            yield Placed(extent, None, None, None)


def _json(place: Placed, *, physical: bool) -> dict[str, Any]:
    row = map_row(place.extent)
    if physical:
        row |= {
            "device": place.device,
            "device_offset": place.device_offset,
            "reason": place.reason,
        }
    return row


def _lines(disk: Disk, rows: Iterable[Placed], *, physical: bool) -> Iterator[str]:
    """Lines are printed as they are found, so the widths are those of the largest numbers."""
    headers = ["LBA", "END", "SECTORS", "C/H/S", "KIND", "HOST FILE", "HOST OFFSET"]
    lba = len(str(disk.sectors))
    address = 0 if disk.choice is None else len(_chs(disk, disk.geometry.sectors - 1))
    widths = [max(lba, 3), max(lba, 3), max(lba, 7), max(address, 5), 4, 9, max(lba + 4, 11)]
    if physical:
        headers += ["", "DEVICE", "SECTOR", "REMARK"]
        widths += [2, 8, 12, 0]
    yield aligned(headers, widths, _NUMBERS)
    for place in rows:
        cells = [*_guest_cells(disk, place.extent), *_host_cells(place.extent)]
        if physical:
            cells += _device_cells(place)
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
        yield aligned(cells, [*widths[:-1], 0], _NUMBERS)


def _guest_cells(disk: Disk, extent: Extent) -> list[str]:
    unit = disk.sector_size
    first = extent.guest_offset // unit
    numbers = (_sectors(n, unit) for n in (extent.guest_offset, extent.guest_end, extent.length))
    return [*numbers, _chs(disk, first), str(extent.kind)]


def _sectors(count: int, unit: int) -> str:
    """A number of bytes in sectors, and the bytes left over where there are any."""
    whole, rest = divmod(count, unit)
    return f"{whole}+{rest}" if rest else str(whole)


def _chs(disk: Disk, lba: int) -> str:
    choice = disk.choice
    if choice is None or lba >= choice.geometry.sectors:
        return "-"
    return str(choice.geometry.chs(lba))


def _host_cells(extent: Extent) -> list[str]:
    path = "-" if extent.file is None else printable(str(extent.file.path))
    return [path, "-" if extent.host_offset is None else str(extent.host_offset)]


def _device_cells(place: Placed) -> list[str]:
    sector = "-" if place.device_offset is None else _sectors(place.device_offset, SECTOR)
    return ["->", place.device or "-", sector, place.reason or ""]
