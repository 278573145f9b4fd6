"""The formats by name, and how an image's format is told.

Order of belief: the format the user gives; the format recorded with the file; the file's own
signature.  A signature of a format that this version does not open is refused by name: reading
such a file as raw would show its tables as if they were the guest's bytes, and writing would
destroy it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdisk.errors import InvalidArgument, Unsupported
from vdisk.formats.base import ImageFormat
from vdisk.formats.raw import Raw
from vdisk.host import HostFile
from vdisk.record import FORMAT_ATTRIBUTE, stored_format

FORMATS: dict[str, Callable[[HostFile], ImageFormat]] = {Raw.name: Raw}
"""Each format's name, and what opens it."""

IMAGE_EXTENSIONS = (
    ".img", ".raw", ".ima", ".image", ".dd", ".dsk", ".flp", ".vfd", ".hdd", ".hda", ".hdf",
    ".vhd", ".vhdx", ".vdi", ".vmdk", ".qcow2", ".qcow", ".qed", ".hds", ".hdi", ".nhd", ".thd",
    ".fdi", ".adf", ".bin", ".iso",
)  # fmt: skip
"""File name extensions by which a file in a folder is taken for an image."""


@dataclass(frozen=True, slots=True)
class _Signature:
    offset: int  # From the file's start; negative: from its end.
    magic: bytes
    format: str
    tool: str = "qemu-img convert -O raw"


_SIGNATURES = (
    _Signature(0, b"QFI\xfb", "qcow2"),
    _Signature(0, b"vhdxfile", "vhdx"),
    _Signature(0, b"conectix", "vhd"),
    _Signature(-512, b"conectix", "vhd"),
    _Signature(0x40, b"\x7f\x10\xda\xbe", "vdi"),
    _Signature(0, b"KDMV", "vmdk"),
    _Signature(0, b"COWD", "vmdk"),
    _Signature(0, b"# Disk DescriptorFile", "vmdk"),
    _Signature(0, b"QED\0", "qed"),
    _Signature(0, b"WithoutFreeSpace", "parallels"),
    _Signature(0, b"WithouFreSpacExt", "parallels"),
    _Signature(0, b"T98HDDIMAGE.R0\0", "nhd", "a PC-98 emulator"),
    _Signature(0, b"VHD1.00\0", "virtual98", "a PC-98 emulator"),
    _Signature(0, b"EVF\x09\x0d\x0a\xff\0", "ewf", "ewfmount"),
    _Signature(-512, b"koly", "dmg", "dmg2img"),
)


def open_format(host: HostFile, given: str | None = None) -> ImageFormat:
    """The image in `host`, opened by the `given` format, the recorded one, or its signature.

    Raises InvalidArgument where the given format, Unsupported where the recorded or recognised one
    is none that this version opens.  A format that was recorded wins over bytes in the file.
    """
    recorded = None if given else stored_format(host)
    name = given or recorded
    if name is None:
        foreign = signature(host)
        if foreign is None:
            return Raw(host)
        raise Unsupported(
            f"is a {foreign.format} image, which this version does not open",
            path=host.path,
            hint=f"convert it ({foreign.tool}), or use its bytes as they are with --format raw",
        )
    if name not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        if recorded is not None:
            raise Unsupported(
                f"the recorded format {recorded!r} is not one this version opens",
                path=host.path,
                hint=f"give --format (one of: {known}), "
                f"or remove the record: setfattr -x {FORMAT_ATTRIBUTE} FILE",
            )
        raise InvalidArgument(
            f"format {name!r} is not one this version opens", path=host.path, hint=f"known: {known}"
        )
    return FORMATS[name](host)


def signature(host: HostFile) -> _Signature | None:
    """The signature of a format other than raw found in `host`, None where there is none."""
    size = host.size()
    for candidate in _SIGNATURES:
        offset = candidate.offset if candidate.offset >= 0 else size + candidate.offset
        if offset < 0 or offset + len(candidate.magic) > size:
            continue
        found = bytearray(len(candidate.magic))
        host.read_into(memoryview(found), offset)
        if found == candidate.magic:
            return candidate
    return None
