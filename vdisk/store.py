"""Where disks live together: a folder of image files, or a fixed list of images.

A store is one small interface; `mount` does not know which one it has.  Names are what a person
sees: the host file's name without its image extension, or with it where two would be the same.
"""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vdisk.errors import (
    DiskError,
    Exists,
    HostError,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ReadOnly,
)
from vdisk.formats.raw import Raw
from vdisk.formats.registry import FORMATS, IMAGE_EXTENSIONS, is_part
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import OpenOptions, image_disk, keep_format, keep_given_geometry, look_into
from vdisk.record import FORMAT_ATTRIBUTE, store_format

NEW_EXTENSION = ".img"
"""What a disk that is created in a folder under a bare name is called in the host."""

_TICK_NS = 20_000_000  # The slowest clock of a kernel in use ticks 100 times a second.

_PARTITION_NAME = re.compile(r"(.+)\.p\d+")


@dataclass(frozen=True, slots=True)
class Space:
    """Room in the place where a store lies: bytes in all, free, and free to this user."""

    total: int
    free: int
    available: int


class Store(ABC):
    """Disks that live together.  Names are as `names()` gives them; `resolve` knows more."""

    writable: bool
    source: Path
    _options: OpenOptions

    @abstractmethod
    def names(self) -> dict[str, Path]:
        """The shown name of each image and its host file, as they are now."""

    @abstractmethod
    def open(self, name: str) -> ImageDisk:
        """Open the disk of that shown name, locked.  NotFound, or what `open_image` raises."""

    def keep(self, disk: ImageDisk) -> str | None:
        """Record with an open disk what it was taken for; what to warn of where that cannot be.

        The format, so that what a guest writes never changes it.
        """
        if not disk.read_only:
            keep_format(disk, self._options)
        return None

    @abstractmethod
    def version(self) -> object:
        """A value that changes when `names()` may answer something new."""

    @abstractmethod
    def identity(self, path: Path) -> object:
        """What stays the same of a file in `names()` while it is the same disk."""

    def resolve(self, name: str) -> str | None:
        """The shown name that `name` means: itself, or a host file's full name."""
        shown = self.names()
        if name in shown:
            return name
        return next((key for key, path in shown.items() if path.name == name), None)

    def create(self, name: str, mode: int) -> tuple[Path, ImageDisk]:
        """Create an empty raw disk, recorded as raw; its host file, and the disk, open."""
        raise NotPermitted("no disk can be created here", path=name, hint="mount a folder")

    def remove(self, name: str) -> None:
        """Remove the disk's host file."""
        raise NotPermitted("cannot be removed here", path=name, hint="mount its folder")

    def rename(self, old: str, new: str) -> Path:
        """Rename a disk, in place of one of the new name if there is one; its new host file."""
        raise NotPermitted("cannot be renamed here", path=old, hint="mount its folder")

    def stat(self) -> os.stat_result:
        """Owner, mode and times of the folder the store is, or lies in."""
        source = self.source
        try:
            return os.stat(source if source.is_dir() else source.parent)
        except OSError as error:
            raise HostError.of(error, "look at", source) from error

    def space(self) -> Space:
        """Room on the file system that holds the store."""
        return space_in(self.source)


