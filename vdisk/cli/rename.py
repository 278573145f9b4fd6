"""`vdisk rename`: a disk under another name."""

from __future__ import annotations

import os
from contextlib import closing

import click

from vdisk.cli.addresses import as_partition, split
from vdisk.cli.params import address_argument, examples
from vdisk.errors import Exists, InvalidArgument, NotFound
from vdisk.open import open_disk
from vdisk.partitioning.edits import Edits
from vdisk.repartition import change_table
from vdisk.stores import store_of


@click.command(
    epilog=examples(
        "vdisk rename drive.img/beta data",
        "vdisk rename drive.img/beta drive.img/data   # the same",
        "vdisk rename disks/a.img b.img",
        "vdisk rename drive.img/data/p1 boot          # the name that a GPT keeps",
    )
)
@address_argument
@click.argument("name", metavar="NAME")
def rename(address: str, name: str) -> None:
    """Call the disk at ADDRESS by another NAME, in the same place.

    A disk that is there is not overwritten. An image keeps its extension where NAME has none.
    """
    partition = as_partition(address)
    if partition is not None:
        whole, number = partition
        with open_disk(whole, writable=True) as disk:
            change_table(disk, Edits(names=((number, name),)))
        return
    store, old = store_of(address)
    with closing(store):
        shown, new = store.resolve(old), _new_name(address, name)
        if shown is None:
            raise NotFound("no such disk", path=address)
        if store.resolve(new) not in (None, shown):
            raise Exists("is there already", path=f"{store.source}/{new}", hint="remove it first")
        with store.open(shown):  # Which refuses what is in use.
            store.rename(shown, new)


def _new_name(address: str, name: str) -> str:
    """`name` without the place it is in, which must be that of `address`."""
    place, new = split(name)
    if place and os.path.abspath(place) != os.path.abspath(split(address)[0] or "."):
        raise InvalidArgument(
            "a disk is renamed where it is", path=name,
            hint="vdisk copy makes one elsewhere; or give the name alone",
        )
    return new
