"""LVM2: volume groups on disk, read and changed without LVM2.

Nothing here opens a file or moves a volume's bytes.  Bytes come through a `Reader`, answers are
values, and a change is a list of `Step`s that the caller carries out in order.

    pv = read_pv(read, size)                    None where the drive has no label
    (group,) = assemble([pv])                   a group may lie on several drives
    group.vg, group.problems, group.missing
    for volume in group.volumes():
        volume.name, volume.size, volume.problem, volume.read_only
    volume_map = VolumeMap(group.vg, volume.lv) where volume.problem is None
    volume_map.window() or volume_map.runs(offset, length)

    vg = create(group.vg, [NewVolume("alpha", 10 << 30)], time=now, host=name)
    vg = rename(vg, "beta", "data")             changes follow one another ...
    commit = group.commit(vg, time=now, host=name)
    for step in commit.steps: ...               ... and are one commit
    group = commit.group

    drive = new_drive(size, "drive", time=now, host=name)
    for step in drive.steps: ...

Where what is in the package is told: `label`, `area`, `ring` and `config` know what is on disk,
`model` what it means, `load` and `dump` go from one to the other, `physical` and `group` find the
text that counts, `change`, `allocate` and `ranges` decide, `commit` and `initialise` say what to
write.
"""

from __future__ import annotations

from vdisk.tables.lvm2.allocate import free_ranges
from vdisk.tables.lvm2.change import NewVolume, create, remove, rename, resize, set_tags
from vdisk.tables.lvm2.geometry_tags import geometry_of, with_geometry
from vdisk.tables.lvm2.group import Commit, Group, assemble
from vdisk.tables.lvm2.initialise import DRIVE_BYTES_MIN, NewDrive, new_drive
from vdisk.tables.lvm2.label import LABEL_SECTORS, Label, find_label
from vdisk.tables.lvm2.mapping import Run, VolumeMap
from vdisk.tables.lvm2.model import (
    LogicalVolume,
    PhysicalVolume,
    PvRange,
    Segment,
    Stripe,
    VolumeGroup,
)
from vdisk.tables.lvm2.names import check_group_name, check_tag, check_volume_name
from vdisk.tables.lvm2.physical import FoundPv, MetadataArea, is_unchanged, read_pv
from vdisk.tables.lvm2.ranges import difference, joined, ranges_of
from vdisk.tables.lvm2.space import Space, space
from vdisk.tables.lvm2.steps import Barrier, Put, Step, Zero
from vdisk.tables.lvm2.volumes import Volume

__all__ = [
    "DRIVE_BYTES_MIN",
    "LABEL_SECTORS",
    "Barrier",
    "Commit",
    "FoundPv",
    "Group",
    "Label",
    "LogicalVolume",
    "MetadataArea",
    "NewDrive",
    "NewVolume",
    "PhysicalVolume",
    "Put",
    "PvRange",
    "Run",
    "Segment",
    "Space",
    "Step",
    "Stripe",
    "Volume",
    "VolumeGroup",
    "VolumeMap",
    "Zero",
    "assemble",
    "check_group_name",
    "check_tag",
    "check_volume_name",
    "create",
    "difference",
    "find_label",
    "free_ranges",
    "geometry_of",
    "is_unchanged",
    "joined",
    "new_drive",
    "ranges_of",
    "read_pv",
    "remove",
    "rename",
    "resize",
    "set_tags",
    "space",
    "with_geometry",
]