def space_in(path: Path) -> Space:
    """Room on the file system that holds `path`.  Raises HostError."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise HostError.of(error, "measure the free space", path) from error
    unit = found.f_frsize
    return Space(found.f_blocks * unit, found.f_bfree * unit, found.f_bavail * unit)


class ImageList(Store):
    """Images that were named one by one.  They can be resized, and neither renamed nor removed."""

    def __init__(self, paths: Iterable[Path], options: OpenOptions, *, writable: bool) -> None:
        self._paths = shown_names(list(paths))
        self._options = options
        self.writable = writable
        self.source = next(iter(self._paths.values()))

    def names(self) -> dict[str, Path]:
        return self._paths

    def open(self, name: str) -> ImageDisk:
        if name not in self._paths:
            raise NotFound("no such disk", path=name)
        return look_into(self._paths[name], writable=self.writable, options=self._options)

    def keep(self, disk: ImageDisk) -> str | None:
        """As any store; and the geometry, where one was given."""
        super().keep(disk)
        if disk.read_only or keep_given_geometry(disk, self._options):
            return None
        return f"{disk.address}: this file system cannot keep the geometry; give --chs each time"

    def version(self) -> object:
        return None

    def identity(self, path: Path) -> object:
        return path


class FolderStore(Store):
    """A folder whose image files are the disks.

    A file is taken for an image by its extension, by a recorded format, or, with no extension at
    all, by a size of whole sectors.  Hidden files never are, nor are files that by their names are
    parts of an image in several files (the extents of a VMDK).
    """

    def __init__(self, folder: Path, options: OpenOptions, *, writable: bool) -> None:
        self.source = folder
        self._options = options
        self.writable = writable

    def version(self) -> object:
        try:
            found = os.stat(self.source)
        except OSError as error:
            raise HostError.of(error, "look into", self.source) from error
        # Two changes within one tick of the kernel's clock can leave the same time.  Unlike the
        # time of modification, that of change cannot be set back, as rsync does.
        if time.time_ns() - found.st_ctime_ns < _TICK_NS:
            return object()
        return found.st_mtime_ns, found.st_ctime_ns

    def identity(self, path: Path) -> object:
        try:
            found = os.stat(path)
        except OSError as error:
            raise HostError.of(error, "look at", path) from error
        return found.st_dev, found.st_ino

    def names(self) -> dict[str, Path]:
        try:
            with os.scandir(self.source) as entries:
                found = [Path(entry.path) for entry in entries if _looks_like_image(entry)]
        except OSError as error:
            raise HostError.of(error, "list", self.source) from error
        return shown_names(sorted(found))

    def open(self, name: str) -> ImageDisk:
        path = self._path(name)
        return look_into(path, writable=self.writable, options=self._options, allow_empty=True)

    def create(self, name: str, mode: int) -> tuple[Path, ImageDisk]:
        self._check(name)
        if self.resolve(name) is not None:
            raise Exists("already exists", path=name)
        extension = _image_extension(name).lower()
        if any(extension in entry.extensions for entry in FORMATS.values()):
            raise NotPermitted(
                "a disk that is made here is raw, and grows as it is written", path=name,
                hint=f"leave out the {extension}, or make it with vdisk create",
            )
        host = HostFile.create(self.source / _host_name(name, NEW_EXTENSION), mode)
        try:
            store_format(host, Raw.name)
            # A geometry that was given cannot fit yet: the disk is empty and is to grow.
            options = replace(self._options, chs=None, profile=None)
            return host.path, image_disk(host, Raw(host), options)
        except BaseException:
            host.path.unlink(missing_ok=True)
            host.close()
            raise

    def remove(self, name: str) -> None:
        path = self._path(name)
        self._check(name)
        parts = self._parts(path)
        try:
            path.unlink()
            for part in parts:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise HostError.of(error, "remove", path) from error

    def _parts(self, path: Path) -> list[Path]:
        """The other files of an image: those that it names and that are named after it.

        An image that came from elsewhere may name anything in the folder.
        """
        try:
            with look_into(path, writable=False, options=self._options, lock=False) as disk:
                files = [host.path for host in disk.image.hosts()[1:]]
        except DiskError:  # One that cannot be opened can be removed.
            return []
        return [each for each in files if is_part(each.name) and each.parent == path.parent
                and each.name.startswith(f"{image_stem(path.name)}-")]  # fmt: skip

    def rename(self, old: str, new: str) -> Path:
        path = self._path(old)
        self._check(new)
        there = self.resolve(new)
        target = (
            self._path(there) if there is not None
            else self.source / _host_name(new, _image_extension(path.name) or NEW_EXTENSION)
        )
        if there is None and os.path.lexists(target):
            raise Exists("the host folder has a file of that name", path=target)
        try:
            path.replace(target)
        except OSError as error:
            raise HostError.of(error, f"rename to {target.name}", path) from error
        return target

    def _path(self, name: str) -> Path:
        try:
            return self.names()[name]
        except KeyError:
            raise NotFound("no such disk", path=self.source / name) from None

    def _check(self, name: str) -> None:
        """Refuse a name that cannot be a disk's, or any change to a store mounted read-only."""
        if not self.writable:
            raise ReadOnly("is mounted read-only", path=self.source)
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise InvalidArgument(
                "no disk can be called that", path=repr(name),
                hint="a name does not begin with a dot",
            )
        partition = _PARTITION_NAME.fullmatch(name)
        if partition is not None and self.resolve(partition[1]) is not None:
            raise NotPermitted(
                f"would be taken for a partition of {partition[1]}", path=name,
                hint=f"partitions are made by writing a table to {partition[1]}",
            )


def shown_names(paths: list[Path]) -> dict[str, Path]:
    """The name each image is shown by: without its image extension where that tells them apart.

    A name that another image has in full ("a.img" for "a.img.img"), or that another image's
    partition could have ("a.p1" beside "a"), keeps its extension too.
    Raises InvalidArgument where two paths have the same full name.
    """
    stems = Counter(image_stem(path.name) for path in paths)
    full = {path.name for path in paths}
    shown: dict[str, Path] = {}
    for path in paths:
        stem = image_stem(path.name)
        partition = _PARTITION_NAME.fullmatch(stem)
        clash = stems[stem] > 1 or (stem != path.name and stem in full)
        if partition is not None:
            clash = clash or partition[1] in stems or partition[1] in full
        name = path.name if clash else stem
        if name in shown:
            raise InvalidArgument(
                f"{shown[name]} and {path} would both be shown as {name}", hint="rename one of them"
            )
        shown[name] = path
    return shown


def image_stem(name: str) -> str:
    """`name` without its image extension, if it has one and something before it."""
    return name.removesuffix(_image_extension(name)) or name


def _image_extension(name: str) -> str:
    """The image extension that `name` ends with, as it is written there; "" if none."""
    extension = os.path.splitext(name)[1]
    return extension if extension.lower() in IMAGE_EXTENSIONS else ""


def _host_name(name: str, extension: str) -> str:
    return name if image_stem(name) != name else name + extension


def _looks_like_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or is_part(entry.name):
        return False
    try:
        if not entry.is_file():
            return False
        if _image_extension(entry.name) or _has_format_record(entry.path):
            return True
        size = entry.stat().st_size
        return not os.path.splitext(entry.name)[1] and size > 0 and size % 512 == 0
    except OSError:
        return False


def _has_format_record(path: str) -> bool:
    try:
        return FORMAT_ATTRIBUTE in os.listxattr(path)
    except OSError:  # This file system has no attributes, or this file is not ours to look into.
        return False
