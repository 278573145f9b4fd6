"""The header of a QCOW2 image, versions 2 and 3, and the extensions behind it.

Source: QEMU, `docs/interop/qcow2.rst`, "Header" and "Header extensions".  All numbers are
big-endian.  Every number is checked against its limit before anything else is read by it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Self

from vdisk.errors import Corrupt, InvalidFormat, Unsupported
from vdisk.host import HostFile
from vdisk.units import MIB, SIZE_BYTES_MAX

MAGIC = b"QFI\xfb"
CLUSTER_BITS_MIN, CLUSTER_BITS_MAX = 9, 21
EXTENDED_CLUSTER_BITS_MIN = 14
SUBCLUSTERS = 32
L1_BYTES_MAX = 32 * MIB
REFCOUNT_TABLE_BYTES_MAX = 8 * MIB
SNAPSHOTS_MAX = 65536
BACKING_NAME_MAX = 1023
REFCOUNT_ORDER_MAX = 6
V2_BYTES, V3_BYTES = 72, 104
_V3_BYTES_KNOWN = 112  # With the compression type and its padding.

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_COMPRESSION_AT = 104
_BACKING = struct.Struct(">QI")  # Offset and length of the backing file's name.
_BACKING_AT = 8
_EXTENSION = struct.Struct(">II")
_FEATURE_BYTES = 48
_BITMAPS = struct.Struct(">IIQQ")

EXTENSION_END = 0
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_DATA_FILE = 0x44415441

_ENCRYPTIONS = {1: "AES", 2: "LUKS"}


class Incompatible(IntFlag):
    """Features that a program must know to open the image."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION = 8
    EXTENDED_L2 = 16


_NO_FEATURES = Incompatible(0)


