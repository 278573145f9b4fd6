"""Another backing file for an image that is there: the names in its first cluster.

Everything else in that cluster stays, extensions that are not known here included.  QEMU knows a
backing file by its name alone, so that the state it is in is not recorded.

Source: QEMU, `docs/interop/qcow2.rst`, "Header extensions".
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument
from vdisk.formats.qcow2.opening import QEMU_NAMES
from vdisk.plan import Barrier, Plan, Put

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2
    from vdisk.image_disk import ImageDisk


def backing_name(name: str | None) -> str | None:
    """How an image names its parent: a name with a colon would be one of QEMU's protocols."""
    if name is not None and re.match(r"[^/]*:", name):
        return f"./{name}"
    return name


def backing_format(parent: ImageDisk | None) -> str | None:
    """Always stored: what a guest writes into its parent is never to decide what that is."""
    if parent is None:
        return None
    name = parent.image.name
    return QEMU_NAMES.get(name, name)


def plan_parent(image: Qcow2, parent: ImageDisk | None, name: str | None) -> Plan:
    """As `ImageFormat.plan_parent`.  InvalidArgument also where the names have no room."""
    if parent is not None and image.header.data_file_is_raw:
        raise InvalidArgument(
            "a raw data file has no parent beneath", path=image.host.path
        )
    header = replace(
        image.header, backing=backing_name(name), backing_format=backing_format(parent)
    )
    old = image.host.read(0, header.cluster_size)
    raw, whole = header.renamed(image.host, old)
    if len(whole) > header.cluster_size:
        raise InvalidArgument("its header has no room for that name", path=image.host.path)
    new = whole.ljust(header.cluster_size, b"\0")
    last = max((at for at in range(0, len(new), 512) if new[at : at + 512] != old[at : at + 512]),
               default=0) + 512  # fmt: skip

    def done() -> None:
        image.header = replace(header, raw=raw)

    sync = Barrier((image.host,))
    return Plan((sync, Put(image.host, 0, new[:last], before=old[:last]), sync), done)
