"""Changes to a volume group: each takes one and gives a new one.  Nothing is written.

Changes can follow one another and be committed together: `seqno` is the commit's business.  Where
extents are given out, `forbidden` are ranges that may look free and must not be used, such as those
of a volume that was removed while somebody still reads it.

All raise NotFound, Exists, InvalidArgument, NoSpace or Unsupported, and then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vdisk.errors import Exists, InvalidArgument, NoSpace, NotFound, Unsupported
from vdisk.tables.lvm2.allocate import Pool
from vdisk.tables.lvm2.model import (
    STRIPED_TYPES,
    LogicalVolume,
    PvRange,
    Segment,
    Stripe,
    VolumeGroup,
)
from vdisk.tables.lvm2.names import check_tag, check_volume_name
from vdisk.tables.lvm2.references import is_shown, users
from vdisk.tables.lvm2.uuids import new_uuid

_CHANGEABLE_TYPES = (*STRIPED_TYPES, "zero", "error")


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume to be made: its size is rounded up to whole extents."""

    name: str
    size_bytes: int
    tags: tuple[str, ...] = ()


def create(
    vg: VolumeGroup,
    wanted: Sequence[NewVolume],
    *,
    time: int,
    host: str,
    forbidden: Iterable[PvRange] = (),
) -> VolumeGroup:
    """`vg` with the volumes `wanted`, all or none.

    `time` is now, in seconds since 1970, and `host` this machine's name.
    """
    names = {lv.name for lv in vg.lvs}
    for one in wanted:
        _check_new_name(vg, one.name, names)
        names.add(one.name)
        _check_tags(one.tags)
    _check_count(vg, len(wanted))
    pool = Pool(vg, forbidden)
    _check_room(vg, wanted, pool)
    made = (
        LogicalVolume(
            name=one.name,
            id=new_uuid(),
            segments=_appended((), pool.take(_extents(vg, one.size_bytes))),
            creation_time=time,
            creation_host=host,
            tags=one.tags,
        )
        for one in wanted
    )
    return replace(vg, lvs=(*vg.lvs, *made))


def remove(vg: VolumeGroup, names: Iterable[str]) -> VolumeGroup:
    """`vg` without the volumes `names`; their extents are free again."""
    gone = set(names)
    used = users(vg)
    for name in gone:
        _changeable(vg, name, used)
    return replace(vg, lvs=tuple(lv for lv in vg.lvs if lv.name not in gone))


def rename(vg: VolumeGroup, name: str, new_name: str) -> VolumeGroup:
    """`vg` with the volume `name` called `new_name`."""
    lv = _changeable(vg, name, users(vg))
    _check_new_name(vg, new_name, {lv.name for lv in vg.lvs})
    return _replaced(vg, name, replace(lv, name=new_name))


def resize(
    vg: VolumeGroup, name: str, size_bytes: int, *, forbidden: Iterable[PvRange] = ()
) -> VolumeGroup:
    """`vg` with the volume `name` of `size_bytes`, rounded up to whole extents.

    It grows behind its last extent as far as that is free, then wherever there is room.  It shrinks
    from its end; a striped segment keeps as many extents on each of its stripes.
    """
    lv = _changeable(vg, name, users(vg))
    extents = _extents(vg, size_bytes)
    if extents > lv.extents:
        segments = _grown(lv, extents - lv.extents, Pool(vg, forbidden))
    else:
        segments = _shrunk(lv, extents)
    return _replaced(vg, name, replace(lv, segments=segments))


def set_tags(vg: VolumeGroup, name: str, tags: tuple[str, ...]) -> VolumeGroup:
    """`vg` with `tags` as all the tags of the volume `name`."""
    _check_tags(tags)
    return _replaced(vg, name, replace(_shown(vg, name, users(vg)), tags=tags))


