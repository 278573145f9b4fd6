"""`vdisk mount`: disks and their parts as files in a folder."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from mount import live
from mount.options import SERVERS, MountOptions, parse_options
from mount.session import Request, mount_in_background, mount_in_foreground
from vdisk.cli.console import note, warn
from vdisk.cli.create import create_disk, plan_new
from vdisk.cli.params import FILE, SIZE, examples, image_options
from vdisk.errors import Busy, DiskError, Exists, InvalidArgument, NotFound, Unsupported
from vdisk.open import open_image, parse_address
from vdisk.options import OpenOptions
from vdisk.units import format_size


@click.command(
    epilog=examples(
        "vdisk mount --create 1G disk.img mnt   # makes the disk first, and mnt",
        "vdisk mount disk.img mnt               # mnt/disk, mnt/disk.p1, mnt/.vdisk/disk",
        "vdisk mount disks/ mnt                 # every image in it; a new file is a new disk",
        "vdisk mount -r a.img b.img mnt         # several images, for reading only",
        "vdisk mount --snapshot disk.img mnt    # try something out: disk.img stays as it is",
        "vdisk mount -o allow_other,uid=1000 disk.img mnt",
        "vdisk mount --allow-parent bases/ overlays/ mnt",
    )
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=FILE)
@click.argument("mountpoint", type=FILE)
@click.option(
    "--create", "create_size", type=SIZE, metavar="SIZE",
    help="Make SOURCE, a new disk of this size, unless it is there and has that size.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay until the mount ends.")
@click.option("-d", "--debug", is_flag=True, help="Say what the kernel asks; stays, as -f does.")
@click.option("-r", "--read-only", is_flag=True, help="Allow no changes; the same as -o ro.")
@click.option(
    "--snapshot", is_flag=True,
    help="Leave the images as they are: what is written is forgotten when the mount ends.",
)
@click.option(
    "-o", "--options", "mount_options", metavar="OPTION,...", multiple=True,
    help="Mount options: ro, allow_other, uid=, gid=, umask=, mode=, nonempty, server=, "
    "nopassthrough, snapshot, format=, chs=, sector-size=, profile=, allow-parent=, and those "
    "that any mount has.",
)
@click.option(
    "--server", type=click.Choice(SERVERS), help="Which FUSE server carries the requests: our own, "
    "pyfuse3, or the first of them that can start (auto, the default).",
)
@click.option("--pid-file", type=FILE, metavar="FILE", help="Write the process's number to FILE.")
@image_options()
def mount(
    sources: tuple[str, ...],
    mountpoint: str,
    create_size: int | None,
    foreground: bool,
    debug: bool,
    read_only: bool,
    snapshot: bool,
    mount_options: tuple[str, ...],
    server: str | None,
    pid_file: str | None,
    options: OpenOptions,
) -> None:
    """Show the disks of each SOURCE, an image or a folder of images, in the folder MOUNTPOINT.

    Returns when the mount answers; a process stays behind and serves it until `vdisk umount`.
    MOUNTPOINT is made when it is missing. `NAME` is a whole disk, `NAME.p1` its first partition;
    `.vdisk/NAME` has its geometry, its map, and every sector by its C/H/S address.
    """
    asked = _merged(parse_options(mount_options), options, read_only=read_only)
    asked.server = server or asked.server
    asked.snapshot = asked.snapshot or snapshot
    if asked.snapshot and (asked.read_only or create_size is not None):
        raise click.UsageError("--snapshot excludes --create and read-only")
    request = Request(
        [Path(source) for source in sources], Path(mountpoint), asked,
        None if pid_file is None else Path(pid_file), debug,
    )
    check_mountpoint(request.mountpoint)
    stay = foreground or debug
    made, told = (False, None) if create_size is None else _create(request, create_size)
    if told is not None and stay:
        note(told)
    try:
        start(request, foreground=stay)
    except (DiskError, OSError):
        if made:
            _unmake(request.sources[0])
        raise
    if told is not None and not stay:  # An error is one line, and this would be another.
        note(told)


def start(request: Request, *, foreground: bool = False) -> None:
    """Mount what is asked for, after a look at what can be told before there is a daemon."""
    for source in request.sources:
        check_source(source)
    if not foreground:
        for warning in mount_in_background(request):
            warn(warning)
        return
    if request.debug:
        logging.getLogger().setLevel(logging.DEBUG)
    mount_in_foreground(request, warn)


def _merged(found: MountOptions, options: OpenOptions, *, read_only: bool) -> MountOptions:
    """`-o` and the options of the command line: of the same one given twice, the latter counts."""
    image = found.image
    if options.chs is not None or options.profile is not None:
        image = replace(image, chs=options.chs, profile=options.profile)
    found.image = replace(
        image,
        format=options.format or image.format,
        sector_size=options.sector_size or image.sector_size,
        allow_parent=(*image.allow_parent, *options.allow_parent),
    )
    if found.image.chs is not None and found.image.profile is not None:
        raise InvalidArgument("mount options chs= and profile= exclude each other")
    found.read_only = found.read_only or read_only
    return found


def _create(request: Request, size: int) -> tuple[bool, str]:
    """Make the disk that is to be mounted, or not where it is there; and say which of the two.

    Raises Exists where what is there is something else.
    """
    if len(request.sources) != 1:
        raise click.UsageError("--create takes exactly one SOURCE")
    path, options = request.sources[0], request.options.image
    if not os.path.lexists(path):
        if request.options.read_only:
            raise click.UsageError("--create and read-only exclude each other")
        return True, create_disk(path, size, options)
    if path.is_dir():
        raise Exists("is a folder: no disk can be created in its place", path=path)
    with open_image(path, writable=False, options=options, lock=False) as disk:
        there, wanted = disk.size, plan_new(path, size, options).size_bytes
        unit = disk.image.size_unit
    if there != -(-wanted // unit) * unit:
        raise Exists(
            f"exists, and is {format_size(there)} ({there} bytes) and not {wanted} bytes large",
            path=path,
            hint="mount it without --create; vdisk resize changes its size",
        )
    return False, f"{path}: is there already, and is used as it is"


def _unmake(path: Path) -> None:
    """Remove a disk that was made in vain.  One that holds anything was mounted, and stays."""
    with suppress(OSError):
        if path.stat().st_blocks == 0:
            path.unlink()


def check_mountpoint(path: Path) -> None:
    """Raise Busy, naming what is mounted on `path`, where that is a vdisk mount already."""
    where = os.path.realpath(path)
    for mountpoint, source, _ in live.mounted():
        if mountpoint == where:
            raise Busy(
                f"{source} is mounted there already", path=path,
                hint=f"to end it: vdisk umount {path}",
            )


def check_source(source: Path) -> None:
    """Say what is wrong with a source before a daemon is started for it.  Raises DiskError."""
    if source.is_dir():
        return
    try:
        address = parse_address(str(source))
    except NotFound as error:
        error.hint = error.hint or f"to make it: vdisk mount --create SIZE {source} MOUNTPOINT"
        raise
    if address.inside:
        raise Unsupported(
            "is a part of a disk", path=source,
            hint=f"mount {address.path}; its partitions appear beside it",
        )
