"""What the tests of edited tables share: edits on bytes, and crashes in the midst of one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from table_images import MIB, scan_bytes
from vdisk.geometry import Geometry, cover
from vdisk.partitioning.draft import Target
from vdisk.partitioning.edits import Edits
from vdisk.partitioning.plan import Change, plan_change
from vdisk.partitioning.steps import Barrier, Put, Step
from vdisk.recognise import recognise
from vdisk.tables import Scan

_CHUNK = 1 << 16


def geometry_of(size: int, heads: int = 16, sectors: int = 63, sector_size: int = 512) -> Geometry:
    """The geometry of these heads and sectors for a disk of `size` bytes."""
    found = cover(size, heads, sectors, sector_size)
    assert found is not None
    return found


def planned(disk: bytes | bytearray, edits: Edits, geometry: Geometry | None = None) -> Change:
    """What `edits` would write to a disk of these bytes; reads outside of it fail."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= len(disk)
        return bytes(disk[offset : offset + length])

    geometry = geometry or geometry_of(len(disk))
    found = recognise(read, len(disk), geometry.sector_size) if edits.new_table else []
    return plan_change(Target(read, len(disk), geometry), edits, found)


def applied(disk: bytes | bytearray, steps: Sequence[Step]) -> bytearray:
    """The disk after `steps`."""
    after = bytearray(disk)
    for step in steps:
        if isinstance(step, Put):
            after[step.offset : step.end] = step.data
    assert len(after) == len(disk)
    return after


def edited(disk: bytes | bytearray, edits: Edits, geometry: Geometry | None = None) -> bytearray:
    """The disk after `edits`."""
    return applied(disk, planned(disk, edits, geometry).steps)


def saved(path: Path, disk: bytes | bytearray) -> Path:
    """`disk` in the file `path`, which has holes where it has nothing but zeros."""
    view, zeros = memoryview(disk), bytes(_CHUNK)
    with path.open("wb") as file:
        file.truncate(len(disk))
        for at in range(0, len(disk), _CHUNK):
            if view[at : at + _CHUNK] != zeros:
                file.seek(at)
                file.write(view[at : at + _CHUNK])
    return path


def changed(before: bytes | bytearray, after: bytes | bytearray) -> list[tuple[int, int]]:
    """The half-open ranges of bytes in which two disks differ."""
    assert len(before) == len(after)
    found: list[tuple[int, int]] = []
    for base in range(0, len(before), _CHUNK):
        if before[base : base + _CHUNK] == after[base : base + _CHUNK]:
            continue
        for at in range(base, min(base + _CHUNK, len(before))):
            if before[at] != after[at]:
                if found and found[-1][1] == at:
                    found[-1] = (found[-1][0], at + 1)
                else:
                    found.append((at, at + 1))
    return found


def table_of(scan: Scan) -> tuple[Any, ...] | None:
    """All that a table says of the disk and its partitions; what is said about damage left out."""
    if scan.table is None:
        return None
    return (
        scan.table.kind, scan.table.disk_id,
        tuple((p.number, p.start_lba, p.sectors, p.type, p.name, p.bootable, p.uuid, p.attributes,
               p.problem) for p in scan.table.partitions),
    )  # fmt: skip


def crashes(
    disk: bytes | bytearray, steps: Sequence[Step], sector_size: int = 512, seed: int = 0
) -> Iterator[bytearray]:
    """The disk as a crash may leave it: each prefix of the sectors that are written in order, and
    some of the other subsets of what is written between two barriers."""
    chooser = random.Random(seed)
    now = bytearray(disk)
    yield bytearray(now)
    for group in _groups(steps, sector_size):
        for _ in range(8):
            subset = [piece for piece in group if chooser.random() < 0.5]
            yield applied(now, subset)
        for piece in group:
            now[piece.offset : piece.end] = piece.data
            yield bytearray(now)


def _groups(steps: Sequence[Step], sector_size: int) -> Iterator[list[Put]]:
    """What is written between barriers, in pieces that a device writes whole."""
    group: list[Put] = []
    for step in steps:
        if isinstance(step, Barrier):
            yield group
            group = []
            continue
        for at in range(0, len(step.data), sector_size):
            group.append(Put(step.offset + at, step.data[at : at + sector_size]))
    assert not group, "the last write has no barrier after it"


def blank_bytes(size: int = 32 * MIB) -> bytearray:
    """A disk of zeros."""
    return bytearray(size)


def seen_after_crashes(
    disk: bytes | bytearray, steps: Sequence[Step], sector_size: int = 512
) -> list[tuple[Any, ...] | None]:
    """The different tables that crashes leave, in the order in which they turn up."""
    seen: list[tuple[Any, ...] | None] = []
    for left in crashes(disk, steps, sector_size):
        found = table_of(scan_bytes(left, sector_size))
        if found not in seen:
            seen.append(found)
    return seen
