"""What command lines are made of: kinds of arguments, and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from vdisk.errors import DiskError
from vdisk.options import OpenOptions
from vdisk.units import SIZE_BYTES_MAX, parse_size


def _failed(error: DiskError) -> click.BadParameter:
    hint = "" if error.hint is None else f" ({error.hint})"
    return click.BadParameter(f"{error.message}{hint}")


class Size(click.ParamType[int]):
    """A number of bytes as losetup takes it: 512, 64K, 1.5G, 20MB."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except DiskError as error:
            raise _failed(error) from error


class GeometryText(click.ParamType[str]):
    """A geometry C/H/S, checked but for its sector size, which another option may give."""

    name = "C/H/S"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        from vdisk.chs import SECTOR_SIZES, Geometry

        try:
            Geometry.parse(value, sector_size=SECTOR_SIZES[0])
        except DiskError as error:
            raise _failed(error) from error
        return str(value)


class ProfileName(click.ParamType[str]):
    """The name of a geometry profile."""

    name = "profile"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        from vdisk.profiles import profile

        try:
            return profile(value).name
        except DiskError as error:
            raise _failed(error) from error

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from vdisk.profiles import PROFILES

        wanted = incomplete.lower()
        return [
            CompletionItem(profile.name, help=profile.summary)
            for profile in PROFILES.values()
            if profile.name.lower().startswith(wanted)
        ]


class SectorSize(click.ParamType[int]):
    """The bytes of a sector: a power of two, 128 to 4096."""

    name = "bytes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        from vdisk.chs import check_sector_size

        try:
            size = value if isinstance(value, int) else parse_size(value)
            return check_sector_size(size)
        except DiskError as error:
            raise _failed(error) from error


class FormatName(click.ParamType[str]):
    """The name of an image format that this version opens."""

    name = "format"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        from vdisk.formats.registry import FORMATS

        if value not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise click.BadParameter(f"format {value!r} is not one this version opens ({known})")
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from vdisk.formats.registry import FORMATS

        return [CompletionItem(name) for name in FORMATS if name.startswith(incomplete)]


SIZE = Size()
GEOMETRY = GeometryText()
PROFILE = ProfileName()
SECTOR_SIZE = SectorSize()
FORMAT = FormatName()
LBA = click.IntRange(0, SIZE_BYTES_MAX)
FILE = click.Path()
"""A path that completes as a file; whether it is there is found out where it is opened."""

address_argument = click.argument("address", metavar="ADDRESS", type=FILE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def image_options(
    *, geometry_name: str = "--chs"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options by which the user says what an image is, for a parameter `options`.

    The command is called with them as one `OpenOptions`.  `geometry_name` is what the geometry is
    called where `--chs` means an address.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        gathered = _gathering(function, geometry_name)
        for decorator in reversed(_image_decorators(geometry_name)):
            gathered = decorator(gathered)
        return gathered

    return decorate


def _gathering(function: Callable[..., Any], geometry_name: str) -> Callable[..., Any]:
    """`function`, called with one `options` in the place of the five."""

    @wraps(function)  # With the parameters that click keeps on it.
    def command(
        format_name: str | None,
        geometry: str | None,
        sector_size: int | None,
        profile: str | None,
        allow_parent: tuple[str, ...],
        **others: Any,
    ) -> Any:
        if geometry is not None and profile is not None:
            raise click.UsageError(f"{geometry_name} and --profile exclude each other")
        folders = tuple(Path(folder) for folder in allow_parent)
        options = OpenOptions(format_name, geometry, sector_size, profile, folders)
        return function(options=options, **others)

    return command


def _image_decorators(geometry_name: str) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--format", "format_name", type=FORMAT, metavar="NAME",
            help="The image's format, for instance raw or vdi; otherwise it is found out.",
        ),
        click.option(
            geometry_name, "geometry", type=GEOMETRY,
            help="The disk's geometry, for instance 1024/16/63.",
        ),
        click.option(
            "--sector-size", type=SECTOR_SIZE, metavar="N",
            help="Bytes per sector: a power of two, 128 to 4096.",
        ),
        click.option(
            "--profile", type=PROFILE, metavar="NAME",
            help="Derive the geometry from the size by this rule: ata, bios, large, fdisk, …",
        ),
        click.option(
            "--allow-parent", type=click.Path(file_okay=False), metavar="FOLDER", multiple=True,
            help="Follow the names in an image into this folder too, not only its own.",
        ),
    ]  # fmt: skip


def examples(*lines: str) -> str:
    """The end of a command's help: what one types, and what it does after a `#`."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
