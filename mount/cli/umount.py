"""`vdisk umount`: the end of a mount."""

from __future__ import annotations

import sys

import click

from mount.unmount import find, unmount
from vdisk.cli.console import note
from vdisk.cli.params import FILE, examples


@click.command(
    epilog=examples(
        "vdisk umount mnt",
        "vdisk umount disk.img       # wherever it is mounted",
        "vdisk umount --lazy mnt     # although it is in use: it ends when its last user does",
    )
)
@click.argument("target", metavar="MOUNTPOINT|SOURCE", type=FILE)
@click.option("-l", "--lazy", is_flag=True, help="Take the mount away even while it is in use.")
def umount(target: str, lazy: bool) -> None:
    """End the mount on MOUNTPOINT, or of SOURCE.

    Returns when everything written is on disk and the host files are closed and unlocked. A mount
    whose process was killed is cleaned up.
    """
    unmount(find(target), lazy=lazy, tell=_tell)


def _tell(text: str) -> None:
    """Something to pass the time with; scripts do not want it."""
    if sys.stderr is not None and sys.stderr.isatty():
        note(text)
