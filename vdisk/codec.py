"""Compressed clusters and grains: decoding, never to more than one of them, and encoding.

A codec is a value that an extent carries (`extent.Unit`), so that a format says what decodes its
bytes and `disk` decodes them.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from vdisk.errors import Corrupt

_ZSTD_WINDOW_MAX = 8 << 20  # What a reader has to have, at least, by RFC 8878, 3.1.1.1.2.


class Codec(Protocol):
    """How the bytes of a unit are decoded, and encoded."""

    def decode(self, data: bytes, length: int) -> bytes:
        """Exactly `length` bytes, decoded from the beginning of `data`.

        Raises Corrupt where `data` holds less, and never makes more than `length` bytes.
        """

    def encode(self, data: bytes) -> bytes:
        """`data`, compressed.  Any number of threads may ask at once."""


@dataclass(frozen=True, slots=True)
class Deflate:
    """zlib's DEFLATE (RFC 1951), bare, or with the header of RFC 1950.

    `window_bits` is as for `zlib.decompressobj`: -12 for QCOW2's bare stream, 15 for VMDK's.
    """

    window_bits: int

    def decode(self, data: bytes, length: int) -> bytes:
        """See `Codec.decode`."""
        try:
            found = zlib.decompressobj(self.window_bits).decompress(data, length)
        except zlib.error as error:
            raise Corrupt(f"compressed data cannot be decoded: {error}") from error
        return whole(found, length)

    def encode(self, data: bytes) -> bytes:
        """See `Codec.encode`."""
        packer = zlib.compressobj(wbits=self.window_bits)
        return packer.compress(data) + packer.flush()


@dataclass(frozen=True, slots=True)
class Zstd:
    """One Zstandard frame (RFC 8878); what follows it is padding."""

    def decode(self, data: bytes, length: int) -> bytes:
        """See `Codec.decode`.  A frame that asks for more than `_ZSTD_WINDOW_MAX` is Corrupt."""
        import zstandard  # Few images need it, and loading it takes longer than most commands.

        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
        try:
            with decompressor.stream_reader(data) as reader:
                found = reader.read(length)
        except zstandard.ZstdError as error:
            raise Corrupt(f"compressed data cannot be decoded: {error}") from error
        return whole(found, length)

    def encode(self, data: bytes) -> bytes:
        """See `Codec.encode`."""
        import zstandard  # As above.

        return zstandard.ZstdCompressor().compress(data)


def whole(found: bytes, length: int) -> bytes:
    """`found`, which must be `length` bytes.  Corrupt otherwise."""
    if len(found) != length:
        raise Corrupt(f"compressed data holds {len(found)} bytes instead of {length}")
    return found


class DecodedUnits:
    """The units decoded last, so that a reader going through one decodes it once.

    Safe from several threads.  Holds at most `bytes_max` bytes.
    """

    def __init__(self, bytes_max: int = 4 << 20) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._units: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> bytes | None:
        """The decoded unit, None where it has to be decoded (again)."""
        with self._lock:
            found = self._units.get(key)
            if found is not None:
                self._units.move_to_end(key)
            return found

    def keep(self, key: Hashable, decoded: bytes) -> None:
        """Remember a decoded unit, in the place of those not used for longest."""
        with self._lock:
            if key in self._units:
                return
            self._units[key] = decoded
            self._bytes += len(decoded)
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._units.popitem(last=False)[1])

    def forget(self) -> None:
        """Forget all: places may have been given to other data."""
        with self._lock:
            self._units.clear()
            self._bytes = 0
