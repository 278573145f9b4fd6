"""All of one disk into another: a new image, or one that is there already.

Where both are plain ranges of host files, the kernel moves the bytes (`transfer`).  Elsewhere
threads read, or decode, the next pieces while this one is written in order, so that a new image is
laid out in the order of its disk.  What is a hole stays one, and so do zeros among the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from vdisk.contents import (
    ZERO_UNIT,
    Buffers,
    Range,
    data_ranges,
    done_ahead,
    union,
    widened,
    zero_runs,
)
from vdisk.create import NewDisk, creatable_format, create_image, plan_disk
from vdisk.disk import Disk
from vdisk.errors import InvalidArgument, OutOfRange
from vdisk.formats.creation import Creation, Piece
from vdisk.formats.registry import FORMATS
from vdisk.geometry import Source
from vdisk.open import OpenOptions, open_image
from vdisk.transfer import copy_range

Advance = Callable[[int], None]
"""Called with the bytes of the source that are done since it was called last."""


def plan_conversion(source: Disk, path: Path, asked: OpenOptions) -> NewDisk:
    """What the new image `path` of `source` is to be, with what the user asks of it.

    Its geometry is the source's, unless another is asked for, or nothing but the size tells it.
    """
    usual = creatable_format(path, asked.format).sector_size
    new = plan_disk(
        size_bytes=source.size, chs=asked.chs, profile=asked.profile,
        sector_size=asked.sector_size or source.sector_size, usual_sector_size=usual,
    )
    kept = source.choice
    silent = asked.chs is None and asked.profile is None
    if silent and kept is not None and kept.source is not Source.PROFILE:
        geometry = kept.geometry
        if geometry.sector_size == new.geometry.sector_size:
            new = replace(new, geometry=geometry)
    return replace(new, format=asked.format)


def convert(
    source: Disk, path: Path, new: NewDisk, advance: Advance, *, compress: bool = False
) -> bool:
    """Make the image `path` with all that `source` holds; whether its geometry could be recorded.

    Raises what `create_image` and `copy_disk` do; then, and when interrupted, no new file is left.
    """
    if compress:
        return create_image(path, new, write=partial(_compressed, source, path, new, advance))

    made = OpenOptions(format=creatable_format(path, new.format).name)

    def fill() -> None:
        with open_image(path, writable=True, options=made) as target:
            target.is_throwaway = True  # Until all is in it: after a crash it is none.
            copy_disk(source, target, advance, fresh=True)

    return create_image(path, new, fill=fill)


def _compressed(
    source: Disk, path: Path, new: NewDisk, advance: Advance, creation: Creation
) -> None:
    entry = creatable_format(path, new.format)
    if entry.write_compressed is None:
        able = ", ".join(sorted(e.name for e in FORMATS.values() if e.write_compressed))
        raise InvalidArgument(
            f"{entry.name} images are not compressed", path=path,
            hint=f"formats that can be: {able or 'none in this version'}",
        )
    ranges = widened(data_ranges(source), ZERO_UNIT, source.size)
    entry.write_compressed(creation, _pieces(source, ranges, advance))


def copy_disk(source: Disk, target: Disk, advance: Advance, *, fresh: bool = False) -> None:
    """Copy all of `source` to the start of `target`; `fresh` says that it reads as zeros now.

    What lies behind it stays.  Raises OutOfRange where it does not fit, and HostError.
    """
    if source.size > target.size:
        raise OutOfRange(
            f"has {target.size} bytes, and {source.address} has {source.size}",
            path=target.address, hint="make it larger: vdisk resize",
        )
    target.check_writable()
    if source.window() is not None and target.window() is not None:
        _copy_plain(source, target, advance, fresh=fresh)
    elif fresh and target.window() is not None:
        _copy_anywhere(source, target, advance)
    elif fresh:
        for piece in _pieces(source, data_ranges(source), advance):
            target.write(piece.offset, piece.data)
    else:
        _copy_over(source, target, advance)


def _copy_plain(source: Disk, target: Disk, advance: Advance, *, fresh: bool) -> None:
    """In the kernel: all is shared at once, where the file system can, or some is copied; then
    threads copy the rest."""
    done = copy_range(source, 0, target, 0, source.size)
    advance(done)

    def copy(start: int, end: int) -> int:
        at = start
        while at < end:
            at += copy_range(source, at, target, at, end - at)
        return end

    ranges = data_ranges(source, done) if fresh else _either(source, target, done)
    _advanced(source, done_ahead(ranges, copy), advance, done)


def _copy_anywhere(source: Disk, target: Disk, advance: Advance) -> None:
    """Where each piece has its place already, threads write as well."""
    buffers = Buffers()

    def copy(start: int, end: int) -> int:
        buffer = buffers.read(source, start, end)
        data = memoryview(buffer)
        for first, last, is_zero in zero_runs(buffer, start):
            if not is_zero:
                target.write(first, data[first - start : last - start])
        buffers.give_back(buffer)
        return end

    _advanced(source, done_ahead(data_ranges(source), copy), advance)


def _advanced(source: Disk, ends: Iterator[int], advance: Advance, done: int = 0) -> None:
    """Tell how far the pieces that end there have come; what lies between has been passed over."""
    for end in ends:
        advance(end - done)
        done = end
    advance(source.size - done)


def _copy_over(source: Disk, target: Disk, advance: Advance) -> None:
    """Copy, and discard what the target holds where the source has zeros."""
    for start, end, data in _runs(source, _either(source, target), advance):
        if data is None:
            target.discard(start, end - start)
        else:
            target.write(start, data)


def _either(source: Disk, target: Disk, start: int = 0) -> Iterator[Range]:
    """Where either of them has data.

    The target's map is read on while the target is changed, but only behind where it is read.
    """
    return union(data_ranges(source, start), data_ranges(target, start, source.size))


def _pieces(source: Disk, ranges: Iterator[Range], advance: Advance) -> Iterator[Piece]:
    """All in those ranges that is not zeros, in order; each is right until the next is asked for.
    """
    for start, _, data in _runs(source, ranges, advance):
        if data is not None:
            yield Piece(start, data)


def _runs(
    source: Disk, ranges: Iterator[Range], advance: Advance
) -> Iterator[tuple[int, int, memoryview | None]]:
    """(start, end, bytes, or None for zeros) of all that is in `ranges`, in order."""
    buffers = Buffers()

    def read(start: int, end: int) -> tuple[int, bytearray]:
        return start, buffers.read(source, start, end)

    passed = 0
    for start, buffer in done_ahead(ranges, read):
        data = memoryview(buffer)
        for first, last, is_zero in zero_runs(buffer, start):
            yield first, last, None if is_zero else data[first - start : last - start]
        buffers.give_back(buffer)
        end = start + len(buffer)
        advance(end - passed)  # What lay before it has been passed over.
        passed = end
    advance(source.size - passed)
