"""Making a QCOW2 image.

All that is to be there is laid out first, and then written from the tables to the header: until
that is there, it is no QCOW2 image.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Option
from vdisk.formats.qcow2 import counts
from vdisk.formats.qcow2.backing import backing_format, backing_name
from vdisk.formats.qcow2.entry import ALL_SUBCLUSTERS, COPIED
from vdisk.formats.qcow2.header import (
    CLUSTER_BITS_MAX,
    CLUSTER_BITS_MIN,
    EXTENDED_CLUSTER_BITS_MIN,
    L1_BYTES_MAX,
    REFCOUNT_TABLE_BYTES_MAX,
    Autoclear,
    Compatible,
    Header,
    Incompatible,
)
from vdisk.formats.table import big_endian
from vdisk.host import HostFile

_VERSIONS = {"0.10": 2, "1.1": 3}
_COMPRESSIONS = {"zlib": 0, "zstd": 1}
_ON_OFF = ("on", "off")
_WIDTHS = ("1", "2", "4", "8", "16", "32", "64")
_WORDS_AT_ONCE = 1 << 17  # 1 MiB of a table.
_ZEROS = bytes(1 << 20)

QCOW2_OPTIONS = (
    Option("cluster-size", "bytes that are allocated at once, 512 to 2M", "64K"),
    Option("compat", "the oldest QEMU that opens it: 0.10 is version 2, 1.1 version 3", "1.1",
           tuple(_VERSIONS)),
    Option("preallocation", "what is allocated at once: nothing, the tables, the space as well, "
           "or space that has been written to", "off", ("off", "metadata", "falloc", "full")),
    Option("extended-l2", "allocate in 32nds of a cluster; for overlays of large clusters", "off",
           _ON_OFF),
    Option("refcount-bits", "how high it counts who shares a cluster", "16", _WIDTHS),
    Option("lazy-refcounts", "let QEMU put off its refcounts", "off", _ON_OFF),
    Option("compression-type", "how clusters are compressed by those who do", "zlib",
           tuple(_COMPRESSIONS)),
    Option("data-file", "a new file beside it that holds the disk's bytes, by its name", ""),
    Option("data-file-raw", "keep that file a raw image of the disk", "off", _ON_OFF),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Layout:
    """The first cluster of each part, in the order in which they lie; `data` is the last."""

    refcount_table: int
    blocks: int
    l1: int
    l2: int
    data: int
    end: int


def create_qcow2(creation: Creation) -> None:
    """Write a new QCOW2 image, an overlay where there is a parent.

    Raises InvalidArgument for what such an image cannot be.
    """
    header = new_header(creation)
    is_full = creation.options["preallocation"] != "off"
    layout = _layout(creation, header, is_full)
    data = None
    if header.data_file is not None:
        data = creation.another(creation.options["data-file"])
        data.truncate(header.size if is_full or header.data_file_is_raw else 0)
    header = replace(
        header,
        l1_offset=layout.l1 * header.cluster_size,
        refcount_table_offset=layout.refcount_table * header.cluster_size,
        refcount_table_clusters=layout.blocks - layout.refcount_table,
    )
    host = creation.host
    host.truncate(layout.end * header.cluster_size)
    _write_refcounts(host, header, layout)
    if is_full:
        _write_mapping(host, header, layout)
        _take_space(creation, header, layout, data)
    host.write(0, header.first_cluster())


def new_header(creation: Creation) -> Header:
    """The header of a new image by its options, with nothing placed yet.

    Raises InvalidArgument for what such an image cannot be.
    """
    options = creation.options
    is_on = {name for name, value in options.items() if value == "on"}
    version = _VERSIONS[options["compat"]]
    incompatible = Incompatible(0)
    if "extended-l2" in is_on:
        incompatible |= Incompatible.EXTENDED_L2
    if options["data-file"]:
        incompatible |= Incompatible.DATA_FILE
    if options["compression-type"] != "zlib":
        incompatible |= Incompatible.COMPRESSION
    size = creation.power("cluster-size", 1 << CLUSTER_BITS_MIN, 1 << CLUSTER_BITS_MAX)
    header = Header(
        version, size.bit_length() - 1, creation.size, 0, 0, 0, 0,
        incompatible=incompatible,
        compatible=Compatible.LAZY_REFCOUNTS if "lazy-refcounts" in is_on else 0,
        autoclear=Autoclear.RAW_DATA_FILE if "data-file-raw" in is_on else 0,
        refcount_order=int(options["refcount-bits"]).bit_length() - 1,
        compression=_COMPRESSIONS[options["compression-type"]],
        backing=backing_name(creation.parent_name),
        backing_format=backing_format(creation.parent),
        data_file=_data_file_name(creation),
    )
    header = replace(header, l1_entries=header.l1_entries_for(header.size))
    _check(creation, header)
    return header


def _check(creation: Creation, header: Header) -> None:
    name = creation.options["data-file"] or None
    asked = header.incompatible or header.compatible or header.autoclear
    checks = (
        (
            header.version >= 3 or (not asked and header.refcount_order == 4),
            "these options need version 3: compat=1.1",
        ),
        (
            not header.extended or header.cluster_bits >= EXTENDED_CLUSTER_BITS_MIN,
            f"extended-l2=on needs clusters of {1 << EXTENDED_CLUSTER_BITS_MIN} bytes or more",
        ),
        (
            creation.parent is None or creation.options["preallocation"] == "off",
            "an overlay has nothing allocated: what it had would hide its parent",
        ),
        (
            name is None or ("/" not in name and name not in (".", "..")),
            f"data-file={name} is not a name of a file beside it",
        ),
        (not header.autoclear or name is not None, "data-file-raw=on needs a data-file"),
        (not header.autoclear or creation.parent is None, "a raw data file has no parent beneath"),
        (
            name is None or not header.compression,
            "with a data file nothing is compressed: compression-type=zlib",
        ),
        (
            8 * header.l1_entries <= L1_BYTES_MAX,
            f"with clusters of {header.cluster_size} bytes it is at most "
            f"{L1_BYTES_MAX // 8 * header.l2_reach} bytes large",
        ),
    )
    for holds, what in checks:
        if not holds:
            raise InvalidArgument(what, path=creation.host.path)


def _data_file_name(creation: Creation) -> str | None:
    """The full path, for QEMU does not take a name as one in the image's folder."""
    name = creation.options["data-file"]
    folder = os.path.realpath(creation.host.path.parent)
    return os.path.join(folder, name) if name else None


