"""The geometry that other programs write into an image's header, and the size they read from it.

VHD, VMDK and Parallels.  All sectors here are of 512 bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vdisk.errors import InvalidArgument
from vdisk.translation import VHD_SECTORS_MAX, Counts, fixed_heads, vhd
from vdisk.units import SECTOR

QEMU_VHD_SECTORS_MAX = 0xFF000000
"""The largest VHD that QEMU makes: 2040 GiB."""

VHD_LARGEST = Counts(65535, 16, 255)
"""The largest geometry that a VHD footer holds: 136899993600 bytes."""


class VhdFooter(NamedTuple):
    """What a VHD's footer says of its size; `creator` is the creator application, four bytes."""

    counts: Counts
    current_size: int
    creator: bytes


class VhdSizeRule(Enum):
    """Who reads the footer: the rules of QEMU to 9.2 and from 10.0."""

    QEMU_9 = 9
    QEMU_10 = 10


# Whose VHDs are as large as `current_size` says (QEMU to 9.2), and whose as C/H/S says (from 10.0).
_CURRENT_SIZE_QEMU_9 = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
_CHS_QEMU_10 = (b"vpc ", b"qemu")


def vhd_virtual_size(footer: VhdFooter, rule: VhdSizeRule) -> int:
    """The disk's size in bytes, by C*H*S or by the current size, as that reader decides.

    The largest geometry always means the current size.
    """
    if rule is VhdSizeRule.QEMU_9:
        by_current = footer.creator in _CURRENT_SIZE_QEMU_9
    else:
        by_current = footer.creator not in _CHS_QEMU_10
    if by_current or footer.counts == VHD_LARGEST:
        return footer.current_size
    return _product(footer.counts) * SECTOR


def qemu_vhd_footer(size_bytes: int, *, force_size: bool = False) -> VhdFooter:
    """The footer that `qemu-img create -f vpc` makes for a disk of `size_bytes`.

    The geometry is the specification's for the fewest sectors at which it holds the disk, and the
    disk grows to it; with `force_size` the disk keeps its size and has the largest geometry.
    Raises InvalidArgument above 2040 GiB.
    """
    sectors = -(-size_bytes // SECTOR)
    if sectors > QEMU_VHD_SECTORS_MAX:
        raise InvalidArgument(f"{size_bytes} bytes are more than the 2040 GiB of the largest VHD")
    if force_size:
        return VhdFooter(VHD_LARGEST, sectors * SECTOR, b"qem2")
    counts = _vhd_covering(sectors)
    exact = sectors if counts == VHD_LARGEST else _product(counts)
    return VhdFooter(counts, exact * SECTOR, b"qemu")


def _vhd_covering(sectors: int) -> Counts:
    """The first geometry of the specification's rule that holds `sectors`, or the largest.

    A cylinder has at most 4080 sectors, and the search ends within a few of them.
    """
    wanted = min(sectors, VHD_SECTORS_MAX)
    tried = wanted
    while _product(vhd(tried)) < wanted:
        tried += 1
    return vhd(tried)


def _product(counts: Counts) -> int:
    return counts.cylinders * counts.heads * counts.sectors_per_track


def vmdk_geometry(sectors: int, adapter_type: str) -> Counts:
    """`ddb.geometry`: 16/63 for the adapter "ide", 255/63 for every other; cylinders may be 0."""
    return fixed_heads(sectors, 16, 63) if adapter_type == "ide" else fixed_heads(sectors, 255, 63)


def vmdk_bios_geometry(sectors: int) -> Counts:
    """`ddb.geometry.bios…`, which VMware adds for a disk that needs translation: 255/63."""
    return fixed_heads(sectors, 255, 63)


def parallels_geometry(sectors: int) -> Counts:
    """16/32, whatever the size."""
    return fixed_heads(sectors, 16, 32)
