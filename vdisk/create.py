"""Making a new disk: how large it is, what its geometry is, and its host file.

The format writes the image.  What its header has no room for, the format's name and the geometry,
is recorded with the file, so that what a guest writes into it later changes neither.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vdisk.errors import Exists, HostError, InvalidArgument, NotFound, NotPermitted, Unsupported
from vdisk.formats.creation import Creation, settle_options
from vdisk.formats.raw import Raw
from vdisk.formats.registry import FORMATS, Format
from vdisk.geometry import (
    Geometry,
    check_fits,
    choose,
    derive,
    profile_sector_size,
    profile_size,
)
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import NO_OPTIONS, OpenOptions, open_image
from vdisk.record import store_format, store_geometry
from vdisk.units import SECTOR, SIZE_BYTES_MAX

_FOREIGN_EXTENSIONS = frozenset(
    {".vhd", ".vhdx", ".vdi", ".vmdk", ".qcow2", ".qcow", ".qed", ".hds"}
)


@dataclass(frozen=True, slots=True)
class NewDisk:
    """What is to be made: `size_bytes` is whole sectors of the geometry's sector size.

    `geometry_given` says that the geometry, or the rule that makes it, was asked for: else a format
    that stores one may choose another.  `format` is the format's name, None where the file's name
    says it.  `options` are the format's (`-o`).  `parent` is the image that the new one is to be an
    overlay of.
    """

    size_bytes: int
    geometry: Geometry
    geometry_given: bool = False
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    parent: Path | None = None
    parent_options: OpenOptions = NO_OPTIONS


def plan_disk(
    *,
    size_bytes: int | None = None,
    chs: str | None = None,
    profile: str | None = None,
    sector_size: int | None = None,
    usual_sector_size: int | None = None,
) -> NewDisk:
    """The disk that a person asks for, by any of these that together say its size.

    A size is rounded up to whole sectors.  Without one it is that of the geometry, or the one that
    the profile fixes.  `usual_sector_size` is the format's, where nobody says another.  Raises
    InvalidArgument where they contradict each other, or say no size.
    """
    fixed = None if profile is None else profile_size(profile)
    fixed_sector_size = None if profile is None else profile_sector_size(profile)
    unit = sector_size or fixed_sector_size or usual_sector_size or SECTOR
    geometry = None if chs is None else Geometry.parse(chs, sector_size=unit)
    if size_bytes is None:
        size_bytes = geometry.size_bytes if geometry is not None else fixed
    if size_bytes is None:
        raise InvalidArgument("how large is the disk to be?", hint="give --size")
    size_bytes = whole_sectors(size_bytes, unit)
    if geometry is not None:
        check_fits(geometry, size_bytes)
    elif profile is not None:
        geometry = derive(profile, size_bytes, unit)
    else:
        choice = choose(size_bytes, unit)
        assert choice is not None  # There is at least one sector.
        geometry = choice.geometry
    return NewDisk(size_bytes, geometry, chs is not None or profile is not None)


def whole_sectors(size_bytes: int, sector_size: int) -> int:
    """`size_bytes` rounded up.  InvalidArgument for nothing at all, and past 2**63-1."""
    if size_bytes < 1:
        raise InvalidArgument("a disk has at least one sector")
    rounded = -(-size_bytes // sector_size) * sector_size
    if rounded > SIZE_BYTES_MAX:
        raise InvalidArgument(f"a disk is at most {SIZE_BYTES_MAX} bytes large")
    return rounded


def create_image(
    path: Path,
    new: NewDisk,
    *,
    write: Callable[[Creation], None] | None = None,
    fill: Callable[[], None] | None = None,
) -> bool:
    """Make the image `path`; whether format and geometry could be recorded with it.

    `write` writes it instead of the format's `create`; `fill` is called once it is there, closed.
    Nothing that exists is ever written to, and after an error of any kind, theirs included, no new
    file is left.  Raises Exists, NotFound (the folder), NotPermitted (inside a file or device),
    HostError; InvalidArgument for what the format cannot be; Unsupported for a format that is not
    made here.
    """
    _check_place(path)
    entry = creatable_format(path, new.format)
    options = settle_options(entry.options, new.options, entry.name)
    with ExitStack() as made:
        parent = _open_parent(made, entry, new)
        files = _NewFiles(path, made)
        host = files.another(path.name)
        creation = Creation(
            host, new.size_bytes, new.geometry.sector_size, new.geometry, options, files.another,
            new.geometry_given, parent, _parent_name(path, new),
        )
        assert entry.create is not None
        (write or entry.create)(creation)
        recorded = store_format(host, entry.name)
        if not entry.stores_geometry:
            recorded = store_geometry(host, new.geometry) and recorded
        files.close()
        if fill is not None:
            fill()
        files.keep()
    return recorded


def creatable_format(path: Path, given: str | None) -> Format:
    """The format to make an image of: `given`, or the one that the file's name means, or raw.

    Raises Unsupported for one that this version does not make.
    """
    extension = path.suffix.lower()
    if given is not None:
        entry = FORMATS[given]
    else:
        named = [entry for entry in FORMATS.values() if extension in entry.extensions]
        if not named and extension in _FOREIGN_EXTENSIONS:
            raise Unsupported(
                f"{extension} is the name of a format that this version does not make",
                path=path,
                hint=f"call it {path.with_suffix('.img').name}, or give --format raw",
            )
        entry = named[0] if named else FORMATS[Raw.name]
    if entry.create is None:
        makes = ", ".join(sorted(e.name for e in FORMATS.values() if e.create is not None))
        raise Unsupported(
            f"this version makes no {entry.name} images", path=path, hint=f"it makes: {makes}"
        )
    return entry


def _open_parent(made: ExitStack, entry: Format, new: NewDisk) -> ImageDisk | None:
    if new.parent is None:
        return None
    if not entry.overlays:
        able = ", ".join(sorted(e.name for e in FORMATS.values() if e.overlays))
        raise InvalidArgument(
            f"a {entry.name} image cannot be an overlay", hint=f"formats that can: {able}"
        )
    return made.enter_context(
        open_image(new.parent, writable=False, options=new.parent_options)
    )


def _parent_name(path: Path, new: NewDisk) -> str | None:
    """How the child names its parent: from its own folder."""
    if new.parent is None:
        return None
    return os.path.relpath(os.path.realpath(new.parent), os.path.realpath(path.parent))


class _NewFiles:
    """New files in one folder, which are closed at the end, and removed unless they are kept."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._made: list[HostFile] = []
        stack.callback(self._remove)

    def another(self, name: str) -> HostFile:
        """A new empty file beside the image.  Raises Exists and HostError."""
        host = HostFile.create(self._path.with_name(name))
        self._made.append(host)
        self._stack.callback(host.close)
        return host

    def close(self) -> None:
        """Close all: what is to be done with them now, others do."""
        for host in self._made:
            host.close()

    def keep(self) -> None:
        """All went well."""
        self._made.clear()

    def _remove(self) -> None:
        for host in self._made:
            with suppress(OSError):
                host.path.unlink()


def _check_place(path: Path) -> None:
    """Say what is wrong with `path` better than open(2) would."""
    with suppress(OSError, ValueError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            raise Exists(
                "is a block device, which is a disk already", path=path,
                hint="mount it as it is: vdisk mount",
            )
    if "\0" in str(path):
        raise InvalidArgument("not a file name", path=repr(str(path)))
    try:
        mode = os.stat(path.parent).st_mode
    except NotADirectoryError as error:
        raise _inside_a_file(path) from error
    except FileNotFoundError as error:
        raise NotFound("no such folder", path=path.parent, hint="make it first") from error
    except OSError as error:
        raise HostError.of(error, "create", path) from error
    if not stat.S_ISDIR(mode):
        raise _inside_a_file(path)


def _inside_a_file(path: Path) -> NotPermitted:
    return NotPermitted(
        f"lies inside {path.parent}, which is no folder", path=path,
        hint="partitions are made by writing a table to the disk, with sfdisk for instance",
    )
