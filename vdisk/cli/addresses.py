"""What the addresses on a command line have in common: a store, a disk, an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from vdisk.disk import Slice
from vdisk.errors import DiskError
from vdisk.open import open_disk

_PARTITION = re.compile(r"p([1-9][0-9]{0,8})")


def split(address: str) -> tuple[str, str]:
    """What `address` lies in, a folder or a drive, and its name there."""
    store, _, name = address.rstrip("/").rpartition("/")
    return store, name


def by_store(addresses: Iterable[str]) -> list[list[str]]:
    """Those of one folder or drive together, in the order in which they came."""
    groups: dict[str, list[str]] = {}
    for address in addresses:
        groups.setdefault(os.path.normpath(split(address)[0] or "."), []).append(address)
    return list(groups.values())


def as_partition(address: str) -> tuple[str, int] | None:
    """The disk and the number of the partition that `address` names; None where it names none.

    A volume may be called as a partition is.
    """
    whole, name = split(address)
    number = _PARTITION.fullmatch(name)
    if number is None or not whole:
        return None
    try:
        with open_disk(address, lock=False) as disk:
            return (whole, int(number[1])) if isinstance(disk, Slice) else None
    except DiskError:
        return None
