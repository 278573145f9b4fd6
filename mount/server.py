"""What a FUSE server is: it carries the kernel's requests to a `FileSystem`, and its answers back.

There are two.  `kernel` speaks the kernel's protocol itself; `pyfuse3` leaves that to libfuse.  All
that differs between them is what `abilities` says.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import ClassVar

from mount.filesystem import FileSystem
from vdisk.errors import DiskError

_CLASSES = {
    "kernel": "mount.kernel.server:KernelServer",
    "pyfuse3": "mount.pyfuse3_server:Pyfuse3Server",
}
_log = logging.getLogger(__name__)


class Ability(StrEnum):
    """What one server can and another one may not."""

    HOLES = "holes"
    """fallocate(2), and lseek(2) with SEEK_DATA and SEEK_HOLE."""
    COPIES = "copies"
    """copy_file_range(2)."""
    ATTRIBUTES = "attributes"
    """Extended attributes."""
    BIRTH = "birth"
    """The time of birth, by statx(2)."""
    PASSTHROUGH = "passthrough"
    """Who reads a raw disk is given the host file by the kernel itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is to be mounted where.

    `source` is what mount tables show.  `flags` are options of mount(8) such as noexec, and
    allow_root.  `passthrough` is wanted where it can be had.
    """

    mountpoint: str
    source: str
    subtype: str
    read_only: bool = False
    allow_other: bool = False
    flags: frozenset[str] = field(default_factory=frozenset)
    passthrough: bool = True
    debug: bool = False


class Server(ABC):
    """One mount's server: `start`, then `serve` in trio, then `stop`, once each."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def abilities(self) -> frozenset[Ability]:
        """What it can do on this machine; known when it has started."""

    @abstractmethod
    def start(self, filesystem: FileSystem, place: Place) -> None:
        """Mount, and become the one who can tell the kernel to drop pages.

        Raises HostError with the reason where that fails; then nothing is mounted.
        """

    @abstractmethod
    async def serve(self) -> None:
        """Answer requests until the mount is gone, or the task is cancelled."""

    @abstractmethod
    def stop(self) -> None:
        """Take the mount away, unless it is gone, and let go of the connection."""


def make_server(name: str) -> Server:
    """A server by its name, one of `mount.options.SERVERS` but for the first."""
    module, _, attribute = _CLASSES[name].partition(":")
    server = getattr(import_module(module), attribute)()
    assert isinstance(server, Server)
    return server


def start_server(name: str, filesystem: FileSystem, place: Place) -> Server:
    """Start the server of that name; for `auto`, the first that can.  Raises as `Server.start`."""
    names = [name] if name in _CLASSES else [*_CLASSES]
    for candidate in names[:-1]:
        server = make_server(candidate)
        try:
            server.start(filesystem, place)
        except DiskError as error:
            _log.info("server %s: %s", candidate, error)
            continue
        return server
    server = make_server(names[-1])
    server.start(filesystem, place)
    return server
