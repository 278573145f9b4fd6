"""Opening the files that an image names: its parent, and other files of its own.

An image that came from somewhere else may name any file of this machine.  So a name is followed
only to a regular file in the image's own folder, after every symbolic link in it is resolved, or in
a folder that the user allows.  A chain of parents has at most `DEPTH_MAX` images, and none twice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain as chained
from itertools import islice
from pathlib import Path

from vdisk.errors import (
    Corrupt,
    DiskError,
    HostError,
    InvalidFormat,
    NotFound,
    NotPermitted,
    Unsupported,
)
from vdisk.formats.base import Opening, ParentReference
from vdisk.formats.raw import Raw
from vdisk.formats.registry import FORMATS, format_of
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.units import SECTOR

DEPTH_MAX = 32
"""Images in a chain: the one that was opened, and its parents."""

_CANDIDATES_MAX = 4096  # Files in a folder that are looked at in the search for a parent.


@dataclass(frozen=True, slots=True)
class _Chain:
    """The images from the one that was opened to this one, by (device, inode)."""

    images: tuple[tuple[int, int], ...]
    allowed: tuple[Path, ...]
    lock: bool
    writable: bool = False  # The next parent is to be.


def opening(
    host: HostFile,
    allowed: tuple[Path, ...] = (),
    *,
    lock: bool = True,
    writable_parent: bool = False,
) -> Opening:
    """How the image in `host` opens what it names; `allowed` are folders besides its own.

    `lock` says whether parents get a reader's lock; with `writable_parent` the nearest is opened
    for writing, and gets a writer's.
    """
    return _opening(host, _Chain((host.identity,), allowed, lock, writable_parent))


def with_parent(how: Opening, parent: ImageDisk) -> Opening:
    """How an image is opened that shall have this parent, whatever it says about one."""
    return replace(how, open_parent=lambda reference: parent, any_state=True)


def check_reachable(child: Path, parent: Path, allowed: tuple[Path, ...] = ()) -> None:
    """Raise NotPermitted where `child` would not be allowed to lead to `parent` by its name."""
    folder, real = Path(os.path.realpath(child)).parent, Path(os.path.realpath(parent))
    if not _is_allowed(real, folder, allowed):
        raise NotPermitted(
            f"lies outside the folder of {child}", path=parent, hint=_allow_hint(str(real.parent))
        )


def _opening(host: HostFile, chain: _Chain) -> Opening:
    return Opening(
        partial(_open_parent, host, chain), partial(_open_file, host, chain),
        partial(_make_file, host),
    )


def _open_file(child: HostFile, chain: _Chain, name: str) -> HostFile:
    return _open_named(child, chain, name, writable=child.writable)


def _make_file(image: HostFile, name: str) -> HostFile:
    folder = _folder(image)
    host = HostFile.create(folder / name, stat.S_IMODE(image.stat().st_mode))
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        host.path.unlink(missing_ok=True)
        host.close()
        raise HostError.of(error, "make durable", folder) from error
    return host


def _open_parent(child: HostFile, chain: _Chain, reference: ParentReference) -> ImageDisk:
    if len(chain.images) >= DEPTH_MAX:
        raise Corrupt(f"has more than {DEPTH_MAX - 1} parents", path=child.path)
    if reference.format is not None and reference.format not in FORMATS:
        raise Unsupported(
            f"its parent is a {reference.format} image, which this version does not open",
            path=child.path,
        )
    host = _find(child, chain, reference)
    try:
        if host.identity in chain.images:
            raise Corrupt("is its own parent", path=child.path)
        if reference.format is None and format_of(host).name == Raw.name:
            raise InvalidFormat(
                "is named as a parent, and is no image of a known format", path=host.path
            )
        longer = replace(chain, images=(*chain.images, host.identity), writable=False)
        image = format_of(host, reference.format).open(host, _opening(host, longer))
    except BaseException:
        host.close()
        raise
    return ImageDisk(
        image, address=str(host.path), sector_size=SECTOR, read_only=not host.writable
    )


def _find(child: HostFile, chain: _Chain, reference: ParentReference) -> HostFile:
    """The open host file of the parent.  Raises the reason of the most promising name."""
    failure: DiskError | None = None
    looking = replace(chain, lock=False)  # Until it is known to be the parent.
    is_search = not reference.paths or reference.searched
    for name in chained(reference.paths, _neighbours(child, chain) if is_search else ()):
        try:
            _check_match(child, looking, reference, name)
        except DiskError as error:
            if name in reference.paths and (failure is None or isinstance(failure, NotFound)):
                failure = error
            continue
        return _open_named(child, chain, name, writable=chain.writable)
    raise failure or NotFound(
        "its parent is in no folder that was looked into", path=child.path,
        hint=_allow_hint("the folder of its parent"),
    )


def _check_match(
    child: HostFile, chain: _Chain, reference: ParentReference, name: str
) -> None:
    host = _open_named(child, chain, name, writable=False)
    try:
        if reference.matches is not None and not reference.matches(host):
            raise Corrupt(
                "is another image than the one its child was made on, or was written to since",
                path=host.path, hint="to take it all the same: vdisk rebase --unsafe",
            )
    finally:
        host.close()


def _open_named(child: HostFile, chain: _Chain, name: str, *, writable: bool) -> HostFile:
    """Open `name`, as an image in the folder of `child` says it."""
    if not name or "\0" in name:
        raise Corrupt(f"names a file {name!r}, which cannot be", path=child.path)
    folder = _folder(child)
    real = Path(os.path.realpath(folder / name))
    if not _is_allowed(real, folder, chain.allowed):
        raise NotPermitted(
            f"names {real}, which lies outside its folder", path=child.path,
            hint=_allow_hint(str(real.parent)),
        )
    host = HostFile.open(real, writable=writable, lock=chain.lock)
    try:
        # The folder may have been changed between the look and the open.
        opened = os.readlink(f"/proc/self/fd/{host.fd}")
        if opened != str(real) or not stat.S_ISREG(host.stat().st_mode):
            raise NotPermitted(f"names {real}, which is no regular file there", path=child.path)
    except OSError as error:
        host.close()
        raise HostError.of(error, "look at", real) from error
    except BaseException:
        host.close()
        raise
    return host


def _folder(child: HostFile) -> Path:
    return Path(os.path.realpath(child.path)).parent


def _is_allowed(real: Path, folder: Path, allowed: tuple[Path, ...]) -> bool:
    if real.parent == folder:
        return True
    return any(real.is_relative_to(os.path.realpath(each)) for each in allowed)


def _neighbours(child: HostFile, chain: _Chain) -> Iterator[str]:
    """The regular files beside `child`, then those in the folders that are allowed."""
    for folder in (_folder(child), *chain.allowed):
        try:
            with os.scandir(folder) as entries:
                few = islice(entries, _CANDIDATES_MAX)
                paths = sorted(e.path for e in few if e.is_file() and not e.name.startswith("."))
        except OSError as error:
            raise HostError.of(error, "list", folder) from error
        yield from (os.path.abspath(path) for path in paths)


def _allow_hint(folder: str) -> str:
    return f"to follow it all the same: --allow-parent {folder}"
