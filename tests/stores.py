"""A mounted folder of disks, and the host folder that it shows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from harness import Mounted, make_image, sfdisk

MIB = 1 << 20
TABLE = "label: dos\nstart=2048,size=2048\nstart=4096,size=2048\n"


class Store:
    """A mounted folder, `mnt`, and the folder it shows, `host`.  Disks are NAME.img there."""

    def __init__(self, mounted: Mounted, host: Path) -> None:
        self.person = mounted.person
        self.mnt = mounted.mountpoint
        self.host = host

    def image(self, name: str, content: bytes) -> Path:
        """Make an image in the host folder; its path in the mount."""
        make_image(self.host / f"{name}.img", len(content), self.person).write_bytes(content)
        return self.mnt / name

    def partitioned(self, name: str) -> Path:
        """Make a disk of 4 MiB with two partitions of 1 MiB, at 1 MiB and at 2 MiB."""
        disk = self.image(name, bytes(4 * MIB))
        sfdisk(self.host / f"{name}.img", TABLE)
        return disk

    def names(self) -> list[str]:
        """What ls shows."""
        return self.person.run("ls", self.mnt).stdout.decode().split()

    def errno_of(self, work: Callable[[], object]) -> str | None:
        """The name of the errno that `work` meets; None if it goes well."""

        def met() -> str | None:
            try:
                work()
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return None

        return self.person.does(met)

    def clear(self) -> None:
        """Remove all disks through the mount.  Fails where something is left in the host folder."""
        names = [name for name in self.names() if ".p" not in name]
        self.person.run("rm", "-f", "--", *(self.mnt / name for name in names))
        left = os.listdir(self.host)
        for name in left:
            (self.host / name).unlink()
        assert left == []
