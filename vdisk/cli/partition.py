"""`vdisk partition`: a disk's partition table, shown and changed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import click

from vdisk.cli.console import note, print_json
from vdisk.cli.info import table_lines
from vdisk.cli.params import address_argument, examples, image_options, json_option
from vdisk.describe import describe_table
from vdisk.disk import Disk
from vdisk.errors import DiskError, printable
from vdisk.open import open_disk
from vdisk.options import OpenOptions
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.placing import Alignment, Unit
from vdisk.partitions import scan_table
from vdisk.repartition import change_table, check_is_whole
from vdisk.units import parse_size

REST = ("rest", "100%")
_SECTORS = re.compile(r"([0-9]{1,10})s?", re.ASCII)


class AddText(click.ParamType[Add]):
    """SIZE[:TYPE[:NAME]], where SIZE may be `rest`; a name may have colons in it."""

    name = "partition"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Add:
        if isinstance(value, Add):
            return value
        size, _, more = value.partition(":")
        kind, _, named = more.partition(":")
        return Add(None if size.lower() in REST else _size(size), kind or None, named)


class Numbered(NamedTuple):
    """A partition's number and what is said of it."""

    number: int
    text: str


class NumberedText(click.ParamType[Numbered]):
    """N:TEXT, N a partition's number; the text is `default` where it may be left out."""

    name = "number:text"

    def __init__(self, default: str | None = None) -> None:
        self.default = default

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Numbered:
        if isinstance(value, Numbered):
            return value
        number, colon, text = value.partition(":")
        if not colon and self.default is not None:
            text = self.default
        elif not colon:
            raise click.BadParameter(f"{value!r} is not a partition's number, a colon and more")
        return Numbered(NUMBER.convert(number, param, ctx), text)


class AlignmentText(click.ParamType[Alignment]):
    """`cylinder`, `track`, a size such as 1MiB, or a number of sectors, which needs the disk."""

    name = "alignment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value in [unit.value for unit in Unit]:
            return Unit(value)
        if isinstance(value, str) and _SECTORS.fullmatch(value):
            return value
        return _size(value) if isinstance(value, str) else value


class Flag(click.ParamType[Numbered]):
    """N, N:on or N:off."""

    name = "number[:on|off]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Numbered:
        found = NumberedText("on").convert(value, param, ctx)
        if found.text not in ("on", "off"):
            raise click.BadParameter(f"{found.text!r} is neither on nor off")
        return found


NUMBER = click.IntRange(1, 1 << 15)
ADD = AddText()


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except DiskError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    epilog=examples(
        "vdisk partition disk.img                                  # only show it",
        "vdisk partition disk.img --table gpt --add 512M:esp:boot --add rest:linux:root",
        "vdisk partition disk.img --table mbr --add 100M:fat16 --add rest --bootable 1",
        "vdisk partition old.img --table mbr --add rest:fat16 --align cylinder",
        "vdisk partition disk.img --table mbr --add 1G --extended rest --logical 2G:swap",
        "vdisk partition disk.img --delete 3 --add 20M:swap --type 2:83",
        "vdisk partition disk.img --name 1:root --bootable 1:off   # and 2 stays as it is",
    )
)
@address_argument
@click.option(
    "--table", "new_table", type=click.Choice(["mbr", "gpt"]),
    help="Begin with a new, empty table of this kind.",
)  # fmt: skip
@click.option(
    "--delete", "deletes", type=NUMBER, metavar="N", multiple=True, help="Take partition N out.",
)  # fmt: skip
@click.option(
    "--add", "adds", type=ADD, metavar="SIZE[:TYPE[:NAME]]", multiple=True,
    help="Add a partition in the first free place with room for it.",
)  # fmt: skip
@click.option(
    "--extended", type=ADD, metavar="SIZE", help="Add an extended partition to an MBR.",
)  # fmt: skip
@click.option(
    "--logical", "logicals", type=ADD, metavar="SIZE[:TYPE]", multiple=True,
    help="Add a partition inside the extended one.",
)  # fmt: skip
@click.option(
    "--type", "types", type=NumberedText(), metavar="N:TYPE", multiple=True,
    help="Change the type of partition N.",
)  # fmt: skip
@click.option(
    "--name", "names", type=NumberedText(), metavar="N:NAME", multiple=True,
    help="Change the name of partition N of a GPT.",
)  # fmt: skip
@click.option(
    "--bootable", "bootables", type=Flag(), metavar="N[:on|off]", multiple=True,
    help="Set or clear the bootable flag of partition N.",
)  # fmt: skip
@click.option(
    "--align", type=AlignmentText(), metavar="1MiB|cylinder|track|N",
    help="Where added partitions may begin: N is a size, or a number of sectors.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Make a new table over whatever is there.")
