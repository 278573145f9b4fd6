"""Opening a QCOW2 image, with the files that it names."""

from __future__ import annotations

import os
import re

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.base import Opening, ParentReference
from vdisk.formats.qcow2.header import Header
from vdisk.formats.qcow2.image import Qcow2
from vdisk.host import HostFile

QEMU_NAMES = {"vhd": "vpc"}
"""Formats that have another name in QEMU, which is what an image stores."""

_OWN_NAMES = {theirs: ours for ours, theirs in QEMU_NAMES.items()}
_PROTOCOL = re.compile(r"[^/:]+:")


def open_qcow2(host: HostFile, opening: Opening) -> Qcow2:
    """The QCOW2 image in `host`, with its backing file and its data file.

    Raises InvalidFormat, Corrupt, Unsupported, and what opening those files raises.
    """
    header = Header.read(host)
    host.zeros_past_end = True  # The last cluster need not be there in whole.
    data = _open_data_file(host, header, opening)
    parent = None
    try:
        if header.backing is not None:
            name = _file_name(host, header.backing, "backing file")
            format_name = header.backing_format
            reference = ParentReference(
                (name,), None if not format_name else _OWN_NAMES.get(format_name, format_name)
            )
            parent = opening.open_parent(reference)
        return Qcow2(host, header, parent, data)
    except BaseException:
        if parent is not None:
            parent.close()
        if data is not None:
            data.close()
        raise


def _open_data_file(host: HostFile, header: Header, opening: Opening) -> HostFile | None:
    if not header.has_data_file:
        return None
    if not header.data_file:
        raise Corrupt("has a data file, and does not say which", path=host.path)
    data = opening.open_file(_present(host, _file_name(host, header.data_file, "data file")))
    data.zeros_past_end = True
    if data.identity == host.identity:
        data.close()
        raise Corrupt("is its own data file", path=host.path)
    return data


def _present(host: HostFile, name: str) -> str:
    """`name`, or, where that is the full path of a file that is gone, the file beside the image.

    QEMU takes the name of a data file from where it is started, so that one that always works is a
    full path; and that is wrong when both have moved.
    """
    beside = host.path.with_name(os.path.basename(name) or ".")
    if os.path.isabs(name) and not os.path.lexists(name) and beside.exists():
        return beside.name
    return name


def _file_name(host: HostFile, name: str, what: str) -> str:
    """`name` as a path.  Unsupported for one of QEMU's pseudo-protocols (nbd:, json: …)."""
    protocol = _PROTOCOL.match(name)
    if protocol is None:
        return name
    if protocol[0] == "file:":
        return name.removeprefix("file:")
    raise Unsupported(
        f"its {what} is not a file but {protocol[0]}…, which is not followed", path=host.path,
        hint="qemu-img convert makes an image that stands alone",
    )
