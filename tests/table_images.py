"""Disks with partition tables for the tests: made by real tools, or entry by entry from bytes."""

from __future__ import annotations

import json
import re
import shlex
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

from vdisk.tables import Partition, Scan, read_table

MIB = 1 << 20


def run(*command: object, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """A tool, in the C.UTF-8 locale; with `check` it must succeed."""
    return subprocess.run(
        [str(word) for word in command],
        input=stdin,
        capture_output=True,
        text=True,
        check=check,
        timeout=30,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )


def blank(path: Path, size: int = 64 * MIB) -> Path:
    """A sparse file of `size` bytes."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def scan_bytes(disk: bytes | bytearray, sector_size: int = 512) -> Scan:
    """What is found on a disk of these bytes; a read outside it, or an empty one, fails."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        assert offset + length <= len(disk)
        return bytes(disk[offset : offset + length])

    return read_table(read, len(disk), sector_size)


def scan_file(path: Path, sector_size: int = 512) -> Scan:
    """What is found in the image `path`; a read outside it, or an empty one, fails."""
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            assert 0 < length <= size - offset
            file.seek(offset)
            return file.read(length)

        return read_table(read, size, sector_size)


def slices(scan: Scan) -> list[tuple[int, int, int]]:
    """(number, start, sectors) of the partitions that are given as disks."""
    return [(one.number, one.start_lba, one.sectors) for one in scan.slices]


def only_problem(scan: Scan) -> str:
    """The one problem that the table has; more or fewer fail."""
    assert scan.table is not None
    (problem,) = scan.table.problems
    return problem


def partition(scan: Scan, number: int) -> Partition:
    """Partition `number` of the table; it must be there."""
    assert scan.table is not None
    (found,) = [one for one in scan.table.partitions if one.number == number]
    return found


def sfdisk_json(path: Path) -> dict[str, Any]:
    """What sfdisk reads from `path`."""
    table: dict[str, Any] = json.loads(run("sfdisk", "-J", path).stdout)["partitiontable"]
    return table


def sfdisk_rows(path: Path) -> list[tuple[int, int, int]]:
    """(number, start, sectors) as sfdisk reads them."""
    found = sfdisk_json(path).get("partitions", [])
    return [(_node_number(one["node"]), one["start"], one["size"]) for one in found]


def _node_number(node: str) -> int:
    found = re.search(r"\.img(\d+)$", node)
    assert found is not None
    return int(found[1])


def partx(path: Path, sector_size: int = 512) -> list[dict[str, str]]:
    """What libblkid, which has the kernel's rules, reads: a dictionary a partition.

    `START` and `SECTORS` are converted from its 512-byte units to the disk's sectors.  A disk
    where it finds no table gives an empty list.
    """
    columns = "NR,START,SECTORS,TYPE,UUID,NAME,FLAGS"
    done = run("partx", "-P", "-S", sector_size, "-o", columns, path, check=False)
    rows = []
    for line in done.stdout.splitlines():
        row = dict(word.split("=", 1) for word in shlex.split(line))
        for column in ("START", "SECTORS"):
            row[column] = str(int(row[column]) * 512 // sector_size)
        rows.append(row)
    return rows


def partx_rows(path: Path, sector_size: int = 512) -> list[tuple[int, int, int]]:
    """(number, start, sectors) as libblkid reads them."""
    return [
        (int(row["NR"]), int(row["START"]), int(row["SECTORS"]))
        for row in partx(path, sector_size)
    ]


def entry(type_code: int, start: int, sectors: int, *, boot: int = 0) -> bytes:
    """The 16 bytes of an MBR entry."""
    return struct.pack("<B3sB3sII", boot, b"\0\x02\0", type_code, b"\xfe\xff\xff", start, sectors)


def record(*entries: bytes, signature: int = 0x12345678) -> bytes:
    """A 512-byte MBR or EBR of up to four entries."""
    table = b"".join(entries).ljust(64, b"\0")
    return bytes(440) + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"


def disk_of(
    sectors: dict[int, bytes], size: int = 16 * MIB, sector_size: int = 512
) -> bytearray:
    """A disk of zeros with these bytes at these LBAs."""
    disk = bytearray(size)
    for lba, data in sectors.items():
        disk[lba * sector_size : lba * sector_size + len(data)] = data
    return disk


def flip(disk: bytearray, *offsets: int) -> bytearray:
    """`disk` with the bits of these bytes inverted; negative offsets count from the end."""
    for offset in offsets:
        disk[offset] ^= 0xFF
    return disk


def set_header_field(disk: bytearray, lba: int, field: str, offset: int, value: int) -> None:
    """Changes a field of the GPT header at `lba` and makes its CRC right again."""
    base = lba * 512
    struct.pack_into(field, disk, base + offset, value)
    fix_header_crc(disk, lba)


def fix_header_crc(disk: bytearray, lba: int) -> None:
    """Makes the CRC of the GPT header at `lba` right, if its size makes sense."""
    base = lba * 512
    (size,) = struct.unpack_from("<I", disk, base + 12)
    if size <= 512:
        struct.pack_into("<I", disk, base + 16, 0)
        struct.pack_into("<I", disk, base + 16, zlib.crc32(disk[base : base + size]))


def fix_entries_crc(disk: bytearray, lba: int) -> None:
    """Makes the CRC of the entries of the GPT header at `lba` right, and its own with it."""
    entries_lba, count, size = struct.unpack_from("<QII", disk, lba * 512 + 72)
    start = entries_lba * 512
    if count * size <= 4 * MIB and start < len(disk):
        crc = zlib.crc32(disk[start : start + count * size])
        struct.pack_into("<I", disk, lba * 512 + 88, crc)
    fix_header_crc(disk, lba)
