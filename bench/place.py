"""Where the image lies, and what state it is in before each run."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 4 << 20
_SPARE_BYTES = 256 << 20
_SEED = 2
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to put the image in.  `cold`: the image is not in memory when a run starts."""

    name: str
    folder: Path
    size_bytes: int
    cold: bool = False

    @property
    def label(self) -> str:
        """What the report calls it."""
        kind = file_system(self.folder)
        if kind in _IN_MEMORY:
            return f"image on {kind}"
        return f"image on disk ({kind}), {'not ' if self.cold else ''}in the host's cache"

    def missing(self) -> str | None:
        """Why it cannot be used here; None where it can."""
        if not os.access(self.folder, os.W_OK):
            return f"{self.folder} is missing or not ours to write"
        in_memory = file_system(self.folder) in _IN_MEMORY
        if in_memory != (self.name == "tmpfs"):
            return f"{self.folder} is {'' if in_memory else 'not '}in memory"
        free = shutil.disk_usage(self.folder).free
        if free < self.size_bytes + _SPARE_BYTES:
            return f"{self.folder} has only {free >> 20} MiB free"
        return None


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` is on, as /proc has it."""
    where, found = os.path.realpath(folder), ("", "unknown")
    for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines():
        mountpoint, kind = line.split()[1:3]
        above = mountpoint.rstrip("/") + "/"
        if (where + "/").startswith(above) and len(above) >= len(found[0]):
            found = (above, kind)
    return found[1]


@contextmanager
def image_in(place: Place) -> Iterator[Path]:
    """The image, full of data and in a folder of its own, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="vdisk-bench-", dir=place.folder) as folder:
        image = Path(folder) / "bench.img"
        _fill(image, place.size_bytes)
        yield image


def _fill(image: Path, size_bytes: int) -> None:
    # The same bytes each time, and none that a disk or a program could shorten to nothing.
    chunk = random.Random(_SEED).randbytes(_CHUNK_BYTES)
    with image.open("wb") as file:
        for at in range(0, size_bytes, _CHUNK_BYTES):
            file.write(chunk[: size_bytes - at])
        os.fsync(file.fileno())


def settle(image: Path, place: Place) -> None:
    """Bring the image to the state that each run starts from.

    Nothing that an earlier run wrote waits to reach the disk, and all of the image is in the
    host's page cache, or none of it where the place is cold.
    """
    with image.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        if place.cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        elif place.name != "tmpfs":
            buffer = bytearray(_CHUNK_BYTES)
            while file.readinto(buffer):
                pass
