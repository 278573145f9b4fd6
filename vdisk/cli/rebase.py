"""`vdisk rebase`: another parent beneath an overlay."""

from __future__ import annotations

from pathlib import Path

import click

from vdisk.cli.ending import ended_by_signals
from vdisk.cli.params import FILE, examples, image_options
from vdisk.cli.progress import progress
from vdisk.open import OpenOptions
from vdisk.overlay import change_parent
from vdisk.overlay import rebase as rebase_overlay


@click.command(
    epilog=examples(
        "vdisk rebase overlay.vdi --parent other.vdi",
        "vdisk rebase overlay.vdi --no-parent                  # it stands alone from now on",
        "vdisk rebase --unsafe overlay.vdi --parent moved.vdi  # the same parent, elsewhere",
    )
)
@click.argument("overlay", metavar="OVERLAY", type=FILE)
@click.option("--parent", type=FILE, metavar="BASE", help="The image to be beneath it.")
@click.option("--no-parent", is_flag=True, help="Bring all into OVERLAY: it needs no parent then.")
@click.option(
    "--unsafe", is_flag=True,
    help="Only say that BASE is the parent: for one that was moved or made again.",
)
@image_options()
def rebase(
    overlay: str, parent: str | None, no_parent: bool, unsafe: bool, options: OpenOptions
) -> None:
    """Put BASE beneath the image OVERLAY, in the place of its parent.

    OVERLAY reads as it did before: where BASE differs from what was beneath it, that is brought
    into OVERLAY first. With --unsafe nothing is compared and the old parent need not be there;
    what OVERLAY reads as then is for who says so to know.
    """
    if (parent is None) is not no_parent:
        raise click.UsageError("give either --parent BASE or --no-parent")
    path = Path(overlay)
    if unsafe:
        if parent is None:
            raise click.UsageError("--unsafe goes with --parent BASE")
        change_parent(path, Path(parent), options)
    else:
        base = None if parent is None else Path(parent)
        with ended_by_signals(), progress("rebasing", None) as advance:
            rebase_overlay(path, base, options, advance)
    click.echo(f"{path}: " + (f"its parent is {parent}" if parent else "has no parent any more"))
