"""`vdisk remove`: disks that are not needed any more."""

from __future__ import annotations

from contextlib import ExitStack, closing

import click

from vdisk.cli.addresses import as_partition, by_store
from vdisk.cli.params import FILE, examples
from vdisk.errors import NotFound
from vdisk.holdings import check_holds, holdings
from vdisk.open import open_disk
from vdisk.partitioning.edits import Edits
from vdisk.repartition import change_table
from vdisk.store import Store
from vdisk.stores import store_of

_HINT = "to remove it all the same: --force"


@click.command(
    epilog=examples(
        "vdisk remove drive.img/alpha",
        "vdisk remove --force drive.img/d{0001..1000}   # in one change of the drive",
        "vdisk remove disks/old.img",
        "vdisk remove drive.img/beta/p2                 # takes it out of the partition table",
    )
)
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True, type=FILE)
@click.option("--force", is_flag=True, help="Remove even what holds something recognisable.")
def remove(addresses: tuple[str, ...], force: bool) -> None:
    """Remove each disk ADDRESS: a volume of a drive, an image file, or a partition.

    One that holds something recognisable, such as a file system, is not removed unless --force
    says so; nor is one that is in use. Volumes of one drive are removed all or none.
    """
    partitions = [address for address in addresses if as_partition(address) is not None]
    for group in by_store(address for address in addresses if address not in partitions):
        _remove_disks(group, force=force)
    for address in partitions:
        _remove_partition(address, force=force)


def _remove_disks(addresses: list[str], *, force: bool) -> None:
    """Remove disks of one store."""
    store, _ = store_of(addresses[0])
    with closing(store), ExitStack() as held:
        names = [_shown(store, address) for address in addresses]
        for name in names:
            disk = held.enter_context(store.open(name))  # Which refuses what is in use.
            if not force:
                check_holds(disk, holdings(disk), _HINT)
        store.remove_all(names)


def _shown(store: Store, address: str) -> str:
    shown = store.resolve(address.rstrip("/").rpartition("/")[2])
    if shown is None:
        raise NotFound("no such disk", path=address)
    return shown


def _remove_partition(address: str, *, force: bool) -> None:
    found = as_partition(address)
    assert found is not None
    whole, number = found
    if not force:
        with open_disk(address) as part:
            check_holds(part, holdings(part), _HINT)
    with open_disk(whole, writable=True) as disk:
        change_table(disk, Edits(deletes=(number,)))
