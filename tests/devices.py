"""Block devices for the tests, which only root can make."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loop_device(backing: Path, sector_size: int = 512, *options: str) -> Iterator[Path]:
    """A loop device over `backing`; `options` are more of losetup's."""
    line = ["losetup", "--find", "--show", f"--sector-size={sector_size}", *options, str(backing)]
    made = subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(made)
    finally:
        subprocess.run(["losetup", "--detach", made], check=True)
