"""`vdisk snapshot`: a disk's state, kept in a new file or inside the image."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import click

from vdisk.cli.console import print_json, print_table
from vdisk.cli.create import create_disk, parse_options
from vdisk.cli.params import FILE, address_argument, examples, image_options, json_option
from vdisk.errors import NotPermitted, printable
from vdisk.formats.base import Snapshot
from vdisk.image_disk import ImageDisk
from vdisk.open import open_image, parse_address
from vdisk.options import OpenOptions
from vdisk.snapshots import apply_snapshot, create_snapshot, delete_snapshot, list_snapshots

_HEADERS = ("ID", "SIZE", "VM STATE", "CREATED", "NAME")
_RIGHT = frozenset({1, 2})


@click.command(
    epilog=examples(
        "vdisk snapshot disk.vdi --to today.vdi   # disk.vdi stays; go on with today.vdi",
        "vdisk commit --remove today.vdi          # keep what was done since",
        "rm today.vdi                             # or forget it",
        "vdisk snapshot disk.qcow2 --create before-upgrade",
        "vdisk snapshot disk.qcow2 --list",
        "vdisk snapshot disk.qcow2 --apply before-upgrade    # what was done since is lost",
        "vdisk snapshot disk.qcow2 --delete before-upgrade",
    )
)
@address_argument
@click.option("--to", "overlay", type=FILE, metavar="OVERLAY", help="Make an overlay: a new file.")
@click.option("--create", "created", metavar="NAME", help="Keep the state inside the image.")
@click.option("--apply", "applied", metavar="NAME", help="Make the disk what it was at NAME.")
@click.option("--delete", "deleted", metavar="NAME", help="Forget NAME.")
@click.option("--list", "listing", is_flag=True, help="List those inside the image.")
@click.option(
    "-o", "given", multiple=True, metavar="NAME=VALUE", help="An option of the overlay's format."
)
@json_option
@image_options()
def snapshot(
    address: str,
    overlay: str | None,
    created: str | None,
    applied: str | None,
    deleted: str | None,
    listing: bool,
    given: tuple[str, ...],
    as_json: bool,
    options: OpenOptions,
) -> None:
    """Keep the state of the image ADDRESS.

    With --to, what is written from now on goes to the new file OVERLAY, which is used instead of
    ADDRESS; ADDRESS must not be changed meanwhile. Its format is the one that its name means, or
    --format. The others are for formats that keep snapshots inside the image, which is qcow2: NAME
    is what a snapshot is called, or its ID where none is called so. --apply loses what is in no
    snapshot, and brings back the size that the disk had.
    """
    asked = [overlay, created, applied, deleted, listing or None]
    if sum(value is not None for value in asked) != 1:
        raise click.UsageError("give one of --to, --create, --apply, --delete and --list")
    path = _whole(address)
    if overlay is not None:
        click.echo(create_disk(Path(overlay), None, options, parse_options(given), str(path)))
    elif listing:
        _list(path, options, as_json=as_json)
    elif created is not None:
        _change(path, options, partial(create_snapshot, name=created))
        click.echo(f"{path}: kept as {printable(created)}")
    elif applied is not None:
        _change(path, options, partial(apply_snapshot, name=applied))
        click.echo(f"{path}: is what it was at {printable(applied)}")
    elif deleted is not None:
        _change(path, options, partial(delete_snapshot, name=deleted))
        click.echo(f"{path}: {printable(deleted)} is forgotten")


def _whole(address: str) -> Path:
    parsed = parse_address(address)
    if parsed.inside:
        raise NotPermitted(
            "is a part of a disk", path=address, hint=f"its image is {parsed.path}"
        )
    return parsed.path


def _change(path: Path, options: OpenOptions, change: Callable[[ImageDisk], None]) -> None:
    with open_image(path, writable=True, options=options) as disk:
        change(disk)
        disk.flush()


def _list(path: Path, options: OpenOptions, *, as_json: bool) -> None:
    with open_image(path, writable=False, options=options, lock=False) as disk:
        found = list_snapshots(disk)
    if as_json:
        print_json([each.describe() for each in found])
    elif found:
        print_table(_HEADERS, [_row(each) for each in found], right=_RIGHT)


def _row(each: Snapshot) -> tuple[str, ...]:
    return each.id, str(each.size), str(each.state_size), _time(each), each.name


def _time(each: Snapshot) -> str:
    if each.created is None:
        return "-"
    return datetime.fromtimestamp(each.created).astimezone().isoformat(timespec="seconds")
