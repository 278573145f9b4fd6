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
from vdisk.formats.base import ImageFormat, Opening
from vdisk.formats.creation import Creation, Option
from vdisk.formats.raw import Raw, create_raw, open_raw
from vdisk.formats.vdi import Vdi, open_vdi
from vdisk.formats.vdi_create import VDI_OPTIONS, create_vdi
from vdisk.host import HostFile
from vdisk.record import DRIVE_FORMAT, FORMAT_ATTRIBUTE, stored_format


@dataclass(frozen=True, slots=True)
class Format:
    """A format that this version knows: what opens it, what makes it, and by which names.

    `create` is None where it is not made here.  `extensions` are the file names that mean it when
    a disk is created.  `stores_geometry` as the format's own: else it is kept beside the image.
    """

    name: str
    open: Callable[[HostFile, Opening], ImageFormat]
    create: Callable[[Creation], None] | None = None
    extensions: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    stores_geometry: bool = False
    overlays: bool = False


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(Raw.name, open_raw, create_raw),
        Format(
            Vdi.name, open_vdi, create_vdi, (".vdi",), VDI_OPTIONS,
            stores_geometry=True, overlays=True,
        ),
    )
}  # fmt: skip
"""Each format by its name."""

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


def open_format(host: HostFile, opening: Opening, given: str | None = None) -> ImageFormat:
    """The image in `host`, opened by the `given` format, the recorded one, or its signature.

    Raises InvalidArgument where the given format, Unsupported where the recorded or recognised one
    is none that this version opens, and what opening raises.  A format that was recorded wins over
    bytes in the file.
    """
    return format_of(host, given).open(host, opening)


def format_of(host: HostFile, given: str | None = None) -> Format:
    """The format of the image in `host`, believed in the order that `open_format` says."""
    recorded = None if given else stored_format(host)
    name = given or recorded
    if name == DRIVE_FORMAT and given is None:
        return FORMATS[Raw.name]
    if name is None:
        return _recognised(host)
    if name in FORMATS:
        return FORMATS[name]
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


def _recognised(host: HostFile) -> Format:
    """By the file's own signature; raw where it has none."""
    found = signature(host)
    if found is None:
        return FORMATS[Raw.name]
    if found.format in FORMATS:
        return FORMATS[found.format]
    raise Unsupported(
        f"is a {found.format} image, which this version does not open",
        path=host.path,
        hint=f"convert it ({found.tool}), or use its bytes as they are with --format raw",
    )


def signature(host: HostFile) -> _Signature | None:
    """The signature of a format other than raw found in `host`, None where there is none."""
    size = host.size()
    for candidate in _SIGNATURES:
        offset = candidate.offset if candidate.offset >= 0 else size + candidate.offset
        if offset < 0 or offset + len(candidate.magic) > size:
            continue
        if host.read(offset, len(candidate.magic)) == candidate.magic:
            return candidate
    return None
