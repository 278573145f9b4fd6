"""How a differencing VHD names its parent: the names in it, as paths of this system.

A program of Windows writes a path from the child's folder (W2ru) and one from the root (W2ku), both
in UTF-16; one of a Mac, a file URL in UTF-8 (MacX).  From a path of another machine, the last part
is still of use: a child and its parent are mostly moved together.

Source: "Virtual Hard Disk Image Format Specification" 1.0, "Parent Locator Table".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from vdisk.formats.vhd_header import DynamicHeader, Locator
from vdisk.host import HostFile
from vdisk.units import SECTOR

_NAME_BYTES_MAX = 64 << 10
_RELATIVE, _ABSOLUTE, _MAC = b"W2ru", b"W2ku", b"MacX"


def parent_paths(host: HostFile, header: DynamicHeader) -> tuple[str, ...]:
    """The paths of the parent that the child in `host` gives, the most exact first, none twice."""
    named = {each.code: each for each in reversed(header.locators)}
    found: list[str] = []
    for code in (_RELATIVE, _MAC, _ABSOLUTE):
        if code in named:
            found.append(_path(code, _text(host, named[code])))
    found.extend(_last_parts([*found, windows_path(header.parent_name)]))
    return tuple(dict.fromkeys(path for path in found if _is_usable(path)))


def locator_texts(parent_path: str, parent_name: str) -> list[tuple[bytes, bytes]]:
    """(platform code, bytes) of a parent's locators; `parent_name` is from the child's folder."""
    relative, absolute = (path.replace("/", "\\") for path in (parent_name, parent_path))
    if not relative.startswith(".."):
        relative = f".\\{relative}"
    return [
        (_RELATIVE, relative.encode("utf-16-le", "surrogateescape")),
        (_ABSOLUTE, absolute.encode("utf-16-le", "surrogateescape")),
    ]


def placed(texts: Iterable[tuple[bytes, bytes]], offset: int) -> Iterator[tuple[Locator, bytes]]:
    """Each locator and its bytes, one after the other from `offset` on, in whole sectors."""
    for code, text in texts:
        space = -(-len(text) // SECTOR) * SECTOR
        yield Locator(code, space, len(text), offset), text
        offset += space


def windows_path(text: str) -> str:
    """A path of Windows with slashes, and without the drive that this system does not have."""
    drive, colon, rest = text.partition(":")
    if colon and len(drive) == 1:
        text = rest
    return os.path.normpath(text.replace("\\", "/")) if text else ""


def _path(code: bytes, text: bytes) -> str:
    if code != _MAC:
        return windows_path(text.decode("utf-16-le", "replace").rstrip("\0"))
    url = text.decode("utf-8", "replace").rstrip("\0").removeprefix("file://")
    host, slash, rest = url.partition("/")
    # "file://./parent.vhd" is what tools write for a path from the child's folder.
    return os.path.normpath(unquote(rest if host == "." else slash + rest)) if rest else ""


def _text(host: HostFile, locator: Locator) -> bytes:
    if locator.length > _NAME_BYTES_MAX or locator.offset + locator.length > host.size():
        return b""
    return host.read(locator.offset, locator.length)


def _last_parts(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield os.path.basename(path)


def _is_usable(path: str) -> bool:
    return bool(path) and "\0" not in path and path != "."
