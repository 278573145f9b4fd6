"""Images that other programs made, which lie beside the checkout and are no part of it."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from harness import ROOT

_FOLDER = ROOT.parent / "shared" / "images"


def unpacked(name: str, path: Path) -> Path:
    """The sample image `name`, unpacked to `path`; where the samples are not there, no test."""
    packed = _FOLDER / f"{name}.xz"
    if not packed.exists():
        pytest.skip(f"the sample image {name} is not beside this checkout")
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path
