"""The disks of another store, each with a layer on it that takes its changes and is forgotten."""

from __future__ import annotations

from pathlib import Path

from vdisk.errors import NotPermitted
from vdisk.image_disk import ImageDisk
from vdisk.scratch import scratch_disk, scratch_folder
from vdisk.store import Space, Store, space_in


class ScratchStore(Store):
    """`beneath` opens its disks read-only; those shown can be written and resized.

    No disk is made, renamed or removed: that could not be taken back.
    """

    writable = True

    def __init__(self, beneath: Store) -> None:
        self._beneath = beneath
        self.source = beneath.source

    def names(self) -> dict[str, Path]:
        return self._beneath.names()

    def open(self, name: str) -> ImageDisk:
        base = self._beneath.open(name)
        try:
            return scratch_disk(base)
        except BaseException:
            base.close()
            raise

    def keep(self, disk: ImageDisk) -> str | None:
        """Nothing is recorded with an image that is to stay as it is."""
        return None

    def version(self) -> object:
        return self._beneath.version()

    def identity(self, path: Path) -> object:
        return self._beneath.identity(path)

    def create(self, name: str, mode: int) -> tuple[Path, ImageDisk]:
        raise self._refusal(name)

    def remove(self, name: str) -> None:
        raise self._refusal(name)

    def rename(self, old: str, new: str) -> Path:
        raise self._refusal(old)

    def _refusal(self, name: str) -> NotPermitted:
        return NotPermitted(
            "is mounted with --snapshot: only what is on its disks can be changed",
            path=self.source / name,
        )

    def space(self) -> Space:
        """Where the changes go."""
        return space_in(scratch_folder())
