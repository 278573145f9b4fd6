"""A volume group as it is found on its drives, and what to write to change it.

The newest text of the group wins, as in LVM2: the one with the highest sequence number of those
that a sound header points to.  A text whose header is damaged counts only where no other does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from vdisk.errors import Corrupt, DiskError, InvalidArgument, NotPermitted
from vdisk.tables.lvm2.commit import AreaOf, commit_steps, committed
from vdisk.tables.lvm2.dump import dump
from vdisk.tables.lvm2.fields import UINT32_MAX
from vdisk.tables.lvm2.label import LABEL_SECTORS
from vdisk.tables.lvm2.layout import Area
from vdisk.tables.lvm2.load import load
from vdisk.tables.lvm2.model import STRIPED_TYPES, VolumeGroup
from vdisk.tables.lvm2.physical import FoundPv, MetadataArea
from vdisk.tables.lvm2.steps import Step
from vdisk.tables.lvm2.volumes import Volume, volumes
from vdisk.units import SECTOR

_UNDERSTOOD_TYPES = (
    *STRIPED_TYPES, "zero", "error", "mirror", "snapshot", "thin", "thin-pool", "cache",
    "cache-pool", "writecache", "vdo", "vdo-pool", "integrity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group and those of its physical volumes that are there.

    `text` is the one that `vg` was read from; `problems` are about its copies and its drives, one
    sentence each.
    """

    vg: VolumeGroup
    text: bytes
    pvs: tuple[FoundPv, ...]
    problems: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The UUIDs of the physical volumes that are not there."""
        present = {pv.label.pv_id for pv in self.pvs}
        return tuple(pv.id for pv in self.vg.pvs if pv.id not in present)

    def volumes(self) -> tuple[Volume, ...]:
        """The volumes that are not hidden, with the reasons of those that cannot be opened."""
        return volumes(self.vg, {pv.label.pv_id: pv.size for pv in self.pvs})

    def change_problem(self) -> str | None:
        """Why the group cannot be changed here, as a sentence; None where it can.

        What is inside its volumes may still be written.
        """
        if self.missing:
            return f"the physical volume {self.missing[0]} of {self.vg.name} is missing"
        return (
            _setting_problem(self.vg)
            or _type_problem(self.vg)
            or _conflict(self)
            or _layout_problem(self)
        )

    def commit(
        self, vg: VolumeGroup, *, time: int, host: str, description: str = "Written by vdisk."
    ) -> Commit:
        """What to write so that `vg`, made of this group's by changes, is the group.

        `time` is now, in seconds since 1970, and `host` this machine's name.  Until the steps are
        carried out, nothing has happened.  Raises NotPermitted where the group cannot be changed,
        NoSpace where the text does not fit into the metadata areas, and what `load` raises where
        `vg` contradicts itself.
        """
        problem = self.change_problem()
        if problem is not None:
            raise NotPermitted(problem)
        if vg.id != self.vg.id or vg.name != self.vg.name:
            raise InvalidArgument("a commit cannot make another volume group of this one")
        vg = replace(vg, seqno=self.vg.seqno + 1)
        text = dump(vg, description=description, host=host, time=time)
        if load(text) != vg:  # What cannot be read back must never be written.
            raise Corrupt(f"the text of {vg.name} would not say what was meant")
        areas = self._areas()
        steps = commit_steps(areas, text)
        return Commit(steps, self._after(vg, text, committed(areas, text)))

    def _areas(self) -> tuple[AreaOf, ...]:
        """The metadata areas to write: first those whose loss would lose nothing.

        Should the writing of one be cut short, another then has the group.
        """
        current = [
            AreaOf(pv.label.pv_id, area)
            for pv in self.pvs
            for area in pv.areas
            if not area.header.ignored
        ]
        return tuple(sorted(current, key=lambda one: _worth(one.area, self.text)))

    def _after(
        self, vg: VolumeGroup, text: bytes, areas: dict[tuple[str, int], MetadataArea]
    ) -> Group:
        pvs = tuple(
            replace(
                pv,
                areas=tuple(
                    areas.get((pv.label.pv_id, area.header.area.offset), area) for area in pv.areas
                ),
            )
            for pv in self.pvs
        )
        return Group(vg, text, pvs, _drive_problems(pvs))


@dataclass(frozen=True, slots=True)
class Commit:
    """The steps of a commit in order, and the group once they are carried out."""

    steps: tuple[Step, ...]
    group: Group


def _worth(area: MetadataArea, text: bytes) -> int:
    return 2 * (area.text == text) + area.is_sound


def _setting_problem(vg: VolumeGroup) -> str | None:
    if "EXPORTED" in vg.status:
        return f"the volume group {vg.name} was exported; vgimport brings it back"
    if "CLUSTERED" in vg.status or "SHARED" in vg.status or "lock_type" in vg.extra:
        return f"the volume group {vg.name} is shared by several machines"
    if vg.extra.get("system_id"):
        return f"the volume group {vg.name} belongs to the system {vg.extra['system_id']!r}"
    if vg.seqno >= UINT32_MAX:
        return f"the volume group {vg.name} has no sequence numbers left"
    if not vg.is_writable:
        return f"the volume group {vg.name} is set to be read only"
    return None


def _type_problem(vg: VolumeGroup) -> str | None:
    """A kind of segment of which it is not known which extents it takes."""
    for lv in vg.lvs:
        for segment in lv.segments:
            kind = segment.type.partition("+")[0]
            if kind not in _UNDERSTOOD_TYPES and not kind.startswith("raid"):
                return f"{lv.name} in {vg.name} is of a type that is not known here: {segment.type}"
    return None


def _conflict(group: Group) -> str | None:
    for pv in group.pvs:
        for area in pv.areas:
            if area.is_sound and area.text != group.text and area.text is not None:
                other = load_or_none(area.text)
                if other is not None and other.seqno == group.vg.seqno:
                    return f"two copies of the metadata of {group.vg.name} contradict each other"
    return None


def _layout_problem(group: Group) -> str | None:
    """Extents that are not there, and places where metadata would be written over others."""
    known_pvs = {pv.id: pv for pv in group.vg.pvs}
    for pv in group.pvs:
        known = known_pvs[pv.label.pv_id]
        extent_area = Area(known.pe_start * SECTOR, known.pe_count * group.vg.extent_bytes)
        if extent_area.end > pv.size:
            return f"the physical volume {pv.label.pv_id} has extents past its end"
        taken = [
            Area(0, LABEL_SECTORS * SECTOR),
            extent_area,
            *(area.header.area for area in pv.areas),
        ]
        taken.sort(key=lambda area: area.offset)
        if any(before.end > after.offset for before, after in pairwise(taken)):
            return f"on the physical volume {pv.label.pv_id}, metadata and extents overlap"
    return None


def load_or_none(text: bytes) -> VolumeGroup | None:
    """As `load`, and None where it raises."""
    try:
        return load(text)
    except DiskError:
        return None


def assemble(pvs: Iterable[FoundPv]) -> tuple[Group, ...]:
    """The volume groups on the drives `pvs`, in the order in which they are met.

    A physical volume that belongs to no group is in none.  Raises Corrupt where two drives have
    the same UUID or no copy of the metadata can be read, and what `load` raises for a text.
    """
    found = tuple(pvs)
    by_id = {pv.label.pv_id: pv for pv in found}
    if len(by_id) < len(found):
        raise Corrupt("two drives carry the same UUID: one is a copy of the other")
    newest: dict[str, tuple[VolumeGroup, bytes]] = {}
    for vg, text in _texts(found):
        if vg.id not in newest or vg.seqno > newest[vg.id][0].seqno:
            newest[vg.id] = (vg, text)
    groups = []
    for vg, text in newest.values():
        present = tuple(by_id[pv.id] for pv in vg.pvs if pv.id in by_id)
        if present:
            groups.append(Group(vg, text, present, _problems(vg, text, present)))
    return tuple(groups)


def _texts(pvs: tuple[FoundPv, ...]) -> list[tuple[VolumeGroup, bytes]]:
    """The groups of all texts that count, each text read once."""
    areas = [area for pv in pvs for area in pv.areas if area.text is not None]
    sound = [area for area in areas if area.is_sound]
    texts = dict.fromkeys(area.text for area in sound or areas if area.text is not None)
    if not texts:
        _raise_if_damaged(pvs)
    # A text that was written whole and makes no sense is never passed over for an older one.
    return [(load(text), text) for text in texts]


def _raise_if_damaged(pvs: tuple[FoundPv, ...]) -> None:
    """No text can be used: fine on drives that belong to no group, a loss on others."""
    damaged = [pv for pv in pvs if any(area.problem is not None for area in pv.areas)]
    if damaged:
        raise Corrupt(
            damaged[0].problems[0], hint="vgcfgrestore brings metadata back from a backup"
        )


def _problems(vg: VolumeGroup, text: bytes, pvs: tuple[FoundPv, ...]) -> tuple[str, ...]:
    outdated = [
        f"the metadata at byte {area.header.area.offset} is older; the copy with number "
        f"{vg.seqno} is used"
        for pv in pvs
        for area in pv.areas
        if area.is_sound and area.text != text
    ]
    return (*_drive_problems(pvs), *outdated)


def _drive_problems(pvs: tuple[FoundPv, ...]) -> tuple[str, ...]:
    return tuple(problem for pv in pvs for problem in pv.problems)
