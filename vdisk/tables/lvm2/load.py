"""Text -> volume group.

What makes no sense is refused as a whole, as LVM2 refuses it: a map that is wrong in one place
cannot be believed in another.  Source: LVM2 `lib/format_text/import_vsn1.c`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.errors import Corrupt, Unsupported
from vdisk.tables.lvm2.config import Section, parse
from vdisk.tables.lvm2.fields import SECTORS_MAX, UINT32_MAX, Fields
from vdisk.tables.lvm2.model import (
    STRIPED_TYPES,
    LogicalVolume,
    PhysicalVolume,
    Segment,
    Stripe,
    VolumeGroup,
)
from vdisk.tables.lvm2.names import is_name
from vdisk.tables.lvm2.soundness import check

CONTENTS = "Text Format Volume Group"
TEXT_VERSION = 1

_TIME_MAX = (1 << 63) - 1


def load(text: bytes) -> VolumeGroup:
    """The volume group that `text` describes.

    Raises Corrupt where it is no such text or contradicts itself, and Unsupported where it is
    of another version.
    """
    root = Fields(parse(text), "the metadata")
    if root.extra.get("contents") != CONTENTS:
        raise Corrupt(f"the metadata's contents are not {CONTENTS!r}")
    if root.extra.get("version") != TEXT_VERSION:
        raise Unsupported(f"the metadata has version {root.extra.get('version')!r}")
    groups = [(key, item) for key, item in root.extra.items() if isinstance(item, dict)]
    if len(groups) != 1 or not is_name(groups[0][0]):
        raise Corrupt("the metadata does not describe one volume group")
    vg = _group(*groups[0])
    check(vg)
    return vg


def _group(name: str, section: Section) -> VolumeGroup:
    fields = Fields(section, f"volume group {name}")
    pvs = tuple(_pv(*one) for one in _sections(fields, "physical_volumes"))
    keys = frozenset(pv.key for pv in pvs)
    lvs = tuple(_lv(key, lv, keys) for key, lv in _sections(fields, "logical_volumes"))
    return VolumeGroup(
        name=name,
        id=fields.uuid(),
        seqno=fields.integer("seqno"),
        extent_size=fields.integer("extent_size", minimum=1),
        pvs=pvs,
        lvs=lvs,
        status=fields.words("status"),
        flags=fields.words("flags"),
        max_lv=fields.integer_or("max_lv", 0),
        max_pv=fields.integer_or("max_pv", 0),
        metadata_copies=fields.integer_or("metadata_copies", 0),
        tags=fields.words("tags"),
        extra=fields.extra,
    )


def _sections(fields: Fields, key: str) -> Iterator[tuple[str, Section]]:
    """The sections inside the section `key`, which holds nothing else."""
    for name, item in fields.section(key).items():
        if not isinstance(item, dict):
            raise Corrupt(f"{fields.where}: {name} in {key} is no section")
        yield name, item


def _pv(key: str, section: Section) -> PhysicalVolume:
    fields = Fields(section, f"physical volume {key}")
    return PhysicalVolume(
        key=key,
        id=fields.uuid(),
        pe_start=fields.integer("pe_start", SECTORS_MAX),
        pe_count=fields.integer("pe_count"),
        dev_size=fields.integer("dev_size", (1 << 64) - 1) if "dev_size" in section else None,
        status=fields.words("status"),
        flags=fields.words("flags"),
        tags=fields.words("tags"),
        extra=fields.extra,
    )


def _lv(name: str, section: Section, pv_keys: frozenset[str]) -> LogicalVolume:
    fields = Fields(section, f"logical volume {name}")
    host = "creation_host" in section
    return LogicalVolume(
        name=name,
        id=fields.uuid(),
        status=fields.words("status"),
        flags=fields.words("flags"),
        creation_time=fields.integer("creation_time", _TIME_MAX) if "creation_time" in section
        else None,
        creation_host=fields.text("creation_host") if host else None,
        tags=fields.words("tags"),
        segments=_segments(fields, pv_keys),
        extra=fields.extra,
    )  # fmt: skip


def _segments(fields: Fields, pv_keys: frozenset[str]) -> tuple[Segment, ...]:
    """All sections inside a volume's are its segments."""
    names = [name for name, item in fields.extra.items() if isinstance(item, dict)]
    found = [_segment(fields, name, pv_keys) for name in names]
    stated = fields.integer("segment_count")
    if stated != len(found):
        raise Corrupt(f"{fields.where} has {len(found)} segments and says {stated}")
    return tuple(sorted(found, key=lambda segment: segment.start))


def _segment(parent: Fields, name: str, pv_keys: frozenset[str]) -> Segment:
    fields = Fields(parent.section(name), f"{parent.where}, {name}")
    start, count = fields.integer("start_extent"), fields.integer("extent_count", minimum=1)
    if start + count > UINT32_MAX:
        raise Corrupt(f"{fields.where} ends at extent {start + count}")
    kind = fields.text("type") if "type" in fields.extra else STRIPED_TYPES[0]
    tags = fields.words("tags")
    if kind not in STRIPED_TYPES or not _lies_on_pvs(fields, pv_keys):
        return Segment(start, count, kind, tags=tags, extra=fields.extra)
    return _striped(fields, Segment(start, count, kind, tags=tags))


def _lies_on_pvs(fields: Fields, pv_keys: frozenset[str]) -> bool:
    """Whether all stripes of a striped segment are on physical volumes, none on another volume."""
    stripes = fields.extra.get("stripes")
    names = stripes[::2] if isinstance(stripes, tuple) else ()
    return not any(isinstance(name, str) and name not in pv_keys for name in names)


def _striped(fields: Fields, segment: Segment) -> Segment:
    stated = fields.integer("stripe_count", minimum=1)
    size = fields.integer("stripe_size", minimum=1) if stated > 1 else 0
    values = fields.array("stripes")
    stripes = []
    for pv, first in zip(values[::2], values[1::2], strict=False):
        if not isinstance(pv, str) or not isinstance(first, int) or not 0 <= first <= UINT32_MAX:
            raise Corrupt(f"{fields.where}: the stripes are not pairs of a name and an extent")
        stripes.append(Stripe(pv, first))
    if len(values) != 2 * stated or segment.count % stated:
        raise Corrupt(
            f"{fields.where}: {segment.count} extents do not lie on {stated} stripes evenly"
        )
    return Segment(
        segment.start, segment.count, segment.type, tuple(stripes), size, segment.tags, fields.extra
    )
