"""The partition table of an open disk, changed."""

from __future__ import annotations

from collections.abc import Iterable

from vdisk.disk import Disk, Slice
from vdisk.errors import DiskError, NotPermitted
from vdisk.holdings import check_holds
from vdisk.partitioning.draft import Target
from vdisk.partitioning.edits import Edits
from vdisk.partitioning.plan import plan_change
from vdisk.partitioning.steps import Put, Step
from vdisk.recognise import recognise


def change_table(disk: Disk, edits: Edits, *, force: bool = False) -> tuple[str, ...]:
    """Do `edits` on the table of `disk`, durably; sentences about what was done besides.

    A new table over something recognisable needs `force`: without it this is NotPermitted, naming
    what was found.  Raises ReadOnly, and whatever `plan_change` raises; nothing is written then.
    """
    check_is_whole(disk)
    disk.check_writable()
    target = Target(disk.read, disk.size, disk.geometry)
    found = recognise(disk.read, disk.size, disk.sector_size) if edits.new_table else []
    if not force:
        hint = "to put a new table over it all the same: --force"
        check_holds(disk, [one.name for one in found], hint)
    try:
        change = plan_change(target, edits, found)
    except DiskError as error:
        error.path = error.path or disk.address  # The rules of tables know no file.
        raise
    write_steps(disk, change.steps)
    return (*change.notes, *_told_to_kernel(disk))


def _told_to_kernel(disk: Disk) -> tuple[str, ...]:
    """Let the kernel know, where the disk is a whole block device; a sentence if it cannot be."""
    window = disk.window()
    if window is None or window[1] != 0 or window[0].reread_partitions():
        return ()
    return (
        "the kernel goes on using the old table, as one of its partitions is in use: partprobe(8) "
        "or a restart makes it read the new one",
    )


def check_is_whole(disk: Disk) -> None:
    """Raise NotPermitted for a partition: tables belong to whole disks."""
    if isinstance(disk, Slice):
        raise NotPermitted(
            "is a partition, and partition tables are those of whole disks", path=disk.address,
            hint=f"name the disk: {disk.base.address}",
        )


def write_steps(disk: Disk, steps: Iterable[Step]) -> None:
    """Carry out `steps`, each barrier a flush."""
    for step in steps:
        if isinstance(step, Put):
            disk.write(step.offset, step.data)
        else:
            disk.flush()