def _layout(creation: Creation, header: Header, is_full: bool) -> _Layout:
    """Room for everything, counted by as many refcount blocks as that takes."""
    l1 = header.clusters(8 * header.l1_entries)
    l2 = header.l1_entries if is_full else 0
    data = header.clusters(header.size) if is_full and not header.has_data_file else 0
    blocks, table = room_for_counts(header, 1 + l1 + l2 + data, creation.host.path)
    end = 1 + table + blocks + l1 + l2 + data
    at = 1 + table
    return _Layout(1, at, at + blocks, at + blocks + l1, at + blocks + l1 + l2, end)


def room_for_counts(
    header: Header, used: int, path: Path, *, written: int = 0
) -> tuple[int, int]:
    """(refcount blocks, clusters of the table of all blocks) that are to follow `used` clusters.

    They count themselves, too.  `written` blocks are among those clusters already.  Raises
    InvalidArgument where the table becomes larger than readers take.
    """
    table = blocks = 0
    while True:
        now = -(-(used + table + blocks) // header.counts_per_block)
        needed = header.clusters(8 * now), now - written
        if needed == (table, blocks):
            break
        table, blocks = max(table, needed[0]), max(blocks, needed[1])
    if table * header.cluster_size > REFCOUNT_TABLE_BYTES_MAX:
        raise InvalidArgument(
            "all of it cannot be counted", path=path,
            hint="with larger clusters, or fewer refcount-bits, it can",
        )
    return blocks, table


def _write_refcounts(host: HostFile, header: Header, layout: _Layout) -> None:
    size, per_block = header.cluster_size, header.counts_per_block
    places = range(layout.blocks * size, layout.l1 * size, size)
    _write_words(host, layout.refcount_table * size, places)
    block = array(counts.code(header.refcount_order), [1]) * per_block
    full = counts.pack(block, header.refcount_order)
    for place in places[:-1]:
        host.write(place, full)
    used = layout.end - (len(places) - 1) * per_block
    block[used:] = array(block.typecode, [0]) * (per_block - used)
    host.write(places[-1], counts.pack(block, header.refcount_order))


def _write_mapping(host: HostFile, header: Header, layout: _Layout) -> None:
    """Every guest cluster has its place, one after the other."""
    size = header.cluster_size
    l2 = range(layout.l2 * size, layout.data * size, size)
    _write_words(host, layout.l1 * size, l2, COPIED)
    first = 0 if header.has_data_file else layout.data * size
    data = range(first, first + header.clusters(header.size) * size, size)
    _write_words(host, layout.l2 * size, data, COPIED, with_bitmaps=header.extended)


def _write_words(
    host: HostFile, place: int, words: range, flag: int = 0, *, with_bitmaps: bool = False
) -> None:
    for at in range(0, len(words), _WORDS_AT_ONCE):
        part = [word | flag for word in words[at : at + _WORDS_AT_ONCE]]
        if with_bitmaps:
            part = [word for each in part for word in (each, ALL_SUBCLUSTERS)]
        values = array("Q", part)
        host.write(place, big_endian(values))
        place += 8 * len(values)


def _take_space(
    creation: Creation, header: Header, layout: _Layout, data: HostFile | None
) -> None:
    """What the guest's clusters take up, where that is asked for."""
    size = header.cluster_size
    host, start, end = creation.host, layout.data * size, layout.end * size
    if data is not None:
        host, start, end = data, 0, header.size
    match creation.options["preallocation"]:
        case "falloc":
            if not host.allocate(start, end - start):
                host.zero(start, end - start)
        case "full":
            for at, length in _chunks(start, end):
                host.write(at, _ZEROS[:length])


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, len(_ZEROS)):
        yield at, min(len(_ZEROS), end - at)
