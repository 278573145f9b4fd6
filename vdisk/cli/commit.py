"""`vdisk commit`: what an overlay holds into its parent."""

from __future__ import annotations

from pathlib import Path

import click

from vdisk.cli.ending import ended_by_signals
from vdisk.cli.params import FILE, examples, image_options
from vdisk.cli.progress import progress
from vdisk.errors import DiskError
from vdisk.open import OpenOptions
from vdisk.overlay import commit as commit_overlay
from vdisk.overlay import empty_overlay


@click.command(
    epilog=examples(
        "vdisk commit overlay.vdi               # its parent has it all, and it is empty again",
        "vdisk commit --remove overlay.vdi      # and then it is gone",
    )
)
@click.argument("overlay", metavar="OVERLAY", type=FILE)
@click.option("--remove", is_flag=True, help="Remove OVERLAY afterwards.")
@image_options()
def commit(overlay: str, remove: bool, options: OpenOptions) -> None:
    """Write all that the image OVERLAY holds into its parent.

    OVERLAY stays, and holds nothing any more: it reads as its parent. When the command is
    interrupted, OVERLAY reads as before, and the command may be given again. Other overlays of the
    same parent are of no use afterwards, since what they were made on is changed.
    """
    path = Path(overlay)
    with ended_by_signals(), progress("committing", None) as advance:
        parent = commit_overlay(path, options, advance)
    if remove:
        _remove(path)
        click.echo(f"{parent}: has what {path} held, which is removed")
    else:
        empty_overlay(path, options)
        click.echo(f"{parent}: has what {path} held")


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise DiskError(
            f"is committed, and cannot be removed: {error.strerror}", path=path
        ) from error