class Compatible(IntFlag):
    """Features that a program need not know."""

    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    """Features that whoever writes without knowing them must clear."""

    BITMAPS = 1
    RAW_DATA_FILE = 2


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """Where the directory of persistent bitmaps is: `count` of them in `length` bytes."""

    count: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says, checked.  `size` and all offsets are bytes.

    `raw` are the fixed fields as they were read: what is not a field here is kept as it was.
    `backing`, `backing_format` and `data_file` are names as the image has them, in QEMU's words.
    """

    version: int
    cluster_bits: int
    size: int
    l1_offset: int
    l1_entries: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: Incompatible = _NO_FEATURES
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = 0
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    bitmaps: Bitmaps | None = None
    raw: bytes = field(default=b"", repr=False)

    # What follows from that

    @property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @property
    def extended(self) -> bool:
        """Whether L2 entries have a bitmap, for 32 subclusters each."""
        return Incompatible.EXTENDED_L2 in self.incompatible

    @property
    def subclusters(self) -> int:
        """In how many parts, allocated one by one, a cluster is divided."""
        return SUBCLUSTERS if self.extended else 1

    @property
    def unit(self) -> int:
        """The bytes that are allocated at once: a cluster, or a subcluster."""
        return self.cluster_size // self.subclusters

    @property
    def entry_words(self) -> int:
        """Words of 8 bytes in an L2 entry."""
        return 2 if self.extended else 1

    @property
    def l2_entries(self) -> int:
        """In one L2 table, which is a cluster."""
        return self.cluster_size // (8 * self.entry_words)

    @property
    def l2_reach(self) -> int:
        """Guest bytes that one L2 table maps."""
        return self.l2_entries * self.cluster_size

    @property
    def counts_per_block(self) -> int:
        """Refcounts in one refcount block, which is a cluster."""
        return (self.cluster_size * 8) >> self.refcount_order

    @property
    def has_data_file(self) -> bool:
        """Whether guest clusters lie in another file, each at its guest offset."""
        return Incompatible.DATA_FILE in self.incompatible

    @property
    def data_file_is_raw(self) -> bool:
        """Whether that file is a raw image of the disk by itself."""
        return self.has_data_file and bool(self.autoclear & Autoclear.RAW_DATA_FILE)

    @property
    def has_zero_flag(self) -> bool:
        """Whether an entry can say that its cluster reads as zeros, whatever is beneath."""
        return self.version >= 3

    def clusters(self, length: int) -> int:
        """How many clusters hold `length` bytes."""
        return -(-length // self.cluster_size)

    def l1_entries_for(self, size: int) -> int:
        """L1 entries that a disk of `size` bytes needs."""
        return -(-size // self.l2_reach)

    # Reading and writing

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The header of the image in `host`.  Raises InvalidFormat, Unsupported or Corrupt."""
        start = host.read(0, min(host.size(), _V3_BYTES_KNOWN))
        if len(start) < V2_BYTES:
            raise InvalidFormat("is too short for a qcow2 image", path=host.path)
        magic, version, backing_offset, backing_length, bits, size, crypt, l1_entries, l1_offset, \
            table_offset, table_clusters, snapshots, snapshots_offset = _V2.unpack_from(start)
        if magic != MAGIC:
            raise InvalidFormat("is no qcow2 image: its magic number is wrong", path=host.path)
        if version not in (2, 3):
            name = "qcow" if version == 1 else "qcow2"
            raise Unsupported(
                f"is a {name} image of version {version}, not 2 or 3", path=host.path,
                hint="qemu-img convert makes one of today's",
            )
        if not CLUSTER_BITS_MIN <= bits <= CLUSTER_BITS_MAX:
            raise Corrupt(f"the qcow2 header says clusters of 2**{bits} bytes", path=host.path)
        first = host.read(0, min(host.size(), 1 << bits))
        more = _Version3.of_version_2() if version == 2 else _Version3.read(host, first)
        extensions = dict(_extensions(host, first, more.header_length, backing_offset))
        _check_features(host, more, extensions.get(EXTENSION_FEATURES, b""), crypt)
        header = cls(
            version, bits, size, l1_offset, l1_entries, table_offset, table_clusters,
            snapshots, snapshots_offset, Incompatible(more.incompatible), more.compatible,
            more.autoclear, more.refcount_order, more.compression,
            backing=_backing_name(host, first, backing_offset, backing_length),
            backing_format=_text(extensions.get(EXTENSION_BACKING_FORMAT)),
            data_file=_text(extensions.get(EXTENSION_DATA_FILE)),
            bitmaps=_bitmaps(host, extensions.get(EXTENSION_BITMAPS)),
            raw=first[: min(more.header_length, _V3_BYTES_KNOWN)],
        )
        header._check(host)
        return header

    def _check(self, host: HostFile) -> None:
        end = -(-host.size() // self.cluster_size) * self.cluster_size
        table_bytes = self.refcount_table_clusters * self.cluster_size
        checks = (
            (0 <= self.size <= SIZE_BYTES_MAX, f"a size of {self.size} bytes"),
            (8 * self.l1_entries <= L1_BYTES_MAX, f"{self.l1_entries} L1 entries"),
            (
                self.l1_entries >= self.l1_entries_for(self.size),
                f"{self.l1_entries} L1 entries for {self.size} bytes",
            ),
            (
                self.l1_entries == 0 or self._lies_well(self.l1_offset, 8 * self.l1_entries, end),
                f"an L1 table at {self.l1_offset}, of {self.l1_entries} entries",
            ),
            (
                0 < table_bytes <= REFCOUNT_TABLE_BYTES_MAX
                and self._lies_well(self.refcount_table_offset, table_bytes, end),
                f"a refcount table at {self.refcount_table_offset}, of {table_bytes} bytes",
            ),
            (self.snapshots <= SNAPSHOTS_MAX, f"{self.snapshots} snapshots"),
            (
                self.snapshots == 0 or self._lies_well(self.snapshots_offset, 1, end),
                f"a table of snapshots at {self.snapshots_offset}",
            ),
            (
                not self.extended or self.cluster_bits >= EXTENDED_CLUSTER_BITS_MIN,
                f"subclusters in clusters of {self.cluster_size} bytes",
            ),
            (
                not self.data_file_is_raw or self.backing is None,
                "a raw data file, and a backing file beneath it",
            ),
            (
                not self.has_data_file or self.snapshots == 0,
                "snapshots of an image with a data file",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the qcow2 header says {what}", path=host.path)

    def _lies_well(self, offset: int, length: int, end: int) -> bool:
        """Whether a structure begins a cluster that is not the header's, and ends in the file."""
        return (
            offset >= self.cluster_size
            and offset % self.cluster_size == 0
            and offset + length <= end
        )

    def pack(self) -> bytes:
        """The fixed fields: a part of one sector, which a disk writes wholly or not at all."""
        raw = bytearray(self.raw)
        old = _V2.unpack_from(raw)
        _V2.pack_into(
            raw, 0, MAGIC, self.version, old[2], old[3], self.cluster_bits, self.size, old[6],
            self.l1_entries, self.l1_offset, self.refcount_table_offset,
            self.refcount_table_clusters, self.snapshots, self.snapshots_offset,
        )
        if self.version >= 3:
            _V3.pack_into(
                raw, V2_BYTES, self.incompatible, self.compatible, self.autoclear,
                self.refcount_order, _V3.unpack_from(raw, V2_BYTES)[4],
            )
        return bytes(raw)

    def first_cluster(self) -> bytes:
        """All that a new image has in its first cluster but zeros: fields, extensions, names.

        Raises InvalidFormat where it does not fit.
        """
        length = V2_BYTES if self.version == 2 else _V3_BYTES_KNOWN
        extensions = b"".join(self._new_extensions())
        backing = (self.backing or "").encode(errors="surrogateescape")
        offset = length + len(extensions) if backing else 0
        raw = bytearray(length)
        _V2.pack_into(raw, 0, MAGIC, self.version, offset, len(backing), *[0] * 9)
        if self.version >= 3:
            _V3.pack_into(raw, V2_BYTES, 0, 0, 0, self.refcount_order, length)
            raw[_COMPRESSION_AT] = self.compression
        whole = replace(self, raw=bytes(raw)).pack() + extensions + backing
        if len(whole) > self.cluster_size or len(backing) > BACKING_NAME_MAX:
            raise InvalidFormat(
                f"the names in a qcow2 header do not fit into its {self.cluster_size} bytes"
            )
        return whole

    def renamed(self, host: HostFile, first: bytes) -> tuple[bytes, bytes]:
        """The fixed fields, and all of the first cluster, with the names that are fields here.

        `first` is what the cluster in `host` holds: extensions that are in it are kept.
        """
        backing = (self.backing or "").encode(errors="surrogateescape")
        start = V2_BYTES if self.version == 2 else _V3.unpack_from(first, V2_BYTES)[4]
        (old_offset,) = _BACKING.unpack_from(first, _BACKING_AT)[:1]
        found = bytearray()
        if self.backing_format is not None:
            found += _extension(EXTENSION_BACKING_FORMAT, self.backing_format.encode())
        for kind, data in _extensions(host, first, start, old_offset):
            if kind != EXTENSION_BACKING_FORMAT:
                found += _extension(kind, data)
        found += _extension(EXTENSION_END, b"")
        raw = bytearray(self.pack())
        _BACKING.pack_into(raw, _BACKING_AT, start + len(found) if backing else 0, len(backing))
        return bytes(raw), bytes(raw) + first[len(raw) : start] + bytes(found) + backing

    def _new_extensions(self) -> Iterator[bytes]:
        for kind, text in (
            (EXTENSION_BACKING_FORMAT, self.backing_format),
            (EXTENSION_DATA_FILE, self.data_file),
            (EXTENSION_END, ""),
        ):
            if text is not None:
                yield _extension(kind, text.encode(errors="surrogateescape"))


@dataclass(frozen=True, slots=True)
class _Version3:
    """The fields that version 3 adds."""

    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_length: int
    compression: int

    @classmethod
    def of_version_2(cls) -> Self:
        return cls(0, 0, 0, 4, V2_BYTES, 0)

    @classmethod
    def read(cls, host: HostFile, first: bytes) -> Self:
        """Bounded by the length that the header gives itself.  Corrupt where that cannot be."""
        if len(first) < V3_BYTES:
            raise InvalidFormat("is too short for a qcow2 image of version 3", path=host.path)
        bits, compatible, autoclear, order, length = _V3.unpack_from(first, V2_BYTES)
        if not V3_BYTES <= length <= len(first) or length % 8:
            raise Corrupt(f"the qcow2 header says that it is {length} bytes long", path=host.path)
        if order > REFCOUNT_ORDER_MAX:
            raise Corrupt(f"the qcow2 header says refcounts of 2**{order} bits", path=host.path)
        compression = first[_COMPRESSION_AT] if length > _COMPRESSION_AT else 0
        return cls(bits, compatible, autoclear, order, length, compression)


def _check_features(host: HostFile, more: _Version3, named: bytes, crypt: int) -> None:
    """Refuse by name what this version does not know.  Raises Unsupported and Corrupt."""
    if crypt:
        kind = _ENCRYPTIONS.get(crypt, f"method {crypt}")
        raise Unsupported(
            f"is encrypted ({kind})", path=host.path,
            hint="qemu-img convert, with the key, makes a plain one",
        )
    unknown = more.incompatible & ~sum(Incompatible)
    if unknown:
        names = ", ".join(_feature_names(named, unknown))
        raise Unsupported(
            f"needs what this version does not have: {names}", path=host.path,
            hint="qemu-img convert makes an image without",
        )
    if more.compression > 1:
        raise Unsupported(
            f"is compressed by method {more.compression}, neither zlib nor zstd", path=host.path
        )
    if bool(more.compression) is not bool(more.incompatible & Incompatible.COMPRESSION):
        raise Corrupt("the qcow2 header contradicts itself about its compression", path=host.path)


def _feature_names(named: bytes, bits: int) -> Iterator[str]:
    """The names of incompatible features, from the image's own table where that has them."""
    for bit in range(64):
        if not bits >> bit & 1:
            continue
        for at in range(0, len(named) - _FEATURE_BYTES + 1, _FEATURE_BYTES):
            if named[at] == 0 and named[at + 1] == bit:
                yield named[at + 2 : at + _FEATURE_BYTES].split(b"\0")[0].decode(errors="replace")
                break
        else:
            yield f"feature {bit}"


def _extension(kind: int, data: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


def _extensions(
    host: HostFile, first: bytes, start: int, backing_offset: int
) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each header extension; they end where the backing file's name begins."""
    end = backing_offset if start <= backing_offset < len(first) else len(first)
    at = start
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(first, at)
        at += _EXTENSION.size
        if kind == EXTENSION_END:
            return
        if length > end - at:
            raise Corrupt(
                f"a qcow2 header extension is {length} bytes long, which is more than there are",
                path=host.path,
            )
        yield kind, first[at : at + length]
        at += -(-length // 8) * 8


def _backing_name(host: HostFile, first: bytes, offset: int, length: int) -> str | None:
    if offset == 0:
        return None
    if length > BACKING_NAME_MAX or offset + length > len(first):
        raise Corrupt("its backing file's name lies outside the header's cluster", path=host.path)
    return _text(first[offset : offset + length]) or None


def _bitmaps(host: HostFile, data: bytes | None) -> Bitmaps | None:
    if data is None:
        return None
    if len(data) != _BITMAPS.size:
        raise Corrupt("the qcow2 header's extension for bitmaps is damaged", path=host.path)
    count, _, length, offset = _BITMAPS.unpack(data)
    return Bitmaps(count, length, offset)


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="surrogateescape")
