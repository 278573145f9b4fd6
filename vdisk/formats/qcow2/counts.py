"""The bytes of a refcount block as numbers, for every width that QCOW2 has: 1 to 64 bits.

Widths of a byte and more are big-endian numbers; of the smaller ones, the first is in the lowest
bits of a byte (QEMU, `docs/interop/qcow2.rst`, "Host cluster management").
"""

from __future__ import annotations

import sys
from array import array

_CODES = {3: "B", 4: "H", 5: "I", 6: "Q"}


def code(order: int) -> str:
    """The type code of an array of refcounts that are 2**order bits wide."""
    return _CODES[max(order, 3)]


def _parts(order: int) -> tuple[bytes, ...]:
    """For each byte, the numbers of 2**order bits in it."""
    width = 1 << order
    mask = (1 << width) - 1
    return tuple(
        bytes(byte >> shift & mask for shift in range(0, 8, width)) for byte in range(256)
    )


_UNPACKED = {order: _parts(order) for order in range(3)}
_PACKED = {
    order: {parts: byte for byte, parts in enumerate(table)} for order, table in _UNPACKED.items()
}


def unpack(data: bytes, order: int) -> array[int]:
    """The refcounts in `data`, whole bytes of a block."""
    found = array(code(order))
    if order < 3:
        table = _UNPACKED[order]
        data = b"".join([table[byte] for byte in data])
    found.frombytes(data)
    if sys.byteorder == "little":
        found.byteswap()
    return found


def pack(counts: array[int], order: int) -> bytes:
    """The bytes of `counts`, which are as many as fill whole bytes."""
    if order < 3:
        table, step = _PACKED[order], 8 >> order
        data = counts.tobytes()
        return bytes([table[data[at : at + step]] for at in range(0, len(data), step)])
    swapped = counts[:]
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped.tobytes()


def per_byte(order: int) -> int:
    """How many refcounts share a byte: 1 for those of a byte and more."""
    return max(8 >> order, 1)


def per_length(order: int, count: int) -> int:
    """The bytes that `count` refcounts fill, which are whole bytes."""
    return (count << order) >> 3
