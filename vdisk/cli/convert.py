"""`vdisk convert`: all of one disk into another, of another format perhaps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from vdisk.cli.create import parse_options, warn_unrecorded
from vdisk.cli.ending import ended_by_signals
from vdisk.cli.params import FILE, FORMAT, examples, image_options
from vdisk.cli.progress import progress
from vdisk.convert import convert as convert_disk
from vdisk.convert import plan_conversion
from vdisk.copying import copy_disk
from vdisk.disk import Disk
from vdisk.errors import DiskError, Exists
from vdisk.open import open_disk
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk convert old.vdi new.img",
        "vdisk convert disk.img disk.vdi -o subformat=fixed",
        "vdisk convert disk.vdi/p2 root.img              # a partition becomes a disk",
        "vdisk convert root.img --into disk.img/p2       # and back",
        "vdisk convert --compress disk.img disk.qcow2",
        "vdisk convert --compress disk.img disk.qcow2 -o compression-type=zstd",
        "vdisk convert disk.img disk.vmdk -o subformat=streamOptimized",
        "vdisk convert pc98.hdi flat.img",
    )
)
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("target", metavar="DST", type=FILE)
@click.option(
    "-o", "given", multiple=True, metavar="NAME=VALUE",
    help="An option of DST's format; may be given several times. See vdisk create -o help.",
)
@click.option(
    "--compress", is_flag=True, help="Compress the data: qcow2, and vmdk (streamOptimized)."
)
@click.option("--into", is_flag=True, help="Write over DST, a disk or partition that is there.")
@click.option(
    "--from-format", type=FORMAT, metavar="NAME", help="SRC's format; otherwise it is found out."
)
@image_options()
def convert(
    source: str,
    target: str,
    given: tuple[str, ...],
    compress: bool,
    into: bool,
    from_format: str | None,
    options: OpenOptions,
) -> None:
    """Copy all of the disk SRC, an address, to DST: a new image, or with --into what is there.

    The format of a new image is the one that its name means, or --format; its geometry is SRC's,
    unless --chs or --profile says another. What reads as zeros takes no space. When it is
    interrupted, or DST has no room, a new image is removed again; a disk that was written over
    stays as far as it is written. DST must be as large as SRC, or larger: then the rest of it is
    left as it is.
    """
    reading = replace(NO_OPTIONS, format=from_format, allow_parent=options.allow_parent)
    if into and (compress or given):
        raise click.UsageError("--into makes no image: it takes no -o and no --compress")
    with ended_by_signals(), open_disk(source, options=reading) as disk:
        if into:
            click.echo(_convert_into(disk, target, options))
        else:
            click.echo(_convert_to_new(disk, Path(target), given, options, compress=compress))


def _convert_to_new(
    source: Disk, path: Path, given: tuple[str, ...], options: OpenOptions, *, compress: bool
) -> str:
    if os.path.lexists(path) or path.parent.is_file():
        raise Exists(
            "is there already", path=path, hint="to write over that disk: --into; or name another"
        )
    new = replace(plan_conversion(source, path, options), options=parse_options(given))
    with progress("converting", source.size) as advance:
        recorded = convert_disk(source, path, new, advance, compress=compress)
    if not recorded:
        warn_unrecorded(path, new)
    return f"{path}: {format_size(source.size)} converted"


def _convert_into(source: Disk, address: str, options: OpenOptions) -> str:
    with open_disk(address, writable=True, options=options) as target:
        with _told_as_partial(target), progress("converting", source.size) as advance:
            copy_disk(source, target, advance)
            target.flush()
        return f"{target.address}: {format_size(source.size)} written"


@contextmanager
def _told_as_partial(target: Disk) -> Iterator[None]:
    """Whatever ends the copying, what was there before is not there any more."""
    try:
        yield
    except DiskError as error:
        if error.hint is None:
            error.hint = f"{target.address} is partly written over"
        raise
