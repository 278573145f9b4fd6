"""Snapshots that an image keeps of its disk: those of every format that can, in the same words.

How they are kept is the format's; how they are found by what a person calls them, and what else of
a disk changes with them, is told here.
"""

from __future__ import annotations

from vdisk.disk_geometry import refitted
from vdisk.errors import Exists, InvalidArgument, NotFound
from vdisk.formats.base import Snapshot
from vdisk.image_disk import ImageDisk

_SHOWN = 20


def list_snapshots(disk: ImageDisk) -> list[Snapshot]:
    """Those in the image, in its order.  Raises Unsupported, Corrupt and HostError."""
    return disk.image.snapshots()


def find_snapshot(disk: ImageDisk, name: str) -> Snapshot:
    """The snapshot of that name, or, where none has it, of that identifier.

    Raises NotFound; InvalidArgument where several have that name, as QEMU allows; and as
    `list_snapshots` does.
    """
    found = list_snapshots(disk)
    named = [snapshot for snapshot in found if snapshot.name == name]
    if len(named) > 1:
        ids = ", ".join(snapshot.id for snapshot in named[:_SHOWN])
        raise InvalidArgument(
            f"has {len(named)} snapshots {name!r}", path=disk.address,
            hint=f"name one by its identifier: {ids}",
        )
    identified = [snapshot for snapshot in found if snapshot.id == name]
    if not named and not identified:
        names = ", ".join(snapshot.name or snapshot.id for snapshot in found[:_SHOWN]) or "none"
        raise NotFound(f"has no snapshot {name!r}", path=disk.address, hint=f"it has: {names}")
    return (named or identified)[0]


def create_snapshot(disk: ImageDisk, name: str) -> None:
    """Keep the disk as it is now under `name`.

    Raises Exists, InvalidArgument for what is no name, Unsupported, ReadOnly and HostError; then
    nothing is changed but for space that may be lost.
    """
    if any(name == snapshot.name for snapshot in list_snapshots(disk)):
        raise Exists(f"has a snapshot {name!r} already", path=disk.address)
    disk.carry_out_all(disk.image.plan_snapshot(name))


def apply_snapshot(disk: ImageDisk, name: str) -> None:
    """Make the disk what it was when that snapshot was taken, its size included.

    What the disk holds now is lost, unless it is in a snapshot.  Raises NotFound, and as
    `create_snapshot` does.
    """
    snapshot = find_snapshot(disk, name)
    plans = disk.image.plan_apply_snapshot(snapshot.id)
    if snapshot.size == disk.size:
        disk.carry_out_all(plans)
        return
    with refitted(disk, snapshot.size):
        disk.carry_out_all(plans)


def delete_snapshot(disk: ImageDisk, name: str) -> None:
    """Forget a snapshot, and give up what only it had.  Raises as `apply_snapshot` does."""
    snapshot = find_snapshot(disk, name)
    disk.carry_out_all(disk.image.plan_delete_snapshot(snapshot.id))
