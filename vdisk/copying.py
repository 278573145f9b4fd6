"""All of one disk, or some of it, into another.

Where both are plain ranges of host files, the kernel moves the bytes (`transfer`).  Elsewhere
threads read, or decode, the next pieces while this one is written in order, so that a new image is
laid out in the order of its disk.  What is a hole stays one, and so do zeros among the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vdisk.contents import Buffers, Range, data_ranges, done_ahead, union, zero_runs
from vdisk.disk import Disk
from vdisk.errors import OutOfRange
from vdisk.formats.creation import Piece
from vdisk.transfer import copy_range

Advance = Callable[[int], None]
"""Called with the bytes of the source that are done since it was called last."""


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
        for piece in pieces_of(source, data_ranges(source), advance):
            target.write(piece.offset, piece.data)
    else:
        copy_ranges(source, target, _either(source, target), advance)


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


def copy_ranges(
    source: Disk, target: Disk, ranges: Iterable[Range], advance: Advance
) -> None:
    """Copy what lies in `ranges`; where the source has zeros, the target's bytes are discarded."""
    for start, end, data in _runs(source, ranges, advance):
        if data is None:
            target.discard(start, end - start)
        else:
            target.write(start, data)


def _either(source: Disk, target: Disk, start: int = 0) -> Iterator[Range]:
    """Where either of them has data.

    The target's map is read on while the target is changed, but only behind where it is read.
    """
    return union(data_ranges(source, start), data_ranges(target, start, source.size))


def pieces_of(source: Disk, ranges: Iterable[Range], advance: Advance) -> Iterator[Piece]:
    """All in those ranges that is not zeros, in order; each is right until the next is asked for.
    """
    for start, _, data in _runs(source, ranges, advance):
        if data is not None:
            yield Piece(start, data)


def _runs(
    source: Disk, ranges: Iterable[Range], advance: Advance
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