@json_option
@image_options()
def partition(
    address: str, align: Alignment | str | None, force: bool, as_json: bool, options: OpenOptions,
    **wanted: Any,
) -> None:  # fmt: skip
    """Show the partition table of the disk at ADDRESS, or change it and show what it is then.

    All that one command asks for is one change, checked as a whole before anything is written. In
    whatever order it is typed, it is done in this one: --table; --delete, by the numbers as they
    are; --add, --extended, --logical; then --type, --name and --bootable, by the numbers as they
    are then. What is not named stays as it is, to the byte: boot code, ids, attributes.

    \b
    SIZE is 512, 64K, 1.5G, …, or `rest`: all of the largest free place.
    TYPE is two hexadecimal digits (MBR), a GUID (GPT), or for both one of
    linux, swap, esp, lvm, raid, home, fat12, fat16, fat32, ntfs, msdata,
    msr, bios-boot, extended, … or the name that info shows.

    An MBR has four entries. When a command would need more, it makes the last one an extended
    partition of all that is free, with the rest as logical ones in it. Its C/H/S addresses are
    those of the disk's geometry. --align cylinder and --align track are the layouts of DOS.
    """
    edits = _edits(**wanted)
    if edits.is_empty:
        _show_only(address, options, as_json=as_json)
        return
    with open_disk(address, writable=True, options=options) as disk:
        check_is_whole(disk)
        notes = change_table(disk, _aligned(edits, align, disk), force=force)
        for text in notes:
            note(f"{address}: {text}")
        _show(disk, as_json=as_json)


def _edits(
    new_table: Any, deletes: tuple[int, ...], adds: tuple[Add, ...], extended: Add | None,
    logicals: tuple[Add, ...], types: tuple[Numbered, ...], names: tuple[Numbered, ...],
    bootables: tuple[Numbered, ...],
) -> Edits:  # fmt: skip
    if new_table is not None and deletes:
        raise click.UsageError("--table and --delete exclude each other: a new table is empty")
    return Edits(
        new_table=new_table,
        deletes=deletes,
        adds=adds,
        extended=extended,
        logicals=logicals,
        types=types,
        names=names,
        bootables=tuple((number, text == "on") for number, text in bootables),
    )


def _aligned(edits: Edits, align: Alignment | str | None, disk: Disk) -> Edits:
    """`edits` with the alignment, which the sectors of the disk make a number of bytes."""
    if isinstance(align, str):
        align = int(align.rstrip("s")) * disk.sector_size
    return replace(edits, align=align)


def _show_only(address: str, options: OpenOptions, *, as_json: bool) -> None:
    """Print the table; looks only, as `info` does."""
    with open_disk(address, options=options, lock=False) as disk:
        check_is_whole(disk)
        _show(disk, as_json=as_json)


def _show(disk: Disk, *, as_json: bool) -> None:
    found = describe_table(scan_table(disk).table)
    if as_json:
        print_json(found)
        return
    for line in table_lines(found):
        click.echo(printable(line))