def _shown(vg: VolumeGroup, name: str, used: dict[str, LogicalVolume]) -> LogicalVolume:
    lv = vg.lv(name)
    if lv is None or not is_shown(lv, used):
        raise NotFound(f"there is no volume {name!r} on the drive {vg.name}")
    return lv


def _changeable(vg: VolumeGroup, name: str, used: dict[str, LogicalVolume]) -> LogicalVolume:
    """The volume `name`, whose extents are its own and nobody else's."""
    lv = _shown(vg, name, used)
    other = next((one.type for one in lv.segments if one.type not in _CHANGEABLE_TYPES), None)
    if other is not None:
        raise Unsupported(
            f"{name} is a volume of type {other}", hint="LVM2's own tools can change it"
        )
    if any(one.type in STRIPED_TYPES and not one.stripes for one in lv.segments):
        raise Unsupported(f"{name} lies on another volume", hint="LVM2's own tools can change it")
    if name in used:
        raise Unsupported(
            f"{name} is part of {used[name].name}", hint="LVM2's own tools can change both"
        )
    return lv


def _replaced(vg: VolumeGroup, name: str, lv: LogicalVolume) -> VolumeGroup:
    return replace(vg, lvs=tuple(lv if one.name == name else one for one in vg.lvs))


def _check_new_name(vg: VolumeGroup, name: str, names: set[str]) -> None:
    check_volume_name(name, vg.name)
    if name in names:
        raise Exists(f"there is a volume {name} on the drive {vg.name} already")


def _check_tags(tags: tuple[str, ...]) -> None:
    for tag in tags:
        check_tag(tag)


def _check_count(vg: VolumeGroup, more: int) -> None:
    visible = sum(lv.visible for lv in vg.lvs)
    if vg.max_lv and visible + more > vg.max_lv:
        raise NoSpace(f"the drive {vg.name} is set to have {vg.max_lv} volumes at most")


def _check_room(vg: VolumeGroup, wanted: Sequence[NewVolume], pool: Pool) -> None:
    """Says how much is needed for all, and not only for the one that would fail."""
    total = sum(_extents(vg, one.size_bytes) for one in wanted)
    if total > pool.extents:
        pool.take(total)


def _extents(vg: VolumeGroup, size_bytes: int) -> int:
    if size_bytes <= 0:
        raise InvalidArgument("a volume on a drive has at least one byte")
    return vg.extents_of(size_bytes)


def _grown(lv: LogicalVolume, more: int, pool: Pool) -> tuple[Segment, ...]:
    ranges: list[PvRange] = []
    if lv.segments and len(lv.segments[-1].stripes) == 1:
        (last,) = lv.segments[-1].ranges()
        in_place = pool.take_at(last.pv, last.end, more)
        if in_place:
            ranges.append(PvRange(last.pv, last.end, in_place))
            more -= in_place
    if more:
        ranges += pool.take(more)
    return _appended(lv.segments, ranges)


def _appended(segments: tuple[Segment, ...], ranges: Iterable[PvRange]) -> tuple[Segment, ...]:
    """`segments` and then `ranges`; one that continues the segment before it becomes part of it."""
    result = list(segments)
    for one in ranges:
        last = result[-1] if result else None
        if last is not None and _continues(last, one):
            result[-1] = replace(last, count=last.count + one.count)
            continue
        start = 0 if last is None else last.end
        result.append(Segment(start, one.count, stripes=(Stripe(one.pv, one.first),)))
    return tuple(result)


def _continues(segment: Segment, one: PvRange) -> bool:
    if len(segment.stripes) != 1:
        return False
    (last,) = segment.ranges()
    return last.pv == one.pv and last.end == one.first


def _shrunk(lv: LogicalVolume, extents: int) -> tuple[Segment, ...]:
    kept = [segment for segment in lv.segments if segment.start < extents]
    if kept:
        width = max(len(kept[-1].stripes), 1)
        count = min(extents - kept[-1].start, kept[-1].count)
        kept[-1] = replace(kept[-1], count=-(-count // width) * width)
    return tuple(kept)
