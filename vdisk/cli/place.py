"""Which bytes of a disk `read` and `write` mean: where they begin, and how many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from vdisk.cli.params import LBA, SIZE
from vdisk.disk import Disk
from vdisk.errors import InvalidArgument, OutOfRange
from vdisk.geometry import CHS


@dataclass(frozen=True, slots=True)
class Place:
    """What the command line says.  `offset` and `length` are bytes; None was not said."""

    chs: str | None
    lba: int | None
    offset: int | None
    sectors: int | None
    length: int | None

    def check(self) -> None:
        """A usage error where two options say the same thing in two ways."""
        if sum(value is not None for value in (self.chs, self.lba, self.offset)) > 1:
            raise click.UsageError("--chs, --lba and --offset exclude each other")
        if self.sectors is not None and self.length is not None:
            raise click.UsageError("--sectors and --length exclude each other")

    def start(self, disk: Disk) -> int:
        """The offset of the first byte.  OutOfRange where it is not on the disk."""
        if self.chs is not None:
            start = disk.geometry.lba(CHS.parse(self.chs)) * disk.sector_size
        elif self.lba is not None:
            start = self.lba * disk.sector_size
        else:
            start = self.offset or 0
        if start > disk.size:
            raise OutOfRange(
                f"byte {start} is past the end: the disk has {disk.size} bytes, "
                f"{disk.sectors} sectors",
                path=disk.address,
            )
        return start

    def limit(self, disk: Disk) -> int | None:
        """How many bytes, None where nothing is said about it."""
        if self.sectors is not None:
            return self.sectors * disk.sector_size
        return self.length

    def is_sector(self) -> bool:
        """Whether a sector is named, and not how many of them."""
        named = self.chs is not None or self.lba is not None
        return named and self.sectors is None and self.length is None


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--chs`, `--lba`, `--offset`, `--sectors` and `--length`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option("--chs", metavar="C/H/S", help="Begin at this sector, for instance 0/0/1."),
    click.option("--lba", type=LBA, metavar="N", help="Begin at this sector, counted from 0."),
    click.option("--offset", type=SIZE, metavar="BYTES", help="Begin at this byte."),
    click.option("--sectors", type=LBA, metavar="N", help="So many sectors."),
    click.option("--length", type=SIZE, metavar="BYTES", help="So many bytes."),
)


def check_length(disk: Disk, start: int, length: int) -> None:
    """Raise OutOfRange, before anything is moved, where the range is not all on the disk."""
    if start + length > disk.size:
        raise OutOfRange(
            f"{length} bytes from byte {start} are past the end: the disk has {disk.size} bytes, "
            f"{disk.sectors} sectors",
            path=disk.address,
        )


def check_chs(text: str | None) -> None:
    """A usage error for what is no C/H/S address."""
    if text is None:
        return
    try:
        CHS.parse(text)
    except InvalidArgument as error:
        raise click.UsageError(f"--chs: {error}") from error
