"""What a person says about an image instead of letting it be found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What the user says about an image instead of letting it be found out.

    `chs` is "C/H/S".  A field that is None was not given.
    """

    format: str | None = None
    chs: str | None = None
    sector_size: int | None = None
    profile: str | None = None
    allow_parent: tuple[Path, ...] = ()
    """Folders, besides the image's own, in which the files may lie that an image names."""


NO_OPTIONS = OpenOptions()
