"""What a disk holds that would be lost with it, and the refusal to lose it unasked."""

from __future__ import annotations

from collections.abc import Sequence

from vdisk.disk import Disk
from vdisk.errors import DiskError, NotPermitted
from vdisk.recognise import LVM_NAME, recognise
from vdisk.tables.lvm2 import assemble, read_pv


def holdings(disk: Disk) -> list[str]:
    """What is recognised on `disk`, for a person: a drive by its name.  Empty where nothing is."""
    found = [one.name for one in recognise(disk.read, disk.size, disk.sector_size)]
    return [_drive(disk) or name if name == LVM_NAME else name for name in found]


def check_holds(disk: Disk, found: Sequence[str], hint: str) -> None:
    """NotPermitted, which names all that was `found` on `disk`, where that is anything."""
    if found:
        raise NotPermitted(f"holds {' and '.join(found)}", path=disk.address, hint=hint)


def _drive(disk: Disk) -> str | None:
    """A drive by its name and how much is on it; None where its metadata cannot be read."""
    try:
        pv = read_pv(disk.read, disk.size)
        group = next(iter(() if pv is None else assemble([pv])), None)
    except DiskError:
        return None
    if group is None:
        return None
    count = len(group.volumes())
    volumes = "1 volume" if count == 1 else f"{count or 'no'} volumes"
    return f"the drive {group.vg.name} ({volumes})"
