"""qcow2 images made here, without starting a process for each, and judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import qemu
from vdisk.create import create_image, plan_disk
from vdisk.open import open_image


def create(path: Path, size: int, options: str = "", parent: Path | None = None) -> Path:
    """A new image; `options` as after `-o`: name=value, with commas between."""
    given = dict(word.split("=", 1) for word in options.split(",") if word)
    new = plan_disk(size_bytes=size)
    create_image(path, replace(new, format="qcow2", options=given, parent=parent))
    return path


def sound(image: Path) -> None:
    """By qemu-img check and by our own."""
    qemu.check(image, "qcow2")
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
