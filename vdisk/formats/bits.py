"""Bitmaps of sectors as texts of one "0" or "1" each.

So finding where a run ends is a search for a character, and a bitmap is a value that any number of
threads may look at.
"""

from __future__ import annotations

from collections.abc import Iterator


def runs(bits: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(first, end, whether they are set) of the runs of equal bits in [start, end)."""
    while start < end:
        stop = bits.find("0" if bits[start] == "1" else "1", start, end)
        stop = end if stop < 0 else stop
        yield start, stop, bits[start] == "1"
        start = stop


def with_set(bits: str, start: int, end: int) -> str:
    """`bits` with those in [start, end) set."""
    return f"{bits[:start]}{'1' * (end - start)}{bits[end:]}"
