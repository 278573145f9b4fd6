"""The fuzz driver for formats: real images, their headers and tables changed at random.

The contract is one line: an image is opened and can be read, or InvalidFormat, Corrupt or
Unsupported is raised.  A further format adds its seeds to `SEEDS`.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

from google_crc32c import value
from vhdx_bytes import BAT_GUID, VhdxFile, log_entry

import qemu
from vdisk.create import create_image, plan_disk
from vdisk.errors import Corrupt, HostError, InvalidFormat, NotFound, NotPermitted, Unsupported
from vdisk.formats.registry import FORMATS
from vdisk.formats.vmdk_stream import pack_grain, stream_optimized
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.parents import opening

REFUSALS = (InvalidFormat, Corrupt, Unsupported)
# A parent or extent that is named and is not there, and a file that ends inside a table.
_SURROUNDINGS = (NotFound, NotPermitted, HostError)
_CHECKED_MAX = 64 << 20  # Checking reads every table, which is not for each of many thousands.
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 63)


@dataclass(frozen=True)
class Seed:
    """A real image: `make(path)` makes it; `regions` are (offset, length) of headers and tables.

    A negative offset counts from the end of the file.  `count` is how many mutations the suite
    tries, `slow_count` how many it does with --slow, several times; fewer of an image whose parent
    has to be found each time.  `checksums` says what to write where, so that a mutation comes past
    them; most get that.
    """

    name: str
    format: str
    make: Callable[[Path], None]
    regions: tuple[tuple[int, int], ...]
    count: int = 95_000
    byteorder: str = "<"
    slow_count: int | None = None
    checksums: Callable[[HostFile], dict[int, bytes]] = lambda host: {}


def _vdi_of_qemu(path: Path) -> None:
    qemu.create(path, "vdi", 8 << 20)
    qemu.scatter(path, "vdi", bytearray(8 << 20), Random(0), 5)


def _vdi_overlay(path: Path) -> None:
    base = path.with_name("base.vdi")
    create_image(base, plan_disk(size_bytes=1 << 20))
    new = plan_disk(size_bytes=1 << 20)
    options = {"block-size": "4K"}
    create_image(path, type(new)(new.size_bytes, new.geometry, False, "vdi", options, base))


def _vmdk_of_qemu(path: Path) -> None:
    qemu.create(path, "vmdk", 8 << 20)
    qemu.scatter(path, "vmdk", bytearray(8 << 20), Random(0), 5)


def _vmdk_stream(path: Path) -> None:
    """128 KiB of the first and second grain of three, compressed, behind a footer."""
    packed = [(0, pack_grain(0, b"a" * 1000)), (1 << 16, pack_grain(1 << 16, b"b" * 1000))]
    parts = stream_optimized(3 << 16, packed, file_name="d", geometry=Geometry(1, 4, 17))
    path.write_bytes(b"".join(parts))


def _vmdk_overlay(path: Path) -> None:
    base = path.with_name("base.vmdk")
    create_image(base, plan_disk(size_bytes=1 << 20))
    new = plan_disk(size_bytes=1 << 20)
    options = {"subformat": "twoGbMaxExtentFlat"}
    create_image(path.with_name("flat.vmdk"), replace(new, options=options))
    create_image(path, replace(new, parent=base, options={"zeroed-grain": "on"}))


def _parallels(path: Path) -> None:
    qemu.create(path, "parallels", 8 << 20)
    qemu.scatter(path, "parallels", bytearray(8 << 20), Random(0), 5)


def _qed(path: Path) -> None:
    qemu.create(path, "qed", 8 << 20)
    qemu.scatter(path, "qed", bytearray(8 << 20), Random(0), 5)


def _qed_overlay(path: Path) -> None:
    base = path.with_name("base.qed")
    qemu.create(base, "qed", 1 << 20)
    more = ["-o", "cluster_size=4096,table_size=2", "-F", "qed", "-b", base.name]
    qemu.qemu("qemu-img", "create", "-q", "-f", "qed", *more, path)


_VMDK_HEADER = (0, 80)
_VMDK_DESCRIPTOR = (512, 400)


def _vhd_of_qemu(path: Path) -> None:
    qemu.create(path, "vhd", 8 << 20)
    qemu.scatter(path, "vhd", bytearray(8 << 20), Random(0), 3)


def _vhd_fixed(path: Path) -> None:
    options = {"subformat": "fixed"}
    new = plan_disk(size_bytes=1 << 20)
    create_image(path, type(new)(new.size_bytes, new.geometry, options=options))


def _vhd_overlay(path: Path) -> None:
    base = path.with_name("base.vhd")
    create_image(base, plan_disk(size_bytes=1 << 20))
    new = plan_disk(size_bytes=1 << 20)
    create_image(path, type(new)(new.size_bytes, new.geometry, False, "vhd", {}, base))


def _vhdx_of_qemu(path: Path) -> None:
    qemu.create(path, "vhdx", 8 << 20, block_size="1M")
    qemu.scatter(path, "vhdx", bytearray(8 << 20), Random(0), 3)


def _vhdx_overlay(path: Path) -> None:
    base = path.with_name("base.vhdx")
    create_image(base, plan_disk(size_bytes=1 << 20))
    new = plan_disk(size_bytes=1 << 20)
    create_image(path, type(new)(new.size_bytes, new.geometry, False, "vhdx", {}, base))


def _vhdx_to_replay(path: Path) -> None:
    """A log of two entries that put ten blocks into the block table, and one that undoes some."""
    create_image(path, plan_disk(size_bytes=64 << 20))
    file = VhdxFile(path)
    bat, guid = file.region(BAT_GUID), bytes(range(16))
    places = struct.pack("<10Q", *((5 + number) << 20 | 6 for number in range(10)))
    first = log_entry(guid, 3, [(bat, places.ljust(4096, b"\0")), (bat + 8192, 4096)],
                      flushed=4 << 20, last=15 << 20)  # fmt: skip
    second = log_entry(guid, 4, [(bat, 4096)], flushed=4 << 20, last=15 << 20)
    file.raw[1 << 20 : (1 << 20) + len(first + second)] = first + second
    file.set_header(48, "16s", guid)
    file.save()


def _vhdx_checksums(host: HostFile) -> dict[int, bytes]:
    """CRC-32C of headers, region tables and the first two entries of the log."""
    found = {}
    places = [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 1 << 16), (256 << 10, 1 << 16)]
    places += [(1 << 20, 8192), ((1 << 20) + 8192, 4096)]
    for at, length in places:
        content = host.read(at, length)
        if content[:4] in (b"head", b"regi", b"loge"):
            found[at + 4] = struct.pack("<I", value(content[:4] + bytes(4) + content[8:]))
    return found


def _vhd_checksums(host: HostFile) -> dict[int, bytes]:
    """By the specification, the complement of the sum of all other bytes."""
    found = {}
    for at, length, place in ((0, 512, 64), (512, 1024, 36), (host.size() - 512, 512, 64)):
        content = host.read(at, length)
        if content[:8] in (b"conectix", b"cxsparse"):
            total = sum(content) - sum(content[place : place + 4])
            found[at + place] = struct.pack(">I", ~total & 0xFFFFFFFF)
    return found


def _headed(name: str, chs: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        new = plan_disk(chs=chs)
        create_image(path, type(new)(new.size_bytes, new.geometry, True, name))

    return make


def _qcow2_of_qemu(path: Path) -> None:
    """With clusters of all kinds, and a snapshot: tables from 4 KiB on, in the first 64 KiB."""
    qemu.create(path, "qcow2", 4 << 20, cluster_size="4K")
    words = ["write -P 1 0 8k", "write -z 4k 4k", "write -c -P 2 12k 4k", "write -P 3 3M 20k"]
    qemu.qemu("qemu-io", "-f", "qcow2", *[word for each in words for word in ("-c", each)], path)
    qemu.qemu("qemu-img", "snapshot", "-c", "kept", path)
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 4 0 4k", path)


def _qcow2_overlay(path: Path) -> None:
    base = path.with_name("base.qcow2")
    create_image(base, plan_disk(size_bytes=1 << 20))
    new = plan_disk(size_bytes=1 << 20)
    options = {"extended-l2": "on", "cluster-size": "16K"}
    create_image(path, type(new)(new.size_bytes, new.geometry, False, "qcow2", options, base))
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 1 1k 20k", "-c", "write -z 64k 3k", path)


_QCOW2_HEADER = ((4, 28), (32, 40), (72, 32), (100, 60))

_VDI_HEADER = ((0x40, 0x14), (0x154, 0x84))  # What lies between is a comment.

_VHDX = (
    (64 << 10, 80), (128 << 10, 80), (192 << 10, 80), (256 << 10, 80), (2 << 20, 200),
    ((2 << 20) + (64 << 10), 256), (3 << 20, 96),
)  # fmt: skip
_VHDX_LOG = (((1 << 20), 128), ((1 << 20) + 8192, 128), ((1 << 20) + 4096, 8))

_VHD_HEADERS = ((0, 85), (512, 80), (512, 80), (512 + 576, 48))  # Both footers are the same.

SEEDS = (
    Seed("vdi of qemu", "vdi", _vdi_of_qemu, (*_VDI_HEADER, (0x200, 64))),
    Seed(
        "qcow2 of qemu", "qcow2", _qcow2_of_qemu, (*_QCOW2_HEADER, (4096, 61440)), 1000, ">", 60_000
    ),
    Seed(
        "qcow2 overlay", "qcow2", _qcow2_overlay,
        (*_QCOW2_HEADER, (16384, 16), (32768, 64), (49152, 64), (65536, 256)), 400, ">", 40_000,
    ),
    Seed("vdi overlay", "vdi", _vdi_overlay, (*_VDI_HEADER, (1 << 20, 64)), 5000),
    Seed("vmdk of qemu", "vmdk", _vmdk_of_qemu,
         (_VMDK_HEADER, _VMDK_DESCRIPTOR, (26 * 512, 8), (27 * 512, 512)), 5000,
         slow_count=25_000),
    Seed("vmdk overlay", "vmdk", _vmdk_overlay, (_VMDK_HEADER, _VMDK_DESCRIPTOR), 1500,
         slow_count=5000),
    Seed("vmdk stream", "vmdk", _vmdk_stream,
         (_VMDK_HEADER, (128 * 512, 40), (-9 * 512, 16), (-4 * 512, 4), (-1024, 80)), 5000,
         slow_count=25_000),
    Seed("vhd of qemu", "vhd", _vhd_of_qemu, (*_VHD_HEADERS, (1536, 16)), 10_000, ">", 100_000,
         _vhd_checksums),
    Seed("vhd overlay", "vhd", _vhd_overlay, (*_VHD_HEADERS, (1536, 1024)), 2000, ">", 5000,
         _vhd_checksums),
    Seed("vhdx of qemu", "vhdx", _vhdx_of_qemu, _VHDX, 3000, "<", 100_000, _vhdx_checksums),
    Seed("vhdx overlay", "vhdx", _vhdx_overlay, _VHDX, 1000, "<", 5000, _vhdx_checksums),
    Seed("vhdx to replay", "vhdx", _vhdx_to_replay, (*_VHDX, *_VHDX_LOG, *_VHDX_LOG), 1500, "<",
         50_000, _vhdx_checksums),
    Seed("fixed vhd", "vhd", _vhd_fixed, ((-512, 85),), 2000, ">", 5000, _vhd_checksums),
    Seed("hdi", "hdi", _headed("hdi", "20/4/17"), ((0, 32),), 4000),
    Seed("nhd", "nhd", _headed("nhd", "20/4/17"), ((0x110, 14),), 4000),
    Seed("parallels", "parallels", _parallels, ((0, 96),), 5000),
    Seed("qed", "qed", _qed, ((0, 64), (1 << 16, 8), (5 << 16, 512)), 5000),
    Seed("qed overlay", "qed", _qed_overlay, ((0, 80), (4096, 16)), 1500),
)  # fmt: skip


def mutated(
    original: bytes, regions: list[tuple[int, int]], random: Random, order: str
) -> dict[int, bytes]:
    """One to four fields or bytes in the regions, by offset, and what to change them to."""
    changed = {}
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        start, length = random.choice(regions)
        code, size = random.choice([("B", 1), ("H", 2), ("I", 4), ("I", 4), ("Q", 8)])
        at = start + random.randrange(max(length // size, 1)) * size
        if at + size > len(original):
            continue
        (old,) = struct.unpack_from(order + code, original, at)
        edge = random.choice(_EDGES)
        new = random.choice([edge, old + 1, old - 1, old ^ (1 << random.randrange(size * 8)),
                             random.getrandbits(size * 8)])  # fmt: skip
        changed[at] = struct.pack(order + code, new % (1 << (8 * size)))
    return changed


def fuzz(seed: Seed, folder: Path, count: int, number: int = 0) -> dict[str, int]:
    """Open and read `count` mutations; how often each outcome was met.

    Raises whatever breaks the contract, and AssertionError where memory grew by 100 MB.
    """
    path = folder / f"seed.{seed.format}"
    seed.make(path)
    original = path.read_bytes()
    regions = [(at % len(original), length) for at, length in seed.regions]
    random = Random(number)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    met: dict[str, int] = {}
    host = HostFile.open(path, writable=True, lock=False)
    try:
        for _ in range(count):
            change = mutated(original, regions, random, seed.byteorder)
            for at, new in change.items():
                host.write(at, new)
            sums = seed.checksums(host) if random.random() < 0.8 else {}
            for at, new in sums.items():
                host.write(at, new)
            outcome = _outcome(seed, host)
            for at, new in (change | sums).items():
                host.write(at, original[at : at + len(new)])
            met[outcome] = met.get(outcome, 0) + 1
    except BaseException:
        print(f"{seed.name}, {number}: {change}")
        raise
    finally:
        host.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, f"memory grew by {grown} KiB"
    return met


def _outcome(seed: Seed, host: HostFile) -> str:
    """The refusal's name, or "opened" where it can be looked at all over."""
    try:
        image = FORMATS[seed.format].open(host, opening(host, lock=False))
    except (*REFUSALS, *_SURROUNDINGS) as error:
        return type(error).__name__
    disk = ImageDisk(image, address="fuzzed", sector_size=512, read_only=True)
    try:
        for offset in {0, disk.size // 2, max(disk.size - 512, 0)}:
            with suppress(Corrupt, Unsupported, HostError):
                disk.read(offset, min(512, disk.size - offset))
            with suppress(Corrupt, Unsupported, HostError):
                next(image.map(offset, disk.size - offset), None)
        if disk.size <= _CHECKED_MAX:
            with suppress(Corrupt, Unsupported, HostError):
                list(islice(image.check(), 10))
        image.info()
        return "opened"
    finally:
        for each in image.hosts():
            if each is not host:
                each.close()
        if image.parent is not None:
            image.parent.close()
