"""The formats by name, and how an image's format is told.

Order of belief: the format the user gives; the format recorded with the file; the file's own
signature.  A signature of a format that this version does not open is refused by name: reading
such a file as raw would show its tables as if they were the guest's bytes, and writing would
destroy it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vdisk.errors import InvalidArgument, Unsupported
from vdisk.formats.base import ImageFormat, Opening
from vdisk.formats.creation import CompressedWriter, Creation, Option
from vdisk.formats.headed import opener
from vdisk.formats.headed_create import creator
from vdisk.formats.headed_layouts import FDI, HDI, HDX, NHD, SLH, THD, VIRTUAL98, Layout
from vdisk.formats.parallels import Parallels, open_parallels
from vdisk.formats.qcow2.create import QCOW2_OPTIONS, create_qcow2
from vdisk.formats.qcow2.image import Qcow2
from vdisk.formats.qcow2.opening import open_qcow2
from vdisk.formats.qcow2.pack import write_compressed
from vdisk.formats.qed import Qed, open_qed
from vdisk.formats.raw import Raw, create_raw, open_raw
from vdisk.formats.vdi import Vdi, open_vdi
from vdisk.formats.vdi_create import VDI_OPTIONS, create_vdi
from vdisk.formats.vhd import Vhd, open_vhd
from vdisk.formats.vhd_create import VHD_OPTIONS, create_vhd
from vdisk.formats.vhdx import Vhdx
from vdisk.formats.vhdx_create import VHDX_OPTIONS, create_vhdx
from vdisk.formats.vhdx_open import open_vhdx
from vdisk.formats.vmdk import Vmdk
from vdisk.formats.vmdk_create import STREAM, VMDK_OPTIONS, create_vmdk
from vdisk.formats.vmdk_descriptor import is_extent_name
from vdisk.formats.vmdk_open import open_vmdk
from vdisk.formats.vmdk_pack import write_stream
from vdisk.host import HostFile
from vdisk.record import DRIVE_FORMAT, FORMAT_ATTRIBUTE, stored_format


@dataclass(frozen=True, slots=True)
class Format:
    """A format that this version knows: what opens it, what makes it, and by which names.

    `create` is None where it is not made here.  `extensions` are the file names that mean it when
    a disk is created.  `stores_geometry` as the format's own: else it is kept beside the image.
    `is_part` tells the names of files that are parts of an image and none themselves.
    `sector_size` is that of a new disk where none is asked for.  `unsigned`: nothing in the file
    tells the format, so that a file of one of its extensions is taken for it.  `write_compressed`
    writes a whole image of compressed data, None where the format has none; an option of
    `compressing` asks for that, too.
    """

    name: str
    open: Callable[[HostFile, Opening], ImageFormat]
    create: Callable[[Creation], None] | None = None
    extensions: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    stores_geometry: bool = False
    overlays: bool = False
    is_part: Callable[[str], bool] = lambda name: False
    sector_size: int | None = None
    unsigned: bool = False
    write_compressed: CompressedWriter | None = None
    compressing: frozenset[tuple[str, str]] = frozenset()


def _headed(layout: Layout, extension: str | None = None) -> Format:
    """The format of images whose header says the geometry."""
    extensions = () if extension is None else (extension,)
    return Format(
        layout.name, opener(layout), creator(layout), extensions, stores_geometry=True,
        sector_size=layout.sector_sizes[0] if len(layout.sector_sizes) == 1 else None,
        unsigned=not layout.magic,
    )  # fmt: skip


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(Raw.name, open_raw, create_raw, unsigned=True),
        Format(
            Qcow2.name, open_qcow2, create_qcow2, (".qcow2",), QCOW2_OPTIONS, overlays=True,
            write_compressed=write_compressed,
        ),
        Format(
            Vdi.name, open_vdi, create_vdi, (".vdi",), VDI_OPTIONS,
            stores_geometry=True, overlays=True,
        ),
        Format(
            Vmdk.name, open_vmdk, create_vmdk, (".vmdk",), VMDK_OPTIONS,
            stores_geometry=True, overlays=True, is_part=is_extent_name,
            write_compressed=write_stream, compressing=frozenset({("subformat", STREAM)}),
        ),
        Format(Parallels.name, open_parallels),
        Format(Qed.name, open_qed),
        Format(
            Vhd.name, open_vhd, create_vhd, (".vhd",), VHD_OPTIONS,
            stores_geometry=True, overlays=True,
        ),
        # The same, where the user knows better than the creator's rule how large it is.
        Format("vhd-chs", partial(open_vhd, rule="chs"), stores_geometry=True),
        Format("vhd-current", partial(open_vhd, rule="current"), stores_geometry=True),
        Format(Vhdx.name, open_vhdx, create_vhdx, (".vhdx",), VHDX_OPTIONS, overlays=True),
        _headed(HDI, ".hdi"),
        _headed(FDI, ".fdi"),
        _headed(NHD, ".nhd"),
        _headed(THD, ".thd"),
        _headed(VIRTUAL98),  # Its .hdd is also what others call a raw image.
        _headed(SLH, ".slh"),
        _headed(HDX, ".hdx"),
    )
}  # fmt: skip
"""Each format by its name."""


def is_part(name: str) -> bool:
    """Whether a file of that name is a part of an image in several files, and none itself."""
    return any(entry.is_part(name) for entry in FORMATS.values())


IMAGE_EXTENSIONS = (
    ".img", ".raw", ".ima", ".image", ".dd", ".dsk", ".flp", ".vfd", ".hdd", ".hda", ".hdf",
    ".vhd", ".vhdx", ".vdi", ".vmdk", ".qcow2", ".qcow", ".qed", ".hds", ".hdi", ".nhd", ".thd",
    ".fdi", ".slh", ".hdx", ".adf", ".bin", ".iso",
)  # fmt: skip
"""File name extensions by which a file in a folder is taken for an image."""


@dataclass(frozen=True, slots=True)
class _Signature:
    """`magic` at a byte offset from the file's start, or, negative, from its end.

    `hint` is what to do with an image that this version does not open.
    """

    offset: int
    magic: bytes
    format: str
    hint: str = "convert it: qemu-img convert -O raw"
    unless_bootable: bool = False


_SIGNATURES = (
    _Signature(0, b"QFI\xfb", "qcow2"),
    _Signature(0, b"vhdxfile", "vhdx"),
    _Signature(0, b"conectix", "vhd"),
    _Signature(0x40, b"\x7f\x10\xda\xbe", "vdi"),
    _Signature(0, b"KDMV", "vmdk"),
    _Signature(0, b"COWD", "vmdk"),
    _Signature(0, b"# Disk DescriptorFile", "vmdk"),
    _Signature(0, b"\xbe\xba\xfe\xca\0\0\0\0", "vmdk"),
    _Signature(0, b"QED\0", "qed"),
    _Signature(0, b"WithoutFreeSpace", "parallels"),
    _Signature(0, b"WithouFreSpacExt", "parallels"),
    _Signature(0, NHD.magic, "nhd"),
    _Signature(0, VIRTUAL98.magic, "virtual98"),
    _Signature(0, SLH.magic, "slh"),
    _Signature(0, HDX.magic, "hdx"),
    _Signature(0, b"Bochs Virtual HD Image\0", "bochs"),
    _Signature(0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    _Signature(0, b"EVF\x09\x0d\x0a\xff\0", "ewf (E01)", "mount it: ewfmount"),
    _Signature(0, b"LVF\x09\x0d\x0a\xff\0", "ewf (L01)", "look into it: ewfmount -f files"),
    _Signature(0, b"EVF2\x0d\x0a\x81\0", "ewf (Ex01)", "mount it: ewfmount"),
    _Signature(0, b"AFF10\x0d\x0a\0", "aff", "mount it: affuse"),
    _Signature(0, b"MEDIA DESCRIPTOR\x01", "mds", "convert its .mdf: mdf2iso"),
    _Signature(0, b"\0" + 10 * b"\xff" + b"\0", "raw CD (CloneCD, BIN/CUE)",
               "convert it: ccd2iso, or bchunk where it has a cue sheet"),
    _Signature(0x8001, b"CD001", "iso9660", "mount it: mount -o loop,ro", unless_bootable=True),
    # The last sector of an image is often the guest's: it is believed last.
    _Signature(-512, b"conectix", "vhd"),
    _Signature(-511, b"conectix", "vhd"),
    _Signature(-512, b"koly", "dmg", "convert it: dmg2img, or qemu-img convert -O raw"),
)  # fmt: skip


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
    """By the file's name, where the format has no signature; by its signature; else raw."""
    named = _by_name(host)
    if named is not None:
        return named
    found = signature(host)
    if found is None:
        return FORMATS[Raw.name]
    if found.format in FORMATS:
        return FORMATS[found.format]
    raise Unsupported(
        f"is a {found.format} image, which this version does not open",
        path=host.path,
        hint=f"{found.hint}; or use its bytes as they are with --format raw",
    )


def _by_name(host: HostFile) -> Format | None:
    """Before any signature: a guest could write one into its last sector."""
    extension = host.path.suffix.lower()
    unsigned = (entry for entry in FORMATS.values() if entry.unsigned)
    return next((entry for entry in unsigned if extension in entry.extensions), None)


def signature(host: HostFile) -> _Signature | None:
    """The signature of a format other than raw found in `host`, None where there is none."""
    size = host.size()
    for candidate in _SIGNATURES:
        offset = candidate.offset if candidate.offset >= 0 else size + candidate.offset
        if offset < 0 or offset + len(candidate.magic) > size:
            continue
        if host.read(offset, len(candidate.magic)) == candidate.magic:
            if candidate.unless_bootable and host.read(510, 2) == b"\x55\xaa":
                continue  # A CD that is a disk as well: it has a partition table.
            return candidate
    return None
