"""Volume group -> text.  Source: LVM2 `lib/format_text/export.c`."""

from __future__ import annotations

from vdisk.tables.lvm2.config import Section, render
from vdisk.tables.lvm2.load import CONTENTS, TEXT_VERSION
from vdisk.tables.lvm2.model import (
    LogicalVolume,
    PhysicalVolume,
    Segment,
    VolumeGroup,
)


def dump(vg: VolumeGroup, *, description: str, host: str, time: int) -> bytes:
    """The text of `vg`, with the NUL that ends it.

    `description` says what was done, `host` on which machine and `time` when, in seconds since
    1970.  The group comes first: LVM2 looks for its name at the text's first byte.
    """
    root: Section = {
        vg.name: _group(vg),
        "contents": CONTENTS,
        "version": TEXT_VERSION,
        "description": description,
        "creation_host": host,
        "creation_time": time,
    }
    return render(root) + b"\n\0"


def _group(vg: VolumeGroup) -> Section:
    section: Section = {"id": vg.id, "seqno": vg.seqno}
    section |= {"status": vg.status, "flags": vg.flags}
    section |= _tags(vg.tags)
    section |= {
        "extent_size": vg.extent_size,
        "max_lv": vg.max_lv,
        "max_pv": vg.max_pv,
        "metadata_copies": vg.metadata_copies,
    }
    section |= vg.extra
    section["physical_volumes"] = {pv.key: _pv(pv) for pv in vg.pvs}
    if vg.lvs:
        section["logical_volumes"] = {lv.name: _lv(lv) for lv in vg.lvs}
    return section


def _pv(pv: PhysicalVolume) -> Section:
    section: Section = {"id": pv.id, "status": pv.status, "flags": pv.flags}
    section |= _tags(pv.tags)
    if pv.dev_size is not None:
        section["dev_size"] = pv.dev_size
    section |= {"pe_start": pv.pe_start, "pe_count": pv.pe_count}
    return section | pv.extra


def _lv(lv: LogicalVolume) -> Section:
    section: Section = {"id": lv.id, "status": lv.status, "flags": lv.flags}
    section |= _tags(lv.tags)
    if lv.creation_time is not None:
        section["creation_time"] = lv.creation_time
    if lv.creation_host is not None:
        section["creation_host"] = lv.creation_host
    section |= lv.extra
    section["segment_count"] = len(lv.segments)
    for number, segment in enumerate(lv.segments, 1):
        section[f"segment{number}"] = _segment(segment)
    return section


def _segment(segment: Segment) -> Section:
    section: Section = {"start_extent": segment.start, "extent_count": segment.count}
    section["type"] = segment.type
    section |= _tags(segment.tags)
    if segment.stripes:
        section["stripe_count"] = len(segment.stripes)
    if len(segment.stripes) > 1:
        section["stripe_size"] = segment.stripe_size
    section |= segment.extra
    if segment.stripes:
        section["stripes"] = tuple(
            value for stripe in segment.stripes for value in (stripe.pv, stripe.first)
        )
    return section


def _tags(tags: tuple[str, ...]) -> Section:
    return {"tags": tags} if tags else {}
